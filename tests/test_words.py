"""The vocabulary file and its templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nullspace_unlearn.words import Words, check_names, check_template, read_words


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_json_round_trip(tmp_path: Path) -> None:
    words = Words(
        classes=("car", "naïve dog"),
        domains={"sketch": "pencil sketch"},
        class_templates=("a {class}.",),
        cell_templates=("a {domain} of a {class}.",),
        aliases={"car": ("auto",)},
    )
    path = write(tmp_path / "vocabulary.json", json.dumps(words.to_json()))
    assert read_words(path) == words


def test_only_classes_are_needed(tmp_path: Path) -> None:
    words = read_words(write(tmp_path / "v", '{"classes": ["car"]}'))
    assert words == Words(classes=("car",))
    assert words.class_templates and words.cell_templates


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '{"classes": "car"}',
        '{"classes": null}',
        '{"classes": [1]}',
        '{"classes": ["car", " car"]}',
        '{"classes": [" "]}',
        '{"classes": ["car"], "domains": ["sketch"]}',
        '{"classes": ["car"], "domains": {"sketch": 1}}',
        '{"classes": ["car"], "templates": {"class": "a {}"}}',
        '{"classes": ["car"], "templates": {"class": ["a car"]}}',
        '{"classes": ["car"], "templates": []}',
        '{"classes": ["car"], "aliases": {"car": "auto"}}',
        b"\xff\xfe\x00",
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ValueError, match="bad.json is not a vocabulary file"):
        read_words(write(tmp_path / "bad.json", text))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.json is not a vocabulary file"):
        read_words(tmp_path / "none.json")


@pytest.mark.parametrize(
    "template, fields, expected",
    [
        ("a {}.", ("class",), "a {class}."),
        ("a {class}.", ("class",), "a {class}."),
        ("{domain} of {}", ("class", "domain"), "{domain} of {class}"),
        ("a {{{class}}}", ("class",), "a {{{class}}}"),
    ],
)
def test_templates(template: str, fields: tuple[str, ...], expected: str) -> None:
    assert check_template(template, fields) == expected
    filled = expected.format(**dict.fromkeys(fields, "x"))
    assert filled == template.format(
        *(["x"] if "{}" in template else []), **dict.fromkeys(fields, "x")
    )


@pytest.mark.parametrize(
    "template",
    ["a car", "{} and {}", "{class} {}", "{name}", "{class!r}", "{class:>9}", "{", "{0}"],
)
def test_bad_templates_are_told_what_they_take(template: str) -> None:
    with pytest.raises(ValueError, match="template .*{class}"):
        check_template(template, ("class",))


def test_a_cell_template_needs_both_fields() -> None:
    with pytest.raises(ValueError, match="{class} and {domain}"):
        Words(cell_templates=("a {class}.",))


def test_names_differ_by_more_than_blanks_and_case() -> None:
    check_names("class", ("crane", "cranes", "cr ane"))
    with pytest.raises(ValueError, match="class named twice: 'car' and ' car'"):
        check_names("class", ("car", " car"))
    with pytest.raises(ValueError, match="class named twice: 'crane' and 'Crane'"):
        check_names("class", ("crane", "Crane"))
