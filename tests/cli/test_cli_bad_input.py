"""What bad input gets: exit code 2, one line on stderr, nothing on stdout, nothing written."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from shell import ROOT, Result, nsu, nsu_process, tree

from nullspace_unlearn.cli.request import default_name
from nullspace_unlearn.clip import folder, tensors
from nullspace_unlearn.data import mini
from nullspace_unlearn.evaluate import outcome
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.spelling import printable
from nullspace_unlearn.words import check_names

WEIGHTS = "open_clip_model.safetensors"
ERASE = ("erase", "--class", "car")
CELL = (*ERASE, "--domain", "sketch")


def one_line(result: Result, message: str, code: int = 2) -> None:
    assert result.code == code, result
    assert result.out == ""
    assert result.err.startswith("nsu: ") and "Traceback" not in result.err
    assert result.err.endswith("\n") and len(result.err.splitlines()) == 1
    assert re.search(message, result.err), result.err


def refused(folder: Path, arguments: tuple[object, ...], message: str) -> None:
    before = tree(folder)
    one_line(nsu(*arguments, "--json"), message)
    assert tree(folder) == before


ROWS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown model": (
        (*ERASE, "--model", "ViT-B-23"),
        r"unknown model 'ViT-B-23'.*nearest: .*ViT-B-32",
    ),
    "misspelt bundled model": ((*ERASE, "--model", "nsu-mimi"), "nearest: nsu-mini"),
    "unknown tag": (
        (*ERASE, "--model", "ViT-B-32", "--pretrained", "laion3b"),
        "unknown tag 'laion3b' for ViT-B-32; allowed: openai",
    ),
    "missing weights": (
        (*ERASE, "--model", "ViT-B-32", "--pretrained", "no.pt"),
        "weights file 'no.pt' does not exist",
    ),
    "missing folder": ((*ERASE, "--model", "local-dir:no"), "folder 'no' does not exist"),
    "unknown device": ((*ERASE, "--device", "gpu"), "unknown device 'gpu'; allowed: auto, cpu"),
    "unknown precision": ((*ERASE, "--precision", "fp8"), "unknown precision 'fp8'; allowed: fp32"),
    "nothing asked": (("erase",), "nothing to forget: give --class"),
    "empty class": (("erase", "--class", ""), "empty class name"),
    "blank class": (("erase", "--class", "  "), "empty class name"),
    "duplicate class": ((*ERASE, "--class", "car"), "class named twice: 'car'"),
    "unknown class": (
        ("erase", "--class", "zebra"),
        "class 'zebra' is not in the class list: car, truck, bus",
    ),
    "both forgotten and kept": (
        (*ERASE, "--keep", "Car"),
        "'Car' is both forgotten and kept",
    ),
    "empty kept name": ((*ERASE, "--keep", ""), "empty kept class name"),
    "duplicate domain": ((*CELL, "--domain", "sketch"), "domain named twice"),
    "empty domain": ((*ERASE, "--domain", ""), "empty domain name"),
    "unknown domain": (
        (*ERASE, "--domain", "clipart"),
        "unknown domain 'clipart'; known: photo, sketch, painting, cartoon",
    ),
    "domain alone": (("erase", "--domain", "sketch"), "--domain needs --class, or --all-classes"),
    "all classes and a class": (
        (*CELL, "--all-classes"),
        "--all-classes forgets every class: leave out --class",
    ),
    "all classes everywhere": (("erase", "--all-classes"), "--all-classes needs --domain"),
    "every domain": (
        (*ERASE, *(a for d in mini.DOMAINS for a in ("--domain", d))),
        "every known domain is to be forgotten; to forget a class everywhere, name no domain",
    ),
    "alias of no forgotten class": (
        (*ERASE, "--alias", "dog=hound"),
        "alias given for 'dog', which is not forgotten; forgotten: car",
    ),
    "alias of which class": (
        (*ERASE, "--class", "dog", "--alias", "hound"),
        "--alias 'hound': say whose, as CLASS=hound",
    ),
    "empty alias": ((*ERASE, "--alias", "car="), "empty class name"),
    "alias that is the class": ((*ERASE, "--alias", "car"), "class named twice: 'car'"),
    "alias of nothing": (("erase", "--all-classes", "--domain", "sketch", "--alias", "x"), "whose"),
    "only what is forgotten": (
        (*ERASE, "--classes", "car"),
        "nothing is kept: the class list holds only what is forgotten",
    ),
    "not in the list": ((*ERASE, "--classes", "dog,cat"), "'car' is not in the class list: dog"),
    "duplicate in the list": ((*ERASE, "--classes", "car,dog,Dog"), "class named twice: 'dog'"),
    "empty name in the list": ((*ERASE, "--classes", "car,,dog"), "empty class name"),
    "empty list": ((*ERASE, "--classes", ""), "empty class name"),
    "missing list": ((*ERASE, "--classes", "no.txt"), "'no.txt' cannot be read"),
    "template without a class": ((*ERASE, "--template", "a photo."), "must hold {class}"),
    "template with more": ((*ERASE, "--template", "{} in {domain}"), "must hold {class}"),
    "template unclosed": ((*ERASE, "--template", "a {"), "is malformed"),
    "template that reaches": ((*ERASE, "--template", "{class.__init__}"), "must hold {class}"),
    "domain word": ((*ERASE, "--domain-word", "painting"), "takes KEY=VALUE, got 'painting'"),
    "domain word of nothing": (
        (*ERASE, "--domain-word", "clipart=drawing"),
        "--domain-word names 'clipart', which is not among the data's domains: photo",
    ),
    "domain word twice": (
        (*ERASE, "--domain-word", "photo=a", "--domain-word", "photo =b"),
        "--domain-word given twice for 'photo'",
    ),
    "unknown method": (
        (*ERASE, "--method", "magic"),
        "unknown method 'magic'; allowed: hull, avert, neutral, gated, two_sided",
    ),
    "method for another request": (
        (*CELL, "--method", "hull"),
        "method 'hull' does not forget a class in some domains on the visual side; allowed: n",
    ),
    "strength 0": ((*ERASE, "--strength", "0"), r"strength must lie in \(0, 2\], got 0"),
    "strength below 0": ((*ERASE, "--strength", "-1"), r"strength must lie in \(0, 2\]"),
    "strength NaN": ((*ERASE, "--strength", "nan"), r"strength must lie in \(0, 2\], got nan"),
    "strength 3": ((*ERASE, "--strength", "3"), r"strength must lie in \(0, 2\], got 3"),
    "depth below 0": ((*ERASE, "--depth", "-0.1"), "depth"),
    "depth above 1": (
        (*ERASE, "--depth", "1.5"),
        r"depth must lie in \[0, 1\] and ridge above 0, got 1.5",
    ),
    "depth NaN": ((*ERASE, "--depth", "nan"), "depth"),
    "strength in words": ((*ERASE, "--strength", "much"), "'much' is not a valid float"),
    "unknown side": ((*ERASE, "--side", "audio"), "'audio' is not one of 'visual', 'text'"),
    "unknown option": ((*ERASE, "--foo"), "No such option"),
    "unknown command": (("forget",), "No such command 'forget'"),
    "no workers": ((*ERASE, "--num-workers", "0"), "0 is not in the range"),
    "output below a file": ((*ERASE, "--output", "file/out"), "cannot be written"),
    "output that cannot be": ((*ERASE, "--output", "/proc/nsu/out"), r"nsu: .*/proc"),
    "undo below a file": ((*ERASE, "--undo", "file/undo"), "cannot be written"),
    "undo inside the output": (
        (*ERASE, "--output", "out", "--undo", "out/undo"),
        "inside the output 'out'",
    ),
    "existing undo": ((*ERASE, "--undo", "file"), "output 'file' exists"),
    "output is no model folder": (
        (*ERASE, "--output", "notes", "--overwrite"),
        "is not a model folder, so it is not replaced",
    ),
    "twin by width": ((*ERASE, "--classes", "car,dog,\uff44og"), "class named twice: 'dog'"),
    "twin that is forgotten": (
        (*ERASE, "--classes", "car,dog", "--keep", "\uff43ar"),
        "both forgot",
    ),
    "list that is not there": ((*ERASE, "--classes", "lists/mine"), "No such file"),
    "list that is a folder": ((*ERASE, "--classes", "notes"), "it is a folder, and no file"),
    "list without end": ((*ERASE, "--classes", "/dev/zero"), "it is a pipe or a device"),
    "no room for the name": (
        (*ERASE, "--template", "a rather long photo taken in a nice place full of people of a {}"),
        "the model reads 16 tokens, and prompt '.* car' is cut before 'car' ends",
    ),
    "output without a name": (
        (*ERASE, "--output", "empty/..", "--overwrite"),
        "no name of its own",
    ),
    "heatmap of no format": ((*ERASE, "--heatmap", "grid.gif"), r"allowed: \.png \.svg \.pdf"),
    "no data": ((*ERASE, "--data", "no"), "image folder 'no' is not a folder"),
    "empty data": ((*ERASE, "--data", "empty"), "image folder 'empty' is empty"),
    "data without images": ((*ERASE, "--data", "notes"), "image folder 'notes' holds no images"),
    "one class": ((*ERASE, "--data", "single"), "images of 1 class, 'car'; at least 2 are needed"),
    "data that is no features": ((*ERASE, "--data", "file"), "is not a feature file"),
    "domain not among the data's": (
        (*ERASE, "--data", "pair", "--domain", "cartoon"),
        "unknown domain 'cartoon'; known: photo, sketch",
    ),
    "class not among the data's": (
        ("erase", "--class", "fish", "--data", "pair"),
        "unknown class 'fish'; known: car, dog",
    ),
    "listing without data": ((*ERASE, "--list", "file"), "--list names images of a folder"),
    "listing of nothing": ((*ERASE, "--data", "pair", "--list", "file"), "names no files"),
    "missing listing": ((*ERASE, "--data", "pair", "--list", "no"), "'no' cannot be read"),
    "evaluate nothing": (("evaluate", "pair"), "give --data"),
    "evaluate an unknown model": (("evaluate", "nsu-maxi", "--data", "pair"), "unknown model"),
    "evaluate too few classes": (
        ("evaluate", "nsu-mini", "--data", "pair", "--classes", "car,cat"),
        "--classes lacks classes of the data: dog",
    ),
    "evaluate duplicate classes": (
        ("evaluate", "nsu-mini", "--data", "pair", "--classes", "car,dog,Dog"),
        "class named twice",
    ),
    "inspect an unknown class": (("inspect", "--class", "zebra"), "not in the class list"),
    "certify no folder": (("certify", "no"), "'no' is not a model folder"),
    "certify the original": (
        ("certify", str(mini.MODEL_FOLDER)),
        "does not say what was forgotten",
    ),
    "revert no folder": (("revert", "no", "file", "--output", "out"), r"nsu: .*file"),
    "revert to nowhere": (("revert", "no", "file"), "Missing option '--output'"),
    "models of nothing": (("models", "--model", "nsu-maxi"), "unknown model 'nsu-maxi'"),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """What the rows refer to."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes/photo/car").mkdir(parents=True)
    (tmp_path / "notes/photo/car/readme.txt").write_text("no image")
    mini.write_images(tmp_path / "single", ["car"], ["photo"], [1])
    mini.write_images(tmp_path / "pair", ["car", "dog"], ["photo", "sketch"], [1])
    return tmp_path


@pytest.mark.parametrize("row", ROWS)
def test_bad_input(row, table):
    refused(table, *ROWS[row])


def test_the_same_without_what_is_bad(table):
    for number, good in enumerate(
        (
            ERASE,
            (*CELL, "--method", "gated", "--prototypes", "text"),  # which draws no pictures
            (*ERASE, "--data", "pair"),
            (*ERASE, "--strength", "2"),
            (*ERASE, "--undo=u"),
        )
    ):
        result = nsu(*good, "--output", str(number), "--json")
        assert result.code == 0 and result.json and result.err == ""


def test_no_data_no_heatmap(tmp_path):
    model = ("--model", mini.MODEL_FOLDER)
    refused(tmp_path, (*ERASE, *model, "--heatmap", "a.png"), "--heatmap .* give --data")
    assert nsu(*ERASE, *model, "--output", "out", "--quiet").code == 0  # control


def broken_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return damage


def put(value: float) -> Callable[[Path], None]:
    return broken_weights(lambda state: state["visual.proj"][0, :1].fill_(value))


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def pickle_module(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(torch.nn.Linear(2, 2), folder / "open_clip_pytorch_model.bin")


DAMAGE = {
    "truncated": (cut, "is damaged"),
    "not weights": (lambda f: (f / WEIGHTS).write_bytes(b"hello" * 99), "is damaged"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "holds no weights"),
    "pickled module": (pickle_module, "pickled code"),
    "NaN": (put(float("nan")), r"holds NaN or Inf in visual\.proj"),
    "Inf": (put(float("inf")), r"holds NaN or Inf in visual\.proj"),
    "missing tensor": (broken_weights(lambda s: s.pop("visual.proj")), "does not fit the model"),
    "vocabulary": (lambda f: (f / "vocabulary.json").write_text("["), "not a vocabulary file"),
    "configuration": (lambda f: (f / "open_clip_config.json").write_text("{}"), "model_cfg"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model(kind, tmp_path):
    damage, message = DAMAGE[kind]
    shutil.copytree(mini.MODEL_FOLDER, tmp_path / "model")
    damage(tmp_path / "model")
    refused(tmp_path, (*ERASE, "--model", "model"), message)
    refused(tmp_path, ("evaluate", "model", "--data", "nsu-mini"), message)


def test_a_side_that_cannot_be_edited(tmp_path):
    folder = pico.write("ViT-SO400M-16-SigLIP-i18n-256", tmp_path / "model")
    request = ("--model", folder, "--class", "cat", "--classes", "cat,dog,car,tree")
    for command in ("erase", "inspect"):
        refused(tmp_path, (command, *request, "--side", "text"), "text.*visual")
    assert nsu("erase", *request, "--output", "out", "--quiet").code == 0  # control


def test_an_output_that_holds_the_model(tmp_path):
    shutil.copytree(mini.MODEL_FOLDER, tmp_path / "model")
    request = (*ERASE, "--model", "model", "--output", "model", "--overwrite")
    refused(tmp_path, request, "holds the model that is being edited")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(tmp_path, (*ERASE, "--output", "locked/out"), "no write access")


@pytest.mark.parametrize(
    ("module", "name"), [(tensors, "rewrite"), (folder, "_write_undo"), (tensors, "extract")]
)
def test_a_full_disk(module, name, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "weights")

    request = (*ERASE, "--output", "out", "--undo", "undo")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        refused(tmp_path, request, "nsu: No space left on device: weights")
    assert nsu(*request, "--quiet").code == 0  # control


@pytest.mark.slow
def test_a_disk_that_fills_up_while_writing(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    model = ("--model", mini.MODEL_FOLDER)
    one_line(nsu_process(*ERASE, *model, cwd=tmp_path, preexec_fn=limit), "nsu: File too large")
    assert not list(tmp_path.iterdir())


def test_killed_while_writing(tmp_path):
    script = """
import sys, time
from nullspace_unlearn.cli import main
from nullspace_unlearn.clip import tensors
def stall(value):
    print("writing", flush=True)
    time.sleep(600)
tensors.to_bytes = stall
main()
"""
    arguments = [*ERASE, "--model", str(mini.MODEL_FOLDER), "--output", "out", "--undo", "undo"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert list(tmp_path.glob(".out.*"))  # it was in the middle
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists() and not (tmp_path / "undo").exists()
    # What is left does not stand in the way of another try.
    assert nsu(*arguments, "--quiet").code == 0


BUG = " (a bug: nsu --debug ... shows where)"
FAILURES = {
    "RuntimeError": (
        lambda: raising(RuntimeError("it broke\nbadly")),
        1,
        "RuntimeError: it broke badly",
    ),
    "AssertionError": (lambda: raising(AssertionError()), 1, "AssertionError:" + BUG),
    "KeyError": (lambda: {}["x"], 1, "KeyError: 'x'" + BUG),
    "Python's ValueError": (lambda: int("x"), 1, "ValueError: invalid literal .*" + re.escape(BUG)),
    "a library's ValueError": (lambda: np.zeros(3).reshape(2, 2), 1, "ValueError: cannot reshape"),
    "ours": (lambda: check_names("class", ("",)), 2, "empty class name: ''"),
    "the system's": (lambda: open("no"), 2, "No such file or directory: no"),
    "interrupted": (lambda: raising(KeyboardInterrupt()), 130, "interrupted"),
}


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_one_line_too(kind, as_json, tmp_path, monkeypatch):
    """Bad input is a sentence; a bug has its kind, so that nobody takes it for bad input."""
    work, code, line = FAILURES[kind]
    monkeypatch.setattr(outcome, "erase", lambda *_, **__: work())
    result = nsu(*ERASE, *as_json)
    assert (result.code, result.out) == (code, "")
    assert re.match("\n?nsu: " + line.replace(BUG, re.escape(BUG)), result.err)
    assert "Traceback" not in result.err and len(result.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    if code != 130:
        shown = nsu("--debug", *ERASE, *as_json)
        assert (shown.code, shown.out) == (code, "") and "Traceback" in shown.err
        assert shown.err.endswith(result.err)


WEIRD = {
    "path": "../../x",
    "absolute": "/etc/passwd",
    "dots": "..",
    "HTML": "<b>'1'</b>",
    "YAML": "- {a: b} # & *c",
    "braces": "{0} {class}",
    "unicode": "Straßenbahn 🚋",
    "option": "--quiet",
    "fence": "```",
}


@pytest.mark.parametrize("kind", WEIRD)
def test_weird_names_stay_in_the_folder(kind, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    os.chdir(inside)
    listed = ("--classes", "dog,cat,horse," + WEIRD[kind].replace(",", " "))
    model = ("--model", mini.MODEL_FOLDER)
    result = nsu("erase", *model, f"--class={WEIRD[kind]}", *listed, "--json")
    assert result.code == 0, result
    folder = inside / result.json["output"]
    assert folder.parent == inside and folder.is_dir() and len(os.fsencode(folder.name)) <= 100
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    proven = nsu("certify", folder, "--no-singly", "--json")
    assert proven.code == 0 and proven.json["certificates"][0]["class"] == WEIRD[kind]


@pytest.mark.parametrize("name", ["c\x1b[31mar", "a\nb"])
def test_names_that_would_steer_a_terminal_or_break_a_table_are_refused(name, tmp_path):
    message = "holds control characters"
    listed = ("--classes", f"dog,cat,horse,{name}")
    refused(tmp_path, (*ERASE[:2], name, *listed), message)
    refused(tmp_path, (*ERASE[:2], "dog", *listed), message)
    refused(tmp_path, (*CELL[:4], name), message)
    mini.write_images(tmp_path / "images", ["car", "dog"], ["photo"], [1])
    picture = ("evaluate", "nsu-mini", "--data", "images", "--quiet")
    broken = tmp_path / "images/photo/car/broken.png"
    broken.touch()
    broken.rename(broken.with_name(f"{name}.png"))
    said = nsu(*picture)  # a file of that name is read, and named so that it steers nothing
    assert said.code == 0 and "skipped 1 files" in said.err
    assert printable(name) in said.err and name not in said.err
    (tmp_path / "images/photo/dog").rename(tmp_path / "images/photo" / f"{name}s")
    one_line(nsu(*picture), message)


@pytest.mark.parametrize("name", ["car" * 500, "電" * 300])
def test_long_names_are_refused_and_would_have_made_no_long_folder(name, tmp_path):
    refused(tmp_path, (*ERASE, "--class", name, "--classes", f"car,dog,{name}"), "is cut before")
    folder = default_name("nsu-mini", Forget((name,)))
    assert 90 < len(os.fsencode(folder)) <= 100


@pytest.mark.parametrize("spelt", [".", "local-dir:.", "./", "../.hidden/", ".."])
def test_an_output_is_named_after_the_model_folder_and_not_hidden(spelt, tmp_path, monkeypatch):
    inside = tmp_path / ".hidden" / "model"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside.parent if "hidden" in spelt else inside)
    named = default_name(spelt, Forget(("car",)))
    assert named == (
        "model-without-car" if "hidden" not in spelt and spelt != ".." else "hidden-without-car"
    )


def nasty(root: Path) -> None:
    """A folder of 2 classes in which most files are odd; 3 of them cannot be read."""
    mini.write_images(root, ["car", "dog"], ["photo"], [1])
    car, dog = root / "photo/car", root / "photo/dog"
    picture = Image.open(dog / "1.png")
    whole = (car / "1.png").read_bytes()
    (car / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (car / "text.jpg").write_text("this is no image")
    (car / "empty.png").touch()
    picture.convert("L").save(dog / "grey.png")
    picture.convert("CMYK").save(dog / "cmyk.jpg")
    picture.convert("RGBA").save(dog / "alpha.png")
    Image.new("RGB", (1, 1), "red").save(car / "dot.png")
    frames = [picture.convert("P"), Image.new("P", picture.size)]
    frames[0].save(root / "animated.gif", save_all=True, append_images=frames[1:])
    (root / "animated.gif").rename(dog / "animated.png")


def test_nasty_images_are_counted_and_named(tmp_path):
    nasty(tmp_path / "data")
    result = nsu("evaluate", "nsu-mini", "--data", "data", "--json")
    assert result.code == 0
    assert result.json["count"] == [[2], [5]]
    assert result.json["accuracy"][1] == [1.0]  # grey, CMYK and animated dogs are dogs
    names = {Path(one["file"]).name for one in result.json["skipped"]}
    assert names == {"truncated.png", "text.jpg", "empty.png"}
    (line,) = result.err.splitlines()
    assert line.startswith("nsu: skipped 3 files: ") and all(name in line for name in names)


def test_a_cell_that_has_no_readable_image_left(tmp_path):
    nasty(tmp_path / "data")
    for name in ("1.png", "dot.png"):
        (tmp_path / "data/photo/car" / name).unlink()
    for command in (("evaluate", "nsu-mini"), ERASE):
        refused(
            tmp_path,
            (*command, "--data", "data"),
            "no readable image is left of class 'car' in domain 'photo'",
        )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(2, int)}, "lacks 'image_features'"),
        ({"image_features": np.ones((2, 8)), "labels": np.array([0, 1])}, "8 dimensions .* 64"),
        ({"image_features": np.full((2, 64), np.nan), "labels": np.array([0, 1])}, "NaN"),
        ({"image_features": np.ones((2, 64)), "labels": np.array([0, -1])}, "labels must be from"),
        ({"image_features": np.array([{}] * 2), "labels": np.zeros(2, int)}, "feature file"),
    ],
    ids=["missing", "other model", "NaN", "labels", "pickled"],
)
def test_a_bad_feature_file(arrays, message, tmp_path):
    np.savez(tmp_path / "features.npz", **arrays)
    refused(tmp_path, ("evaluate", "nsu-mini", "--data", "features.npz"), message)


def test_a_certificate_is_not_given_for_names_that_are_cut():
    """The untouched model would pass: all prompts are one vector."""
    assert nsu(*ERASE, "--output", "out", "--quiet").code == 0
    template = "a rather long photo taken in a nice place full of people of a {}"
    one_line(nsu("certify", "out", "--template", template), "is cut before 'car' ends")
    assert nsu("certify", "out", "--no-singly", "--quiet").code == 0  # the control
