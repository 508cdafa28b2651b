"""`nsu sweep`: what it writes, that it goes on where it stopped, and what bad input gets."""

from __future__ import annotations

import builtins
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from shell import nsu, tree

from nullspace_unlearn.data import mini
from nullspace_unlearn.evaluate.sweep import COLUMNS, Run
from nullspace_unlearn.features import Features, read_features

CELLS = ("sweep", "--class", "each:2", "--domain", "each", "--method", "gated")
GRID = ("--method", "nullspace", "--strength", "0.5,1", "--rank", "1,all", "--ridge", "0.1,0.3")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Features that bring their text: 8 classes, the last without images, two of one name."""
    random = np.random.default_rng(0)
    text = random.normal(size=(8, 16)).astype(np.float32)
    labels = np.arange(70) % 7
    path = tmp_path / "features.npz"
    np.savez(
        path,
        image_features=text[labels] + random.normal(size=(70, 16)).astype(np.float32),
        labels=labels,
        text_features=text,
        class_names=np.array(["cat", "dog", "crane", "crane", "bus", "car", "tree", "boat"]),
    )
    return path


def test_a_grid_on_the_bundled_model() -> None:
    pytest.importorskip("pyarrow")
    done = nsu(*CELLS, *GRID, "--output", "out", "--json")
    assert done.code == 0, done
    rows, result = rows_of(Path("out")), done.json
    assert list(rows[0]) == list(COLUMNS) == result["columns"]
    assert len(rows) == result["rows"] == 8 * (2 * 2 * 2 + 2 * 2)
    assert result["files"] == [
        "named.png",
        "pareto.png",
        "recipe.yaml",
        "results.csv",
        "results.parquet",
        "summary.json",
    ]
    assert result["files"] == sorted(file.name for file in Path("out").iterdir())
    assert len({(row["classes"], row["domains"]) for row in rows}) == 8 == result["requests"]
    assert {row["domains"] for row in rows} == set(mini.DOMAINS)
    nullspace = [row for row in rows if row["method"] == "nullspace"]
    assert {row["numbers"] for row in nullspace} == {""}
    assert {row["rank_used"] for row in rows if row["method"] == "gated"} == {"1"}
    # A class's other names, which the bundled model knows, are directions of their own.
    assert {row["rank_used"] for row in nullspace if row["rank"]} == {"1"}
    assert "2" in {row["rank_used"] for row in nullspace}
    (kind,) = result["kinds"]
    assert kind["kind"] == "cell" and len(kind["settings"]) == 12
    best = max(kind["settings"], key=lambda o: o["means"]["h4"])
    assert best["method"] == "gated" and best["means"]["h4"] > kind["untouched"]["h4"] + 0.5

    import pyarrow.parquet

    table = pyarrow.parquet.read_table("out/results.parquet").to_pylist()
    for ours, theirs in zip(table, rows, strict=True):
        for name, kind_ in COLUMNS.items():
            assert (
                ours[name] == (kind_(theirs[name]) if theirs[name] else None) or name == "domains"
            )
    recipe = yaml.safe_load(Path("out/recipe.yaml").read_text())
    assert recipe["methods"] == ["gated", "nullspace"] and recipe["ranks"] == [1, None]
    assert len(recipe["requests"]) == 8 and recipe["model"] == "nsu-mini"


def test_for_a_reader(npz: Path) -> None:
    done = nsu("sweep", "--data", npz, "--class", "each", "--method", "hull", "--output", "out")
    assert done.code == 0 and "sweeping" not in done.err  # no bar where there is no terminal
    assert "Measured 6 rows, 6 requests on 70 images" in done.out
    assert "untouched" in done.out and "hull, strength 1, rank all" in done.out
    assert "Wrote out: named.png, pareto.png" in done.out
    quiet = nsu("sweep", "--data", npz, "--class", "cat", "--method", "hull", "--output", "q",
                "--quiet")  # fmt: skip
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_no_model_is_needed_where_the_features_bring_text(
    npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullspace_unlearn.cli.options.load_model", None)
    methods = [part for name in ("hull", "nullspace", "ccup") for part in ("--method", name)]
    done = nsu("sweep", "--data", npz, "--class", "each", *methods, "--output", "out", "--json")
    assert done.code == 0, done
    rows = rows_of(Path("out"))
    # The class without images is left out, and two of one name go together.
    assert {row["classes"] for row in rows} == {"cat", "dog", "crane", "bus", "car", "tree"}
    assert {row["rank_used"] for row in rows if row["classes"] == "crane"} == {"2"}
    assert done.json["kinds"][0]["kind"] == "global" and len(rows) == 18


def test_each_draws_by_seed(npz: Path) -> None:
    def drawn(*options: str) -> list[str]:
        name = f"out{len(list(Path().iterdir()))}"
        base = ("sweep", "--data", npz, "--method", "nullspace", "--quiet", "--output", name)
        assert nsu(*base, *options).code == 0
        return [row["classes"] for row in rows_of(Path(name))]

    assert drawn("--class", "each:3") == drawn("--class", "each:3", "--seed", "0")
    several = {tuple(drawn("--class", "each:3", "--seed", str(seed))) for seed in range(4)}
    assert len(several) > 1 and all(len(set(names)) == 3 for names in several)
    assert drawn("--class", "dog", "--class", "bus") == ["dog;bus"]


def test_requests_from_a_file() -> None:
    asked = [{"classes": ["car", "dog"]}, {"domains": ["sketch"]},
             {"classes": ["cat"], "domains": ["photo", "painting"]}]  # fmt: skip
    base = ("sweep", "--method", "nullspace", "--method", "gated", "--json")
    told = []
    for name, text in (("a.yaml", yaml.safe_dump(asked)), ("a.json", json.dumps(asked))):
        Path(name).write_text(text)
        done = nsu(*base, "--requests", name, "--output", name + ".out")
        assert done.code == 0, done
        told.append(Path(name + ".out/results.csv").read_text())
    assert told[0] == told[1]
    rows = rows_of(Path("a.yaml.out"))
    kinds = [(row["kind"], row["method"]) for row in rows]
    assert kinds.count(("global", "nullspace")) == 1 and ("global", "gated") not in kinds
    assert [row["domains"] for row in rows if row["kind"] == "cell"] == ["photo;painting"] * 2


# A run cut short.


def test_it_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullspace_unlearn.evaluate.sweep._MOST", 2)
    command = (*CELLS, *GRID, "--json", "--output")
    assert nsu(*command, "whole").code == 0
    measured: list[int] = []
    original = Run._measure
    stop_at = 3

    def stopping(run: Run, chunk: Any) -> Any:
        if len(measured) == stop_at:
            raise KeyboardInterrupt
        measured.append(1)
        return original(run, chunk)

    monkeypatch.setattr(Run, "_measure", stopping)
    stopped = nsu(*command, "out")
    assert stopped.code == 130 and stopped.err.strip() == "nsu: interrupted"
    assert not Path("out").exists() and Path("out.run").is_file()

    other = nsu(*CELLS, "--json", "--output", "out")
    assert other.code == 2 and "'out.run' is of another run" in other.err

    with Path("out.run").open("a") as file:
        file.write('[[1, "torn')
    measured.clear()
    stop_at = 100
    done = nsu(*command, "out")
    assert done.code == 0 and done.json["resumed"] and not Path("out.run").exists()
    total = len(measured) + 3
    assert Path("out/results.csv").read_bytes() == Path("whole/results.csv").read_bytes()
    measured.clear()
    assert nsu(*command, "again").code == 0 and len(measured) == total  # the control


def test_a_run_without_a_chunk_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Run, "_measure", fail)
    before = tree(Path())
    done = nsu(*CELLS, "--output", "out", "--quiet")
    assert (done.code, done.err) == (1, "nsu: RuntimeError: out of luck\n")
    assert tree(Path()) == before


def test_an_output_is_replaced_only_where_asked_and_only_a_sweep(npz: Path) -> None:
    base = ("sweep", "--data", npz, "--method", "hull", "--output", "out", "--quiet")
    assert nsu(*base, "--class", "cat").code == 0
    refused = nsu(*base, "--class", "dog")
    assert refused.code == 2 and "exists; name another or pass --overwrite" in refused.err
    assert rows_of(Path("out"))[0]["classes"] == "cat"
    assert nsu(*base, "--class", "dog", "--overwrite").code == 0
    assert rows_of(Path("out"))[0]["classes"] == "dog"
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    other = nsu(*base[:-2], "mine", "--class", "dog", "--overwrite")
    assert other.code == 2 and "'mine' is no folder of a sweep" in other.err
    assert Path("mine/letter.txt").read_text() == "dear"


def test_without_pyarrow_and_matplotlib(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("pyarrow", "matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    done = nsu("sweep", "--data", npz, "--class", "cat", "--method", "hull", "--output", "out",
               "--json")  # fmt: skip
    assert done.code == 0 and done.json["files"] == ["recipe.yaml", "results.csv", "summary.json"]
    warned = [line for line in done.err.splitlines() if "warning" in line]
    assert len(warned) == 2 == done.err.count("[report]")


# Bad input.

SWEEP = ("sweep", "--method", "hull", "--output", "out")
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown method": ((*SWEEP, "--method", "gatd", "--class", "car"), "did you mean 'gated'"),
    "a method of the text side": (
        (*SWEEP, "--method", "avert", "--class", "car"),
        "'avert' cannot",
    ),
    "no method": (("sweep", "--class", "car", "--output", "out"), "--method"),
    "no output": (("sweep", "--class", "car", "--method", "hull"), "--output"),
    "strength too high": ((*SWEEP, "--class", "car", "--strength", "1,3"), "strength must lie in"),
    "strength no number": (
        (*SWEEP, "--class", "car", "--strength", "1,,2"),
        "--strength takes num",
    ),
    "rank 0": ((*SWEEP, "--class", "car", "--rank", "0"), "rank must be at least 1, got 0"),
    "rank no number": ((*SWEEP, "--class", "car", "--rank", "some"), "--rank takes numbers"),
    "ridge 0": ((*SWEEP, "--class", "car", "--ridge", "0"), "ridge above 0, got 1.0 and 0.0"),
    "unknown class": ((*SWEEP, "--class", "caar"), "unknown class 'caar' .did you mean 'car'"),
    "unknown domain": (
        ("sweep", "--method", "gated", "--output", "out", "--class", "car", "--domain", "clipart"),
        "unknown domain 'clipart'; known: photo",
    ),
    "nothing asked": (SWEEP, "nothing to forget"),
    "a method that takes none": (
        (*SWEEP, "--class", "car", "--domain", "sketch"),
        r"'hull' takes none of the requests \(cell\); allowed here: gated, nullspace",
    ),
    "each and another": (
        (*SWEEP, "--class", "each", "--class", "car"),
        "leave out the other --cla",
    ),
    "too many": ((*SWEEP, "--class", "each:13"), "N from 1 to 12, got '13'"),
    "none": ((*SWEEP, "--class", "each:0"), "N from 1 to 12, got '0'"),
    "no number": ((*SWEEP, "--class", "each:ten"), "N from 1 to 12, got 'ten'"),
    "everything": (
        (*SWEEP, *(part for name in mini.CLASSES for part in ("--class", name))),
        "forgets every class everywhere",
    ),
    "domains without classes": ((*SWEEP, "--domain", "each"), "--domain needs --class"),
    "a file and options": ((*SWEEP, "--requests", "a.yaml", "--class", "car"), "leave out --class"),
    "no such file": ((*SWEEP, "--requests", "no.yaml"), "'no.yaml' cannot be read"),
    "no data": ((*SWEEP, "--class", "car", "--data", "nowhere"), "nowhere"),
    "unknown domain word": ((*SWEEP, "--class", "car", "--domain-word", "x=y"), "names 'x', which"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    arguments, message = BAD[name]
    refused(arguments, message)


def refused(arguments: tuple[object, ...], message: str) -> None:
    before = tree(Path())
    done = nsu(*arguments, "--quiet")
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("nsu: ") and len(done.err.splitlines()) == 1, done.err
    assert re.search(message, done.err), done.err
    assert tree(Path()) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a list of requests"),
        ("classes: [car]", "must be a list of requests"),
        ("- car", "request 1 of 'a.yaml' must have classes, domains or both"),
        ("- {classes: [car], strength: 2}", "and nothing else"),
        ("- classes: car", "classes of request 1 of 'a.yaml' must be a list of names"),
        ("- classes: [car]\n- classes: [1]", "classes of request 2"),
        ("- {}", "request 1 of 'a.yaml': nothing to forget"),
        ("- classes: [car, car]", "class named twice"),
        ("- classes: [car]\n- classes: [car]", "requests hold 'car' twice"),
        ("- !!python/object/apply:os.system [ls]", "cannot be read"),
        ("[", "cannot be read"),
    ],
)
def test_bad_requests(text: str, message: str) -> None:
    Path("a.yaml").write_text(text)
    refused((*SWEEP, "--requests", "a.yaml"), message)


def test_features_that_do_not_fit(npz: Path, few: Callable[..., Any]) -> None:
    with np.load(npz) as arrays:
        bare = {name: arrays[name] for name in ("image_features", "labels")}
        np.savez("bare.npz", **bare)
        np.savez("named.npz", **bare, class_names=arrays["class_names"])
    refused((*SWEEP, "--data", "bare.npz", "--class", "each"), "has no class names")
    refused(
        (*SWEEP, "--data", "named.npz", "--class", "each"), "no text features: give the --model"
    )
    refused((*SWEEP, "--data", npz, "--class", "boat"), "no images of forgotten cells")
    refused((*SWEEP, "--data", npz, "--class", "cat", "--pretrained", "x"), "goes with --model")
    refused((*SWEEP, "--data", npz, "--domain", "each", "--class", "cat"), "the data names none")
    model = ("--model", "nsu-mini")
    refused((*SWEEP, "--data", npz, "--class", "cat", *model), "are not of this model")
    import nullspace_unlearn as package

    own = few(package.load("nsu-mini"))
    own.save("own.safetensors")
    names = ("embeddings", "labels", "class_names", "domains", "domain_names")
    fields = {name: getattr(own, name) for name in names}
    Features(**fields, provenance={"made_with": {"weights": "0" * 64}}).save("other.safetensors")
    one = (*SWEEP, *model, "--class", "car", "--data")
    differs = "not of this model: weights: 000000000000, now [0-9a-f]{12}; .*; and [0-9]+ more"
    refused((*one, "other.safetensors"), differs)
    assert nsu(*one, "own.safetensors", "--quiet").code == 0  # the control
    text = torch.eye(len(own.class_names), own.embeddings.shape[1])
    Features(**fields, text=text).save("text.safetensors")
    cell = ("sweep", "--data", "text.safetensors", "--class", "car", "--domain", "sketch")
    refused(
        (*cell, "--method", "gated", "--output", "new"), "no model to make them with: give --mo"
    )
    assert read_features("text.safetensors").text is not None
