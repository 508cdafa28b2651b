"""`nsu train`: what it learns from, what it writes, how it ends."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import yaml
from safetensors.numpy import load_file
from shell import Result, nsu, tree
from test_cli_bad_input import one_line, refused

from nullspace_unlearn import clip as clips
from nullspace_unlearn import unlearn
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.train import METHODS, loop
from nullspace_unlearn.trained import listed

WEIGHTS = "open_clip_model.safetensors"
CLASSES, DOMAINS = ("car", "dog", "tree"), ("photo", "sketch")
DOMAIN = ("--all-classes", "--domain", "sketch")
SMALL = ("--shots", 1, "--validation", 1, "--epochs", 1)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures in each of 3 classes x 2 domains."""
    root = tmp_path_factory.mktemp("images")
    mini.write_images(root, CLASSES, DOMAINS, range(7100, 7104))
    return root


@pytest.fixture
def train(images: Path) -> Callable[..., Result]:
    def run(method: str, *given: object, output: object = "out", small: tuple = SMALL) -> Result:
        return nsu("train", method, "--data", images, *small, "--output", output, *given)

    return run


def changed(folder: Path) -> list[str]:
    before, after = (load_file(f / WEIGHTS) for f in (mini.MODEL_FOLDER, folder))
    assert before.keys() == after.keys()
    return [key for key in before if not np.array_equal(before[key], after[key])]


def test_help_lists_every_method():
    assert [(name, method.paper) for name, method in METHODS.items()] == [
        (name, one.paper) for name, one in listed().items()
    ]
    said = nsu("train", "--help")
    assert said.code == 0 and said.err == ""
    for name, one in listed().items():
        assert re.search(rf"{name} +{re.escape(one.paper)}", said.out)


def test_a_trained_folder_explains_itself(train, tmp_path):
    result = train("memorise_forget", *DOMAIN, "--lr", "1e-3", "--set", "forget=3", "--json")
    assert (result.code, result.err) == (0, "")
    said = result.json
    assert said["numbers"] == {"epochs": 1, "lr": 1e-3, "batch_size": 32, "forget": 3.0,
                               "towers": "visual"}  # fmt: skip
    assert (said["method"], said["paper"]) == ("memorise_forget", METHODS["memorise_forget"].paper)
    assert said["images"] == {"shots": 1, "train": 6, "validation": 6, "test": 12, "forgotten": 6,
                              "kept": 6, "others": 6, "left_out_of_test": 0}  # fmt: skip
    assert [one["epoch"] for one in said["training"]] == [1]
    folder = tmp_path / "out"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]  # and no out.run
    assert sorted(said["parameter"]) == sorted(changed(folder)) and len(said["parameter"]) > 50
    report = json.loads((folder / "report.json").read_text())
    # What differs when the same is done again is told, and not written into the folder.
    times = {"output", "seconds", "peak_bytes"}
    lasting = {key: value for key, value in said.items() if key not in times}
    lasting["training"] = [
        {key: value for key, value in epoch.items() if key not in times}
        for epoch in said["training"]
    ]
    assert report == lasting and times <= set(said)
    for model in ("before", "after"):
        mem, gone = said["figures"][model]["kept"], 1 - said["figures"][model]["forgotten"]
        h = 2 * mem * gone / (mem + gone) if mem * gone else 0
        assert said["scores"][model] == pytest.approx({"mem": mem, "for": gone, "h": h})
    (edit,) = yaml.safe_load((folder / "recipe.yaml").read_text())["edits"]
    assert edit["parameter"] == said["parameter"] and edit["side"] == "visual"
    assert edit["numbers"] == said["numbers"] and edit["trained"] is True
    assert len(edit["shots"]["files"]) == 6
    card = (folder / "README.md").read_text()
    assert "trained with memorise_forget (arXiv 2510.08132, baseline)" in card
    assert f"{len(said['parameter'])} tensors (visual side)" in card
    assert "closed form" not in card and "No training" not in card.replace("\n", " ")
    assert card.count("visual.transformer") < 5 and edit["shots"]["files"][-1] in card
    assert str(tmp_path) not in card


def test_an_edit_trained_on_says_both(tmp_path):
    clip = clips.load("nsu-mini", device="cpu")
    edited = unlearn.erase(clip, Forget(["car"])).fold(clip)
    keys = ["visual.proj", "visual.class_embedding", "text_projection"]
    new = {key: edited.model.get_parameter(key) + 0.1 for key in keys}
    said = {"method": "mine", "trained": True, "paper": "none"}
    folder = edited.with_parameters(new, said).save(tmp_path / "both")
    first, second = yaml.safe_load((folder / "recipe.yaml").read_text())["edits"]
    assert (first["method"], first["parameter"], first["side"]) == (
        "hull",
        ["visual.proj"],
        "visual",
    )
    assert second == {"side": "both", "parameter": keys, **said}
    card = (folder / "README.md").read_text()
    assert "edited in closed form and trained with mine (none)" in card
    assert "- `visual.proj` (visual side): hull\n- `" in card and "(both sides): mine\n" in card


def test_the_card_of_an_edit_is_as_it_was(made):
    card = (made("--class", "car") / "README.md").read_text()
    assert "edited in closed form; no training was done." in card
    assert "- `visual.proj` (visual side): hull" in card


def test_the_report_for_a_reader(train):
    result = train("ascent", "--class", "car", "--domain", "sketch")
    assert result.code == 0
    first, second, *_ = result.out.splitlines()
    assert re.fullmatch(
        r"Forgot car in sketch with ascent \(arXiv 1911.04933\): \d+ tensors trained in [\d.]+ s, "
        r"at most [\d.]+ GiB of memory\.",
        first,
    )
    assert second == (
        "It was given 6 labelled images (1 a cell) to train on and 6 to choose the epoch by; "
        "reported on 12 others."
    )
    rows = [line for line in result.out.splitlines() if "*" in line]
    assert [row.split()[0] for row in rows] == ["car"]
    assert re.search(r"^Mem, For, H: [\d.]+, [\d.]+, [\d.]+ -> [\d.]+", result.out, re.MULTILINE)
    assert result.out.splitlines()[-1] == "Wrote out (load it as local-dir:out)"
    silent = train("ascent", "--class", "car", "--quiet", output="silent")
    assert (silent.code, silent.out, silent.err) == (0, "", "")


@pytest.mark.slow
def test_stock_open_clip_gets_the_same_accuracy(train, images, tmp_path):
    given = ("--lr", "3e-4", "--set", "towers=both", "--quiet")
    assert train("memorise_forget", *DOMAIN, *given).code == 0
    assert any(not key.startswith("visual.") for key in changed(tmp_path / "out"))
    folders = ["out", mini.MODEL_FOLDER]
    said = [nsu("evaluate", folder, "--data", images, "--json").json for folder in folders]
    assert said[0]["accuracy"] != said[1]["accuracy"]  # control
    script = Path(__file__).with_name("stock_accuracy.py")
    inputs = [json.dumps(said[0][key]) for key in ("templates", "classes")]
    command = [sys.executable, script, images, *inputs, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [one["accuracy"] for one in said]


def test_what_is_reported_is_what_evaluate_finds_on_images_never_seen(train, images, tmp_path):
    given = (*DOMAIN, "--lr", "1e-3", "--seed", 6, "--json")
    said = train("memorise_forget", *given).json
    parts = read_folder(images).split(1, 1, 6)
    rest = [picture.name for picture in parts.rest.pictures]
    (tmp_path / "rest.txt").write_text("\n".join(rest))
    found = nsu("evaluate", "out", "--data", images, "--list", "rest.txt", "--json").json
    assert said["after"]["accuracy"] == found["accuracy"] and found["count"] == [[2, 2]] * 3
    # A test set that holds all the images, by other names, is reported on less what was seen.
    (tmp_path / "link").symlink_to(images)
    text = train("memorise_forget", *given[:-1], "--test", "link", output="other").out
    assert "on 12 others (12 were left out: they had been drawn)." in text
    other = json.loads((tmp_path / "other" / "report.json").read_text())
    assert other["images"]["left_out_of_test"] == 12 and other["after"] == said["after"]
    listed = train(
        "memorise_forget", *given, "--test", "link", "--test-list", "rest.txt", output="listed"
    ).json
    assert listed["images"]["left_out_of_test"] == 0 and listed["after"] == said["after"]


def test_the_bundled_model_learns_from_the_bundled_pictures(tmp_path):
    said = nsu("train", "ascent", "--class", "car", *SMALL, "--seed", 5, "--json").json
    assert (
        said["output"] == "nsu-mini-without-car-by-ascent" and (tmp_path / said["output"]).is_dir()
    )
    assert said["before"]["count"] == [[2] * 4] * 12 and said["images"]["train"] == 48
    (edit,) = yaml.safe_load((tmp_path / said["output"] / "recipe.yaml").read_text())["edits"]
    seeds = [int(n) for n in re.findall(r"\d+", edit["shots"]["images"])]
    measured = [int(n) for n in re.findall(r"\d+", said["data"])]
    assert seeds[1] < measured[0] or measured[1] < seeds[0]


def interrupt(monkeypatch, when: int) -> None:
    """Ctrl-C while the images of that epoch are judged."""
    judged, epoch = loop.validate, itertools.count(1)

    def fail(*given: Any) -> Any:
        if next(epoch) == when:
            raise KeyboardInterrupt
        return judged(*given)

    monkeypatch.setattr(loop, "validate", fail)


TWO = ("--shots", 1, "--validation", 1, "--epochs", 2, "--lr", "3e-4")


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(train, tmp_path, monkeypatch):
    given = ("memorise_forget", *DOMAIN, "--json")
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        stopped = train(*given, small=TWO)
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.strip() == "nsu: interrupted; run the same command again to go on"
    assert [p.name for p in tmp_path.iterdir()] == ["out.run"]
    judged, original = [], loop.validate
    monkeypatch.setattr(loop, "validate", lambda *given: judged.append(1) or original(*given))
    resumed = train(*given, small=TWO)
    assert resumed.code == 0 and len(judged) == 1 and not (tmp_path / "out.run").exists()
    whole = train(*given, small=TWO, output="whole")
    assert len(judged) == 3
    first, second = (tmp_path / name / WEIGHTS for name in ("out", "whole"))
    assert first.read_bytes() == second.read_bytes()
    assert [len(one.json["training"]) for one in (resumed, whole)] == [2, 2]
    other = train(*given, "--seed", 1, output="seed")  # control
    assert other.code == 0 and (tmp_path / "seed" / WEIGHTS).read_bytes() != first.read_bytes()


def test_another_runs_folder_is_refused_and_replaced_on_request(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        assert train("memorise_forget", *DOMAIN, small=TWO).code == 130
    refuse = train("ascent", *DOMAIN, "--json", small=TWO)
    one_line(refuse, "'out.run' holds another run .method: memorise_forget, now ascent; ")
    assert [p.name for p in tmp_path.iterdir()] == ["out.run"]
    assert train("ascent", *DOMAIN, "--overwrite", "--quiet", small=TWO).code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_interruption_before_anything_is_kept_leaves_nothing(train, tmp_path, monkeypatch):
    interrupt(monkeypatch, 1)
    stopped = train("ascent", *DOMAIN, "--quiet")
    assert stopped.code == 130 and stopped.err.strip() == "nsu: interrupted"
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_never_a_run(train, tmp_path):
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "mine").touch()
    before = tree(tmp_path)
    one_line(train("ascent", *DOMAIN, "--overwrite"), "'out.run' is where this run would keep")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_of_which_nothing_is_good_writes_nothing(epochs, train, tmp_path):
    small = (*SMALL[:-1], epochs)
    result = train("memorise_forget", *DOMAIN, "--lr", "1e20", "--json", small=small)
    one_line(result, "lower the learning rate", code=1)
    assert not list(tmp_path.iterdir())
    assert train("memorise_forget", *DOMAIN, "--quiet", small=small).code == 0  # control


def test_a_run_that_diverges_later_writes_the_last_good_model(train, tmp_path, monkeypatch):
    step, steps = loop._Loop._step, itertools.count(1)

    def fail(*given: Any) -> Any:
        if next(steps) == 2:
            raise loop._Diverged("a loss is no longer finite (mem nan) in epoch 2")
        return step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_step", fail)
        result = train("memorise_forget", *DOMAIN, "--json", small=TWO)
    assert result.code == 1 and result.json["diverged"] and len(result.json["training"]) == 1
    assert result.err == (
        "nsu: training stopped early: a loss is no longer finite (mem nan) in epoch 2; wrote the "
        "model of the last good epoch\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and changed(tmp_path / "out")
    assert nsu("evaluate", "out", "--data", "nsu-mini", "--quiet").code == 0


def test_pictures_and_undo(train, tmp_path):
    pytest.importorskip("matplotlib")
    done = train("ascent", "--class", "car", "--undo", "undo", "--heatmap", "grid.png", "--curve",
                 "curve.svg", "--quiet")  # fmt: skip
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")
    assert nsu("revert", "out", "undo", "--output", "back", "--quiet").code == 0
    back, original = tmp_path / "back" / WEIGHTS, mini.MODEL_FOLDER / WEIGHTS
    assert back.read_bytes() == original.read_bytes()
    assert changed(tmp_path / "out")  # control


def test_prompts_are_written_as_an_adapter(train, images, tmp_path):
    folder = shutil.copytree(mini.MODEL_FOLDER, tmp_path / "below" / "model")
    request = (*DOMAIN, "--model", folder, "--json")
    said = train("adu", *request, "--lr", "0.1").json
    assert said["parameter"] == [] and (tmp_path / "out" / "adapter.safetensors").is_file()
    assert not (tmp_path / "out" / WEIGHTS).exists()
    rest = read_folder(images).split(1, 1, 0).rest.pictures
    (tmp_path / "rest.txt").write_text("\n".join(picture.name for picture in rest))
    measure = ("evaluate", "out", "--data", images, "--list", "rest.txt", "--json")
    one_line(nsu(*measure), "belongs to the model folder 'model'")
    found = nsu(*measure, "--base", folder).json
    assert found["accuracy"] == said["after"]["accuracy"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["training"]
    text = train("adu", *request[:-1], output="text").out
    assert "visual prompts trained" in text and "nsu.load('text')" in text
    before = tree(tmp_path)
    one_line(train("adu", *request, "--undo", "undo", output="new"), "nothing to --undo")
    rn = pico.write("RN50", tmp_path / "rn")
    one_line(train("adu", *DOMAIN, "--model", rn, output="new"), "prompts")
    shutil.rmtree(rn)
    assert tree(tmp_path) == before


def test_the_methods_with_adapters_are_known():
    """Those whose source gives a model its prompts, read as text."""
    folder = Path(loop.__file__).parent
    found = set()
    for path in folder.glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Name)}  # fmt: skip
        if "attach" in names:
            found.add(path.stem)
    assert found == {name for name, one in listed().items() if one.adapter}


ROWS: dict[str, tuple[tuple[object, ...], str]] = {
    "unknown method": (("acsent", "--class", "car"), "unknown method 'acsent' .*mean 'ascent'"),
    "no method": ((), "Missing argument 'METHOD'"),
    "unknown number": (
        ("ascent", "--class", "car", "--set", "tower=text"),
        "ascent has no number 'tower' .*mean 'towers'",
    ),
    "malformed number": (("ascent", "--class", "car", "--set", "towers"), "--set takes KEY=VALUE"),
    "number out of range": (("ascent", "--class", "car", "--lr", "-1"), "lr of ascent must be"),
    "number in words": (("ascent", "--class", "car", "--epochs", "many"), "epochs of ascent must"),
    "no epochs": (("ascent", "--class", "car", "--epochs", "0"), "at least 1 epoch"),
    "number twice": (
        ("ascent", "--class", "car", "--lr", "1", "--set", "lr=2"),
        "--set lr is given as an option too",
    ),
    "nothing asked": (("ascent",), "nothing to forget"),
    "unknown class": (("ascent", "--class", "zebra"), "unknown class 'zebra'; known: car, dog"),
    "unknown domain": (
        ("ascent", "--all-classes", "--domain", "cartoon"),
        "unknown domain 'cartoon'; known: photo, sketch",
    ),
    "every domain": (
        ("ascent", "--all-classes", "--domain", "photo", "--domain", "sketch"),
        "every known domain is to be forgotten",
    ),
    "no shots": (("ascent", "--class", "car", "--shots", "0"), "0 is not in the range"),
    "too many shots": (
        ("ascent", "--class", "car", "--shots", "4"),
        "domain 'photo' has 4 images of 'car' .*4 shots and 1 for validation are asked for",
    ),
    "nothing left": (
        ("ascent", "--class", "car", "--shots", "3"),
        "no image is left to report on: give --test ROOT",
    ),
    "patience without validation": (
        ("ascent", "--class", "car", "--patience", "2", "--validation", "0"),
        "--patience waits for a better score",
    ),
    "precision": (("ascent", "--class", "car", "--precision", "fp16"), "'fp16' is not one of"),
    "unknown model": (("ascent", "--class", "car", "--model", "nsu-maxi"), "unknown model"),
    "existing output": (("ascent", "--class", "car", "--output", "file"), "output 'file' exists"),
    "existing curve": (("ascent", "--class", "car", "--curve", "file"), "output 'file' exists"),
    "curve of no format": (("ascent", "--class", "car", "--curve", "a.gif"), "allowed: .png"),
    "undo inside": (
        ("ascent", "--class", "car", "--output", "a", "--undo", "a/b"),
        "inside the output 'a'",
    ),
    "no model folder": (
        ("ascent", "--class", "car", "--output", "features", "--overwrite"),
        "is not a model folder",
    ),
    "features to learn from": (
        ("ascent", "--class", "car", "--data", "features/f.npz"),
        "--data must be images",
    ),
    "features to report on": (
        ("ascent", "--class", "car", "--test", "features/f.npz"),
        "--test must be images",
    ),
    "test images of other domains": (
        ("ascent", "--class", "car", "--domain", "sketch", "--test", "photos"),
        "unknown domain 'sketch'; known: photo",
    ),
    "test images of other classes": (
        ("ascent", "--class", "car", "--test", "pair"),
        "must be of the same classes as those to train on; 'bus', 'tree' are in one alone",
    ),
    "listing without test": (
        ("ascent", "--class", "car", "--test-list", "file"),
        "--test-list names images of a folder: give --test ROOT",
    ),
    "classes that differ": (
        ("ascent", "--class", "car", "--data", "uneven"),
        "the classes differ between domains: there is no image of 'dog' in 'cartoon'",
    ),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """What the rows refer to."""
    (tmp_path / "file").touch()
    (tmp_path / "features").mkdir()
    rows = {"image_features": np.eye(4, 64, dtype=np.float32), "labels": np.arange(4)}
    np.savez(tmp_path / "features" / "f.npz", **rows)
    mini.write_images(tmp_path / "uneven", ["car", "dog"], ["photo"], [1, 2])
    mini.write_images(tmp_path / "uneven", ["car"], ["cartoon"], [1, 2])
    mini.write_images(tmp_path / "photos", CLASSES, ["photo"], [1])
    mini.write_images(tmp_path / "pair", ["car", "dog", "bus"], ["photo", "sketch"], [1])
    return tmp_path


@pytest.mark.parametrize("row", ROWS)
def test_bad_input(row, table, images):
    given, message = ROWS[row]
    after = () if "--data" in given else ("--data", images)
    small = SMALL[2:] if "--shots" in given else SMALL
    if "--epochs" in given:
        small = SMALL[:4]
    refused(table, ("train", *given[:1], *small, *after, *given[1:]), message)


def test_data_must_be_given(tmp_path):
    given = ("train", "ascent", "--model", mini.MODEL_FOLDER, "--class", "car", *SMALL)
    refused(tmp_path, given, "give --data ROOT")
    assert clips.load("nsu-mini", device="cpu").changes == ()  # nothing here touched the model


def test_a_method_says_which_requests_it_takes(train, tmp_path):
    narrow = {name for name, method in METHODS.items() if len(method.paradigms) < 3}
    assert narrow == {"space_adaptation"}
    one_line(
        train("space_adaptation", *DOMAIN),
        "method 'space_adaptation' does not forget whole domains, only a class everywhere; those "
        "that do: adu, ",
    )
    assert not list(tmp_path.iterdir())
    lines = train("space_adaptation", "--class", "car").out.splitlines()  # control
    assert " 1 tensor trained in " in lines[0]
    assert lines[1] == "It looked at no image; reported on 12 others."
