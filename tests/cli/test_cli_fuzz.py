"""Command lines drawn at random, with a fixed seed: whatever is given, a sentence or a result.

Commands and options are the command line's own, so that a new one is drawn too. No device file is
among the values.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click
import pytest
from shell import nsu

from nullspace_unlearn.cli import nsu as group
from nullspace_unlearn.data import mini

NAMES = [
    "car",
    "dog",
    "",
    " ",
    "c\x1b[31mar",
    "a" * 300,
    "{}",
    "=1+1",
    "😀",
    "car,dog",
    "--x",
    "../x",
]
NAMES += ["n01440764", "\udcff", "CAR", "car=dog", "=", "each", "each:2", "nan", "[1]"]
NUMBERS = [
    "-1",
    "0",
    "1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "x",
    "",
    "0.5",
    "99999999999999999999",
    "1,2",
]
FILES = [
    "names.txt",
    "names.json",
    "broken.json",
    "table.csv",
    "empty",
    "no",
    "folder",
    "images",
    ".",
    "",
]
FILES += ["x" * 300, "folder/..", "model", "deep.yaml", "zip.tar", "link", "images/photo", "~"]
MODELS = ["nsu-mini", "model", "folder", "empty", "no", "", "local-dir:no", "hf-hub:", "ViT-B-32"]
OUTPUTS = [
    "new",
    "new/er",
    "folder",
    "empty",
    "model",
    ".",
    "..",
    "/",
    "",
    "x" * 300,
    "link",
    "images",
]
TEMPLATES = [
    "a {}.",
    "{}",
    "{",
    "{}{}",
    "{class} {domain}",
    "{0}",
    "a" * 500 + "{}",
    "",
    "{class.x}",
]
POOLS = {
    "model": MODELS, "base": MODELS, "folder": MODELS, "output": OUTPUTS, "undo": OUTPUTS,
    "heatmap": [*OUTPUTS, "a.png", "a.gif"], "curve": ["a.png", *OUTPUTS],
    "cache": ["new", "empty", ""],
    "template": TEMPLATES, "dest": OUTPUTS, "cell_template": TEMPLATES,
}  # fmt: skip


def value(param: click.Parameter, draw: random.Random) -> str:
    """Something for an option or argument: sometimes of its kind, often not."""
    if isinstance(param.type, click.Choice) and draw.random() < 0.8:
        return str(draw.choice(param.type.choices))
    if draw.random() < 0.1:
        return draw.choice([*NAMES, *NUMBERS, *FILES])
    if param.type.name.startswith(("int", "float")):
        return draw.choice(NUMBERS)
    pool = POOLS.get(str(param.name))
    if pool is None:
        about = f"{param.name} {getattr(param, 'metavar', '')}".lower()
        is_file = re.search(
            "file|dir|root|data|list|against|real|test|images|request|recipe", about
        )
        pool = FILES if is_file else NAMES
    return draw.choice(pool)


def call(draw: random.Random) -> list[str]:
    """One command line."""
    command, path = group, []
    while isinstance(command, click.Group):
        path.append(draw.choice(sorted(command.commands)))
        command = command.commands[path[-1]]
    given = list(path)
    for param in command.params:
        if not isinstance(param, click.Option):
            given += [value(param, draw)] if draw.random() < 0.9 else []
        elif draw.random() < (0.7 if param.required or param.name == "class_" else 0.15):
            option = draw.choice(param.opts)
            given += [option] if param.is_flag else [f"{option}={value(param, draw)}"]
    return given


@pytest.fixture
def things(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("car\ndog\ntree\n")
    (tmp_path / "names.json").write_text(json.dumps(["car", "dog", "tree"]))
    (tmp_path / "broken.json").write_text("[" * 5000)
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 3000)
    (tmp_path / "table.csv").write_text("id,name\n0,car\n")
    (tmp_path / "zip.tar").write_bytes(b"\x00" * 1024)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("names.txt")
    mini.write_images(tmp_path / "images", ["car", "dog"], ["photo", "sketch"], [1, 2])
    shutil.copytree(mini.MODEL_FOLDER, tmp_path / "model")


def run(calls: int, seed: int) -> Iterator[tuple[list[str], int, str, str]]:
    def enough(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith(("<frozen importlib", logging.__file__)):
                # A module that is half imported would be so for all that follows, and the lock of
                # `logging`, taken and not given back, would stop it at the next threads.
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    draw = random.Random(seed)
    before = signal.signal(signal.SIGALRM, enough)
    try:
        for _ in range(calls):
            given = call(draw)
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            try:
                result = nsu(*given)
            except KeyboardInterrupt:  # between our own lines
                continue
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            yield given, result.code, result.out, result.err
    finally:
        signal.signal(signal.SIGALRM, before)


def check(calls: int, seed: int) -> Counter[int]:
    codes: Counter[int] = Counter()
    for given, code, out, err in run(calls, seed):
        codes[code] += 1
        said = [line for line in err.splitlines() if line and "warning:" not in line]
        assert code in (0, 1, 2, 130), (given, err)
        assert "Traceback" not in out + err and "(a bug" not in err, (given, err)
        if code == 2:
            assert out == "" or given[0] in ("recipes", "bench"), (given, out)
            assert said and said[-1].startswith("nsu: "), (given, err)
    return codes


def test_whatever_is_given_is_answered(things: None, tmp_path: Path) -> None:
    inputs = sorted((tmp_path / "images").rglob("*.png"))
    codes = check(500, seed=0)
    assert codes[2] > 300 and codes[0] > 5 and codes[1] < 25
    assert sorted((tmp_path / "images").rglob("*.png")) == inputs


@pytest.mark.parametrize(
    "calls",
    [pytest.param(1500, marks=pytest.mark.slow), pytest.param(5000, marks=pytest.mark.long)],
)
def test_whatever_is_given_is_answered_at_length(things: None, calls: int) -> None:
    codes = check(calls, seed=1)
    assert codes[2] > 0.6 * calls
