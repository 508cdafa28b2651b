"""`nsu bench` and `nsu recipes`, as a user walks them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shell import nsu

from nullspace_unlearn.bench import report, runner

RECIPE = """\
name: mine
about: A test.
model: {name: nsu-mini}
data: {kind: bundled, each: 2}
requests:
  - {kind: cell, classes: [car, dog], domains: [sketch]}
methods:
  - {name: gated}
  - {name: nullspace}
metrics: [forgotten, kept, h4]
"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest, and have tests of their own."""
    monkeypatch.setattr(report, "_can_draw", lambda: False)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def results(folder: str = "bench-mine") -> dict[str, int]:
    """The trials that are there, with the time of their last change."""
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).glob("trials/*/*.json")}


def line(result: Any) -> str:
    """The one line that bad input is answered with."""
    assert result.code == 2 and result.out == "", result
    assert result.err.count("\n") == 1 and result.err.startswith("nsu: "), result.err
    return str(result.err)


def test_a_recipe_is_run_tabled_and_found_again(mine: Path) -> None:
    first = nsu("bench", mine)
    assert first.code == 0
    assert "| gated |" in first.out and "| untouched |" in first.out and "| ideal |" in first.out
    assert "4 trials, 0 of them found; wrote bench-mine/table.md" in first.out
    there = results()
    assert len(there) == 4
    again = nsu("bench", mine, "--json")
    assert again.code == 0 and results() == there
    gated = again.json["groups"]["cell"]["all"]["gated"]
    assert gated["forgotten"]["n"] == 2 and again.json["failed"] == []
    assert again.json == {**json.loads(Path("bench-mine/table.json").read_text()), "failed": [],
                          "output": "bench-mine"}  # fmt: skip
    # As nsu erase measures the same request.
    erased = nsu("erase", "--class", "car", "--domain", "sketch", "--method", "gated", "--output",
                 "out", "--json")  # fmt: skip
    by = again.json["groups"]["cell"]["by"]["car"]
    assert by["gated"]["h4"]["mean"] == erased.json["figures"]["after"]["h4"]
    assert by["untouched"]["h4"]["mean"] == erased.json["figures"]["before"]["h4"]
    notes = Path("bench-mine/notes.txt")
    notes.touch()
    assert "holds 'notes.txt', which is not of a" in line(nsu("bench", mine, "--overwrite"))
    assert len(results()) == 4 and notes.exists()
    notes.unlink()
    begun = nsu("bench", mine, "--overwrite", "--quiet", "--only", "gated")
    assert begun.code == 0 and begun.out == "" and len(results()) == 2
    rest = nsu("bench", mine, "--only", "nullspace")
    assert "| gated |" in rest.out and "| nullspace |" in rest.out and len(results()) == 4


def test_a_run_cut_short_goes_on(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = runner.run_method, []

    def cut(*given: Any) -> Any:
        calls.append(given[0].label)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(runner, "run_method", cut)
    stopped = nsu("bench", mine, "--quiet")
    assert stopped.code == 130 and stopped.out == ""
    assert stopped.err == "nsu: interrupted; run the same command again to go on\n"
    there = results()
    assert len(there) == 2
    done = nsu("bench", mine)
    assert done.code == 0 and "4 trials, 2 of them found" in done.out
    assert there.items() <= results().items() and len(calls) == 5


def test_cells_that_fail_are_named_and_the_exit_says_so(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = runner.run_method

    def failing(method: Any, *rest: Any) -> Any:
        if method.name == "gated":
            raise RuntimeError("no such\nluck")
        return original(method, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "run_method", failing)
        failed = nsu("bench", mine, "--quiet")
        everything = nsu("bench", mine, "--only", "gated", "--output", "all", "--quiet")
    assert failed.code == 1 and failed.out == ""
    assert "gated, car in sketch, seed 0 failed: RuntimeError: no such luck" in failed.err
    assert "2 of 4 trials failed" in failed.err
    assert "**2 trials failed" in Path("bench-mine/table.md").read_text()
    assert everything.code == 1 and "all 2 trials failed" in everything.err
    assert nsu("bench", mine, "--quiet").code == 0  # control


def test_a_dry_run_lists_and_writes_nothing(mine: Path) -> None:
    listed = nsu("bench", mine, "--dry-run")
    assert listed.code == 0 and listed.out.splitlines() == [
        "gated | car in sketch | seed 0",
        "gated | dog in sketch | seed 0",
        "nullspace | car in sketch | seed 0",
        "nullspace | dog in sketch | seed 0",
        "4 trials; nothing was run",
    ]
    assert len(nsu("bench", mine, "--dry-run", "--json").json["trials"]) == 4
    assert [path.name for path in Path().iterdir()] == ["mine.yaml"]


def test_another_model_can_be_named(mine: Path) -> None:
    from nullspace_unlearn.data import mini

    assert nsu("bench", mine, "--model", mini.MODEL_FOLDER, "--only", "gated", "--quiet").code == 0
    assert "--pretrained goes with --model" in line(nsu("bench", mine, "--pretrained", "x"))
    assert "measures a feature file" in line(nsu("bench", "features", "--model", "nsu-mini"))
    mine.write_text(RECIPE.replace("nsu-mini", "hf-hub:no/such"))
    assert "pass --download to fetch it, or name --model" in line(nsu("bench", mine, "--quiet"))


def test_bad_input_is_answered_in_one_line(mine: Path) -> None:
    assert "did you mean 'pacs'?" in line(nsu("bench", "pacz"))
    said = line(nsu("bench", "pacs", "--data", "."))
    assert "put them at 'data/pacs'" in said and "PACS (Li et al. 2017)" in said
    assert "--only names 'gate', which is no row" in line(nsu("bench", mine, "--only", "gate"))
    Path("other").mkdir()
    Path("other/mine.txt").touch()
    assert "is no benchmark's" in line(nsu("bench", mine, "--output", "other", "--overwrite"))
    mine.write_text(RECIPE.replace("classes", "clases"))
    assert "unknown key 'clases'; did you mean 'classes'?" in line(nsu("bench", mine))
    mine.write_text(RECIPE.replace("dog", "cow"))
    assert "the data have no class 'cow'" in line(nsu("bench", mine))
    assert sorted(path.name for path in Path().iterdir()) == ["mine.yaml", "other"]


def test_recipes_are_listed_with_the_data_they_need() -> None:
    listed = {one["name"]: one for one in nsu("recipes", "ls", "--json").json["recipes"]}
    assert listed["bundled-quick"]["missing"] is None
    assert listed["kravets"]["missing"] == "kravets/stanford-dogs"
    out = nsu("recipes", "ls").out
    assert "data absent: kravets/stanford-dogs" in out and listed["pacs"]["about"] in out
    Path("office-home").mkdir()
    assert "office-home" not in [
        one["name"] for one in nsu("recipes", "ls", "--json").json["recipes"] if one["missing"]
    ]


def test_a_recipe_is_copied_and_checked() -> None:
    assert nsu("recipes", "cp", "pacs").out == "Wrote pacs.yaml\n"
    assert "exists" in line(nsu("recipes", "cp", "pacs"))
    Path("sub").mkdir()
    assert nsu("recipes", "cp", "pacs", "sub").out == "Wrote sub/pacs.yaml\n"
    assert Path("sub/pacs.yaml").read_bytes() == Path("pacs.yaml").read_bytes()
    Path("bad.yaml").write_text(RECIPE.replace("gated", "gatde"))
    checked = nsu("recipes", "validate", "pacs.yaml", "bad.yaml", "none.yaml")
    assert checked.code == 2 and checked.out == "pacs.yaml: valid\n"
    assert "bad.yaml: methods[0]: unknown method 'gatde'; did you mean 'gated'?" in checked.err
    assert checked.err.count("\n") == 2
    assert nsu("recipes", "validate", "pacs.yaml").code == 0  # control
