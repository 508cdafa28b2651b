"""A history is what recipe.yaml holds: it reads itself back, and says what was forgotten."""

from __future__ import annotations

import pytest
import torch

from nullspace_unlearn.history import History
from nullspace_unlearn.strict import plain_yaml, yaml_text

CLASSES, DOMAINS = ("car", "Dog", "tree"), ("photo", "sketch")


def asked(*classes: str, domains: tuple[str, ...] = (), **more: object) -> dict[str, object]:
    return {"request": {"classes": list(classes), "domains": list(domains), **more}}


def history(*edits: dict[str, object]) -> History:
    return History("nsu-mini", None, "0" * 64, edits)


def test_each_request_joins_those_before_it():
    some = history(asked("dog"), {"method": "no request"}).then(asked("car", domains=("sketch",)))
    mask = [[False, True], [True, True], [False, False]]
    assert some.forgotten(CLASSES, DOMAINS).tolist() == mask
    assert history().forgotten(CLASSES, DOMAINS).sum() == 0  # control
    assert (some.names, some.domains) == (("dog",), ())
    some = some.then(asked(domains=("sketch",))).then(asked("cat", aliases={"cat": ["tree"]}))
    mask = [[False, True], [True, True], [True, True]]
    assert some.forgotten(CLASSES, DOMAINS).tolist() == mask
    assert (some.names, some.domains) == (("dog", "cat", "tree"), ("sketch",))
    assert [one.paradigm for one in some.requests] == ["global", "cell", "domain", "global"]


def test_a_domain_may_go_by_its_word_and_may_be_absent():
    some = history({**asked("car", domains=("art",)), "domains": {"art": "painting"}})
    assert some.forgotten(["car"], ["painting", "photo"]).tolist() == [[True, False]]
    assert some.forgotten(["car"], ["art"]).tolist() == [[True]]
    assert some.forgotten(["car"], ["everywhere"]).tolist() == [[False]]
    assert some.forgotten([], []).shape == torch.Size([0, 0])


def test_composed_edits_count_each():
    some = history({"composed": [asked("car"), {"composed": [asked("tree")]}]})
    assert some.names == ("car", "tree")


def test_it_reads_itself_back(tmp_path):
    some = history(asked("dog", keep=["cat"]), {"method": "trained", "numbers": {"lr": 0.1}})
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml_text(some.to_json()))
    assert History.from_json(plain_yaml(file)) == some


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "edits must be a list"),
        ({"edits": ["car"]}, "edits must be a list of mappings"),
        ({"edits": [], "model": 3}, "model must be text"),
        ({"edits": [{"request": "car"}]}, "request 'car' is malformed"),
        ({"edits": [{"request": {"classes": "car"}}]}, "request .* is malformed: it takes lists"),
        ({"edits": [{"request": {"classes": ["car"], "more": []}}]}, "it takes lists under"),
        ({"edits": [{"request": {}}]}, "nothing to forget"),
        ({"edits": [{"composed": [{"request": {"classes": ["a", "a"]}}]}]}, "named twice"),
    ],
)
def test_what_is_no_history_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        History.from_json(said)


def test_yaml_that_could_harm_is_refused(tmp_path):
    """A few bytes of aliases make gigabytes; a tag makes objects."""
    file = tmp_path / "bad.yaml"
    for text, message in (
        ("a: &a [x]\nb: [*a, *a]", "alias 'a' is refused"),
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("[" * 10000, "nested too deep|cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            plain_yaml(file)
    shared = ["x"]
    file.write_text(yaml_text({"a": shared, "b": shared}))
    assert plain_yaml(file) == {"a": ["x"], "b": ["x"]}  # control, and none is written
    with pytest.raises(ValueError, match="no plain value"):
        yaml_text({"a": torch.ones(1)})
