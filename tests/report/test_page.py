"""A page says what the runs wrote, in their own numbers, and nothing that is in it runs."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, audit_folder, edited_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from nullspace_unlearn.files import OutputExists  # noqa: E402
from nullspace_unlearn.report.page import write_page  # noqa: E402
from nullspace_unlearn.report.page.blocks import Drawing, Number, Table, number  # noqa: E402
from nullspace_unlearn.report.page.colours import contrast, rules  # noqa: E402
from nullspace_unlearn.report.page.drawn import inline  # noqa: E402
from nullspace_unlearn.report.page.tables import latex  # noqa: E402


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of its tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.data.append(str(dict(attrs)["value"]))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The report and the page of a folder whose names are hostile."""
    root = tmp_path_factory.mktemp("hostile")
    report = edited_folder(root / "out", HOSTILE, ("photo", "<b>sketch</b>"))
    write_page([root / "out"], root / "page.html", root / "tables")
    return report, root


def test_every_accuracy_stands_there_as_the_run_wrote_it(hostile: Any) -> None:
    report, root = hostile
    page = (root / "page.html").read_text()
    found = Elements(page[page.index('class="heat"') :]).data
    both = zip(report["before"]["accuracy"], report["after"]["accuracy"], strict=True)
    rows = [
        (
            *before,
            *after,
            *(None if a is None else a - b for a, b in zip(after, before, strict=True)),
        )
        for before, after in both
    ]
    cells = [repr(value) for row in rows for value in row if value is not None]
    assert found[: len(cells)] == cells
    assert sum(value is None for row in rows for value in row) == 3  # the cell without images
    control = [repr(value) for row in report["after"]["accuracy"] for value in row]
    assert control != cells[: len(control)]


def test_figures_and_intervals_are_those_of_the_run(hostile: Any) -> None:
    report, root = hostile
    with (root / "tables" / "figures.csv").open(newline="") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    for said in report["table"]:
        for which in ("before", "after", "chance"):
            value = report["figures"][which][said["name"]]
            assert rows[said["title"]][which] == ("" if value is None else str(value))
    assert html.escape(report["sentence"]) in (root / "page.html").read_text()


def test_hostile_names_are_text(hostile: Any) -> None:
    _, root = hostile
    page = (root / "page.html").read_text()
    tags = Elements(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not any(tag in ("img", "iframe", "object", "b", "form") for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    links = [value for _, a in tags for key, value in a.items() if key.endswith(("href", "src"))]
    assert links and all(value.startswith(("#", "data:,")) for value in links)
    assert "&lt;script&gt;" in page and "{{ 7 * 7 }}" in page and "سيارة" in page
    assert "\x1b" not in page and "\u202e" not in page and r"\x1b[31mred" in page
    outside = re.findall(r"(?:https?:)?//[\w.]+", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert set(outside) <= {"http://example.org"}  # one of the names


def test_no_field_of_a_table_is_a_formula_and_latex_is_escaped(hostile: Any) -> None:
    _, root = hostile
    with (root / "tables" / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["class"] for row in rows))
    assert '\'=HYPERLINK("http://example.org")' in names and "a" * 10_000 in names
    assert not any(value[:1] in "=+@\t\r" for name in names for value in [name])
    text = (root / "tables" / "cells.tex").read_text()
    assert r"\$\textbackslash{}frac\{1\}\{0\}\$ \& 100 \% \_under\_" in text
    plain = latex(Table("a", "A", ("b", "c"), (("d", number(0.25)),)))
    body = r"b & c \\" + "\n\\midrule\n" + r"d & 0.250 \\"
    assert body in plain and r"\begin{tabular}{lr}" in plain


def test_every_table_and_plot_is_a_file(hostile: Any) -> None:
    _, root = hostile
    with (root / "tables" / "index.csv").open(newline="") as file:
        files = {row["file"] for row in csv.DictReader(file)}
    assert files | {"index.csv"} == {path.name for path in (root / "tables").iterdir()}
    for stem in ("cells", "lists", "plane", "spectrum"):
        assert {f"{stem}{ending}" for ending in (".csv", ".tex", ".png", ".svg")} <= files
        with Image.open(root / "tables" / f"{stem}.png") as image:
            assert image.format == "PNG"


def test_the_same_runs_make_the_same_page(tmp_path: Path) -> None:
    edited_folder(tmp_path / "out")
    for name in ("one", "two"):
        write_page([tmp_path / "out"], tmp_path / name, tmp_path / f"{name}.d")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for file in (tmp_path / "one.d").iterdir():
        assert file.read_bytes() == (tmp_path / "two.d" / file.name).read_bytes()
    edited_folder(tmp_path / "weaker" / "out", share=0.3)  # control
    write_page([tmp_path / "weaker" / "out"], tmp_path / "three")
    assert (tmp_path / "one").read_bytes() != (tmp_path / "three").read_bytes()


def test_an_edit_its_audit_and_a_peer_on_one_page(tmp_path: Path) -> None:
    edited_folder(tmp_path / "out")
    edited_folder(tmp_path / "peer", share=0.5)
    said = audit_folder(tmp_path / "out.audit", "<i>a photo</i> of a car")
    runs = [tmp_path / name for name in ("out", "out.audit/audit.json", "peer")]
    done = write_page(runs, tmp_path / "page.html", tmp_path / "tables")
    assert [part.title for part in done.parts] == ["out", "out.audit", "peer"]
    assert done.to_json()["runs"][1]["verdict"] == said["verdict"]
    page = (tmp_path / "page.html").read_text()
    for words in ("Side by side", "recoverable with 4 images", "From arXiv 1.", "random edit",
                  "&lt;i&gt;a photo&lt;/i&gt; of a car", "again from k images"):  # fmt: skip
        assert words in page
    assert len({value for _, a in Elements(page).tags if (value := a.get("id"))}) == sum(
        "id" in a for _, a in Elements(page).tags
    )
    assert "plane-cell.png" in done.tables and "out-audit-relearning-relearned.svg" in done.tables
    with (tmp_path / "tables" / "plane-cell.csv").open(newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["untouched", "out", "peer"]
    with (tmp_path / "tables" / "out-audit-names.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["edited"], row["random edit"]) == ("0.21", "0.99")


def broken(folder: Path, **changes: Any) -> Path:
    """A folder whose report is not as it should be."""
    report = edited_folder(folder)
    (folder / "report.json").write_text(json.dumps({**report, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"figures": {}}, "'before' is missing|'after' is missing"),
        ({"forgotten": [[True]]}, "not of one shape"),
        ({"sentence": {"a": 1}}, "expected text"),
        ({"spectrum": [float("nan")]}, "NaN, which is no number"),
        ({"spectrum": ["<b>"]}, "expected a number"),
        ({"table": 3}, "."),
    ],
)
def test_a_damaged_report_is_refused_in_a_line(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says) as error:
        write_page([broken(tmp_path / "out", **changes)], tmp_path / "page.html")
    assert "\n" not in str(error.value) and "out" in str(error.value)
    assert not (tmp_path / "page.html").exists()


def test_what_is_no_run_and_what_is_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for run in ("empty", "absent"):
        with pytest.raises(ValueError, match="is no run: it must be a folder of nsu erase"):
            write_page([tmp_path / run], tmp_path / "page.html")
    with pytest.raises(ValueError, match="at least one folder"):
        write_page([], tmp_path / "page.html")
    edited_folder(tmp_path / "out")
    (tmp_path / "page.html").write_text("dear")
    with pytest.raises(OutputExists):
        write_page([tmp_path / "out"], tmp_path / "page.html")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no folder of a report's tables"):
        write_page([tmp_path / "out"], tmp_path / "b.html", tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(ValueError, match="is no page of a report, so it is not replaced"):
        write_page([tmp_path / "out"], tmp_path / "page.html", overwrite=True)
    assert (tmp_path / "page.html").read_text() == "dear"
    for _ in range(2):  # the control: an older page is
        write_page([tmp_path / "out"], tmp_path / "b.html", overwrite=True)
    assert (tmp_path / "b.html").read_text().startswith("<!doctype html>")


def test_every_letter_on_a_heat_map_can_be_read() -> None:
    for theme in ("light", "dark"):
        shades = re.findall(r"background:(#\w+);color:(#\w+)", rules(theme))
        assert len(shades) == 21 + 2 * 11
        assert min(contrast(paper, ink) for paper, ink in shades) >= 4.5
    assert contrast("#FFFFFF", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") < 4.5  # control


def test_a_plot_within_a_page_is_shapes_and_letters_alone(tmp_path: Path) -> None:
    svg = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
    <script>1</script><foreignObject/><g id="a" onclick="1" style="fill: #000000">
    <use xlink:href="#a"/><path clip-path="url(#a)" style="stroke: #e69f00; fill: #0072B2"/>
    </g></svg>"""
    drawing = Drawing("a", "A", "says", lambda path: None if path.write_text(svg) else None)
    found = inline(drawing, tmp_path, "k")
    for word in ("script", "foreign", "onclick", "#000000"):
        assert word in svg and word not in found
    for word in (
        'id="k-a"',
        '"#k-a"',
        "url(#k-a)",
        "var(--ink)",
        "var(--blue)",
        "#e69f00",
        'aria-label="A. says"',
    ):
        assert word in found


def test_pictures_are_decoded_and_written_anew(tmp_path: Path) -> None:
    cell = {"class": "<b>car", "domain": "photo", "pictures": 4, "reached": 3, "cosine": 0.25}
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "prototypes.json").write_text(json.dumps({"cells": [cell]}))
    note = PngInfo()
    note.add_text("comment", "<script>")
    picture = Image.effect_noise((1500, 40), 60).convert("RGB")
    picture.save(folder / "sheet.png", pnginfo=note)
    write_page([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    (uri,) = [a["src"] for tag, a in Elements(page).tags if tag == "img"]
    found = base64.b64decode(str(uri).removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(found)) as image:
        assert image.size == (1400, 37) and "comment" not in image.info
    assert b"<script>" in (folder / "sheet.png").read_bytes() and b"<script>" not in found
    assert "&lt;b&gt;car" in page and '<data value="0.25">0.250</data>' in page
    picture.save(folder / "sheet.png", "JPEG")
    with pytest.raises(ValueError, match="is no PNG picture"):
        write_page([folder], tmp_path / "b.html")


def test_numbers_are_checked() -> None:
    assert number(3) == Number(3, "3") and number(None).text == "-"
    assert number(0.12345).text == "0.123" and number(-0.04, "cost").text == "0.0"
    for wrong in ("1", True, float("inf")):
        with pytest.raises((TypeError, ValueError), match="expected a"):
            number(wrong)
