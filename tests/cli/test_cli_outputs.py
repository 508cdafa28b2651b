"""One process at one output, and nothing of a dead one in the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from killed import held, posix
from shell import nsu, tree
from test_cli_bad_input import one_line, refused

from nullspace_unlearn.data import mini
from nullspace_unlearn.patch import Patch

FOLDER = mini.MODEL_FOLDER
WRITING = {
    "erase": ("erase", "--class", "car"),
    "train": ("train", "ascent", "--class", "car"),
    "embed": ("embed", "--data", "nsu-mini"),
    "sweep": ("sweep", "--class", "car", "--method", "hull", "--data", "nsu-mini"),
    "prototypes": ("prototypes",),
    "bench": ("bench", "bundled-quick"),
    "revert": ("revert", FOLDER, "undo"),
    "export": ("export", FOLDER, "--to", "transformers"),
    "report": ("report", FOLDER),
    "audit": ("audit", FOLDER, "--against", FOLDER, "--data", "nsu-mini", "--class", "car"),
}


@posix
@pytest.mark.parametrize("command", WRITING)
def test_a_second_process_at_an_output_is_told_of_the_first(command: str, tmp_path: Path) -> None:
    with held(tmp_path / "out") as holder:
        before = tree(tmp_path)
        said = nsu(*WRITING[command], "--output", "out", "--json")
        one_line(said, rf"output 'out' is being written by process {holder} on ")
        assert tree(tmp_path) == before


@posix
def test_every_output_of_a_command_is_held(tmp_path: Path) -> None:
    erase = ("erase", "--class", "car", "--undo", "undo", "--quiet")
    with held(tmp_path / "undo") as holder:
        one_line(nsu(*erase, "--output", "out"), rf"output 'undo' is being .* {holder} on ")
        assert nsu("recipes", "cp", "bundled-quick", "out").code == 0
    assert nsu(*erase, "--output", "other").code == 0  # the control: who is dead holds nothing
    assert sorted(tree(tmp_path))[-1] == "undo"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("erase", "--undo", "u.png", "--heatmap", "u.png"), "'u.png' is to be written twice"),
        (
            ("erase", "--undo", "out/../u.png", "--heatmap", "u.png"),
            "u.png' is to be written twice",
        ),
        (("erase", "--heatmap", "out/u.png"), "'out/u.png' is inside the output 'out'"),
        (("train", "ascent", "--undo", "out.run/u"), "'out.run/u' is inside the output 'out.run'"),
        (("train", "ascent", "--curve", "out.run"), "'out.run' is to be written twice"),
        (("erase", "--undo", "deep", "--heatmap", "deep/u.png"), "'deep/u.png' is inside"),
    ],
)
def test_outputs_stand_apart(given: tuple[str, ...], message: str, tmp_path: Path) -> None:
    refused(tmp_path, (*given, "--class", "car", "--output", "out", "--overwrite"), message)


def test_what_a_dead_process_left_is_cleared_and_refuses_nothing(tmp_path: Path) -> None:
    small = ("--shots", 1, "--validation", 1, "--epochs", 1, "--quiet")
    mini.write_images(tmp_path / "images", ["car", "dog"], ["photo"], range(3))
    run = tmp_path / "out.run"
    run.mkdir()
    for name in (".out.abcd1234.tmp", ".out.abcd1234.old", "out.run/.checkpoint.abcd1234.tmp"):
        (tmp_path / name).write_text("the original model")
    train = ("train", "ascent", "--class", "car", "--data", "images", *small, "--output", "out")
    (run / "notes").touch()  # the control: what is not ours
    one_line(nsu(*train), "'out.run' is where this run would keep .* holds something else")
    (run / "notes").unlink()
    (run / ".checkpoint.abcd1234.tmp").touch()
    assert nsu(*train).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def test_a_home_that_cannot_be_written_to_only_warns(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    command = ("erase", "--class", "car", "--quiet", "--output")
    said = nsu(*command, "one")
    assert said.code == 0 and "cached" not in said.err  # the control
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = nsu(*command, "two")
    assert said.code == 0 and "nsu: warning: nothing is cached: " in said.err


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


CAR = ("erase", "--class", "car", "--quiet", "--output", "out")
STORE = ("apply", "some.patch", "--embeddings", "z.npy", "--quiet")
EMBED = ("embed", "--model", "nsu-mini", "--data", "photos", "--quiet")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ((*CAR, "--undo", "mine"), "undo file"),
        ((*CAR, "--heatmap", "mine.png"), "picture of a report"),
        ((*EMBED, "--output", "mine"), "feature file"),
        ((*EMBED, "--output", "photos/photo/car/7000.png"), "feature file"),
        (("recipes", "cp", "bundled-quick", "mine"), "recipe"),
        ((*CAR, "--patch", "mine"), "patch"),
        (("report", "edited", "--output", "mine"), "page of a report"),
        (("report", "edited", "--output", "edited/README.md"), "page of a report"),
        ((*STORE, "--output", "mine"), "such store"),
        ((*STORE, "--output", "some.patch"), "such store"),
    ],
)
def test_a_file_is_replaced_only_by_its_like(
    given: tuple[str, ...],
    what: str,
    tmp_path: Path,
    photos: Path,
    made: Callable[..., Path],
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(made("--class", "car"), tmp_path / "edited")
    Patch(np.ones((4, 1)), np.ones((4, 1))).save(tmp_path / "some.patch")
    np.save(tmp_path / "z.npy", np.ones((3, 4)))
    for name in ("mine", "mine.png"):
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    said = nsu(*given, "--overwrite")
    assert said.code == 2 and f"is no {what}, so it is not replaced" in said.err, said
    assert contents(tmp_path) == before


def test_a_file_of_its_kind_is_replaced(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "photos").symlink_to(photos)
    for command in (
        (*CAR, "--undo", "undo", "--heatmap", "map.png"),
        (*EMBED, "--output", "features"),
        ("recipes", "cp", "bundled-quick", "mine.yaml"),
        (*CAR, "--patch", "car.patch"),
        ("report", "out", "--output", "page.html"),
    ):
        for _ in range(2):
            assert nsu(*command, "--overwrite").code == 0


@posix
@pytest.mark.parametrize(
    "given",
    [
        ("evaluate", "nsu-mini", "--data", "photos", "--list", "pipe"),
        ("evaluate", "nsu-mini", "--data", "pipe"),
        ("evaluate", "nsu-mini", "--data", "pipe.tar"),
        ("erase", "--class", "car", "--classes", "pipe", "--output", "out"),
        ("erase", "--recipe", "pipe", "--output", "out"),
        ("erase", "--class", "car", "--deployed", "pipe", "--output", "out"),
        ("sweep", "--requests", "pipe", "--method", "hull", "--output", "out"),
        ("revert", "model", "pipe", "--output", "out"),
        ("certify", "model"),
        ("apply", "pipe", "--model", "model", "--output", "out"),
        ("erase", "--model", "ViT-B-32", "--pretrained", "pipe", "--class", "car"),
    ],
)
def test_a_pipe_is_refused_where_a_file_is_read(
    given: tuple[str, ...], tmp_path: Path, photos: Path
) -> None:
    (tmp_path / "photos").symlink_to(photos)
    shutil.copytree(mini.MODEL_FOLDER, tmp_path / "model")
    for name in ("pipe", "pipe.tar", "model/recipe.yaml"):
        os.mkfifo(tmp_path / name)

    def waits(*_: object) -> None:
        raise AssertionError("it waits for the pipe")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(60)
    try:
        said = nsu(*given)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert said.code == 2 and re.search(
        "pipe or a device|is not a folder|are not there", said.err
    ), said
