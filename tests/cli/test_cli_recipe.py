"""`nsu erase --recipe`: several requests make one edit; the output's recipe makes it again."""

from __future__ import annotations

import filecmp
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from shell import nsu

from nullspace_unlearn import Forget, load
from nullspace_unlearn.patch import Patch
from nullspace_unlearn.recipe import Entry

RECIPE = """
edits:
  - request: {classes: [tree]}
    numbers: {depth: 0.5}
    wordings: false
  - request: {classes: [car], domains: [sketch]}
    method: gated
  - request: {classes: [flower]}
    strength: 1.0
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def same(one: Path, other: Path) -> bool:
    return all(filecmp.cmp(file, other / file.name, shallow=False) for file in one.iterdir())


def test_several_requests_make_one_folder_which_makes_itself_again(here):
    said = nsu("erase", "--recipe", "recipe.yaml", "--output", "a/out", "--undo", "undo", "--json")
    assert said.code == 0, said
    edits = yaml.safe_load((here / "a" / "out" / "recipe.yaml").read_text())["edits"]
    assert [edit["method"] for edit in edits] == ["hull", "gated", "hull"]
    assert [edit["numbers"].get("depth") for edit in edits] == [0.5, None, 1.0]
    assert said.json["figures"]["after"]["forgotten"] < 0.05
    assert said.json["figures"]["before"]["forgotten"] > 0.9  # control
    proven = nsu("certify", "a/out", "--no-singly", "--json")
    assert proven.code == 0 and proven.json["uncovered"] == ["car, automobile, sedan in sketch"]
    # One folder: undo takes all of it back.
    assert nsu("revert", "a/out", "undo", "--output", "back").code == 0
    assert not (here / "back" / "recipe.yaml").exists()
    again = nsu("erase", "--recipe", "a/out/recipe.yaml", "--output", "b/out", "--quiet")
    assert again.code == 0, again
    assert same(here / "a" / "out", here / "b" / "out")
    # Its own recipe is for the weights that it was made from, and no others.
    other = nsu("erase", "--recipe", "a/out/recipe.yaml", "--model", "a/out", "--output", "c")
    assert other.code == 2 and "the recipe is for nsu-mini with weights" in other.err


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("[]", "must hold a list of requests under 'edits'"),
        ("edits: []", "there is no request in it"),
        ("edits: [{request: {classes: car}}]", r"edits\[0\].request.classes: expected a list"),
        ("edits: [{method: hull}]", r"edits\[0\]: the key 'request' is missing"),
        ("edits: [{request: {classes: [car]}, metod: hull}]", "unknown key 'metod'; did you mean"),
        ("edits: [{request: {}}]", r"edits\[0\].request: nothing to forget"),
        (
            "edits:\n- request: {classes: [car]}\n  numbers: {depth: much}",
            r"recipe.yaml, line 3, column 20: edits\[0\].numbers.depth: expected a number",
        ),
        (
            "edits:\n- request: {classes: [car]}\n- request: {classes: [dog]}\n  metod: hull",
            r"recipe.yaml, line 3, column 3: edits\[1\]: unknown key 'metod'",
        ),
        ("edits: [{request: {classes: [zebra]}}]", "request 1 of the recipe: .*'zebra'"),
        (
            "edits: [{request: {classes: [car]}}, {request: {classes: [dog], keep: [car]}}]",
            "request 2 of the recipe: 'car' was forgotten before, so it cannot be kept",
        ),
        ("edits: [{request: {classes: [car]}, trained: true}]", "it was trained or composed"),
        ("a: &a [x]\nedits: *a", "alias 'a' is refused"),
        ("weights_sha256: abc\nedits: [{request: {classes: [car]}}]", "with weights of sha256 abc"),
    ],
)
def test_what_is_no_recipe_is_one_line_and_nothing_is_written(recipe, message, here):
    (here / "recipe.yaml").write_text(recipe)
    result = nsu("erase", "--recipe", "recipe.yaml", "--output", "out")
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1, result

    assert re.search(message, result.err), result.err
    assert sorted(file.name for file in here.iterdir()) == ["recipe.yaml"]


def test_a_recipe_stands_alone(here):
    for more in (("--class", "car"), (), ("--output", "out", "--images", ".")):
        result = nsu("erase", "--recipe", "recipe.yaml", *more)
        assert result.code == 2 and "--recipe" in result.err


def test_the_patch_of_a_recipe_is_its_requests_in_one(here):
    """Oracle: the folder that the requests made one after another."""
    (here / "two.yaml").write_text(
        "edits: [{request: {classes: [tree]}}, {request: {classes: [flower]}, strength: 0.8}]"
    )
    (here / "one.yaml").write_text("edits: [{request: {classes: [tree]}}]")
    for name in ("two", "one"):
        given = ("--recipe", f"{name}.yaml", "--output", name, "--patch", f"{name}.patch")
        assert nsu("erase", *given, "--quiet").code == 0
        given = ("--model", "nsu-mini", "--output", f"{name}-again", "--quiet")
        assert nsu("apply", f"{name}.patch", *given).code == 0
    weights = {
        name: load_file(here / name / "open_clip_model.safetensors")
        for name in ("two", "two-again", "one-again")
    }
    for key, value in weights["two"].items():
        assert torch.allclose(value, weights["two-again"][key], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*(weights[n]["visual.proj"] for n in ("two", "one-again")))  # control
    assert Patch.load(here / "two.patch").title == "tree; flower"
    (told,) = yaml.safe_load((here / "two-again" / "recipe.yaml").read_text())["edits"]
    assert [one["request"]["classes"] for one in told["composed"]] == [["tree"], ["flower"]]


def test_a_patch_of_two_weights_is_refused_and_nothing_is_written(here):
    (here / "recipe.yaml").write_text(
        "edits: [{request: {classes: [tree]}}, {request: {classes: [car]}, side: text}]"
    )
    before = sorted(here.iterdir())
    result = nsu("erase", "--recipe", "recipe.yaml", "--output", "out", "--patch", "p")
    assert result.code == 2 and "request 2 of the recipe is of the text side" in result.err
    assert sorted(here.iterdir()) == before


def test_a_request_in_some_domains_has_the_default_of_nsu_erase():
    mini, entry = load("nsu-mini"), Entry(Forget(classes=["car"], domains=["sketch"]))
    assert entry.plan(mini, images=True).method == "neutral" and entry.space is None
    assert entry.plan(mini).method == "gated"  # control: prompts alone
