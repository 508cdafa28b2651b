"""Kill writing commands at points spread over all that they do to files; one process forks them.

Run with a folder to work in, how many points a command, and which commands (absent: all); prints
JSON: for each command how many points there were and what was wrong after a kill. A process of its
own, so that it has one thread when it forks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from killed import forked, killed_at
from shell import nsu

from nullspace_unlearn.data import mini

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.", "ctypes.", "tempfile.")
MODEL = ("--model", "model", "--quiet")
CELL = ("--class", "car", "--classes", "car,dog,tree")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "erase": (("erase", *MODEL, *CELL, "--undo", "undo", "--output", "out"), ("out", "undo")),
    "embed": (("embed", *MODEL, "--data", "images", "--output", "features"), ("features",)),
    "sweep": (
        ("sweep", *MODEL, "--data", "images", "--class", "car", "--method", "hull",
         "--output", "rows"),
        ("rows",),
    ),
    "prototypes": (
        ("prototypes", *MODEL, "--class", "car", "--domain", "sketch", "--each", "1",
         "--classes", "car,dog", "--output", "pictures"),
        ("pictures",),
    ),
    "revert": (("revert", "edited", "way-back", "--output", "back", "--quiet"), ("back",)),
    "recipes": (("recipes", "cp", "bundled-quick", "recipe.yaml"), ("recipe.yaml",)),
    "patch": (
        ("erase", *MODEL, *CELL, "--patch", "new.patch", "--output", "out"),
        ("new.patch", "out"),
    ),
    "apply": (("apply", "car.patch", "--model", "model", "--output", "out", "--quiet"), ("out",)),
    "stores": (
        ("apply", "car.patch", "--embeddings", "z.npy", "--output", "less.npy", "--quiet"),
        ("less.npy",),
    ),
    "export": (
        ("export", "edited", "--to", "transformers", "--output", "other", "--quiet"), ("other",)
    ),
    "report": (
        ("report", "edited", "--output", "page.html", "--tables", "tables", "--quiet"),
        ("page.html", "tables"),
    ),
    "train": (
        ("train", "ascent", *MODEL, "--data", "images", "--shots", "1", "--validation", "1",
         "--epochs", "1", "--class", "car", "--output", "out"),
        ("out",),
    ),
    "bench": (("bench", "mine.yaml", "--output", "trials", "--quiet"), ("trials",)),
    "audit": (
        ("audit", "edited", "--against", "model", "--data", "images", "--only", "yardstick",
         "--output", "answers", "--quiet"),
        ("answers",),
    ),
}  # fmt: skip
SECONDS = rb'"seconds": (\{[^}]*\}|[^,}]*)|[^\n]*,seconds,[^\n]*'
GROWS = {"bench", "audit"}
"""Whose outputs are written part by part: what is there after a kill is a part of the new."""
RECIPE = """\
name: mine
model: {name: nsu-mini}
data: {kind: bundled, each: 1}
requests: [{kind: cell, classes: [car], domains: [sketch]}]
methods: [{name: nullspace}]
metrics: [kept]
"""


def contents(path: Path) -> dict[str, bytes] | None:
    """What is at a path: None for nothing. A trial's result says how long it took."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return {
            str(file.relative_to(path)): re.sub(SECONDS, b"", file.read_bytes()) for file in files
        }
    return {"": path.read_bytes()} if path.exists() else None


def steps_of(work: Callable[[], None]) -> int:
    """How many of `CHANGES` some work makes."""
    reads, writes = os.pipe()

    def counted() -> None:
        made = [0]

        def hook(event: str, _: object) -> None:
            made[0] += event.startswith(CHANGES)

        sys.addaudithook(hook)
        work()
        os.write(writes, str(made[0]).encode())

    assert forked(counted) == 0
    os.close(writes)
    return int(os.read(reads, 99))


def check(
    command: tuple[str, ...], outputs: tuple[str, ...], points: int, grows: bool
) -> dict[str, object]:
    """Kill a command at so many points, with old outputs there and without."""

    def work() -> None:
        said = nsu(*command, "--overwrite")
        if said.code:
            raise RuntimeError(said.err)

    work()
    old = {name: contents(Path(name)) for name in outputs}
    total, wrong, killed = steps_of(work), [], 0
    for number in range(points):
        step, fresh = 1 + number * total // points, number % 3 == 2
        for name in outputs if fresh else ():
            path = Path(name)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        killed += forked(killed_at(step, work, CHANGES)) < 0
        for name, whole in old.items():
            found = contents(Path(name))
            part = grows and found is not None and found.items() <= (whole or {}).items()
            if found is not None and found != whole and not part:
                wrong.append(f"step {step}: {name} is half of the old and of the new")
            if found is None and not fresh and name == outputs[0]:
                wrong.append(f"step {step}: {name} is lost")
        try:
            work()
        except RuntimeError as error:
            wrong.append(f"step {step}: the next run is refused: {error}")
        if {name: contents(Path(name)) for name in outputs} != old:
            wrong.append(f"step {step}: the next run gives something else")
        if left := [path.name for path in Path().iterdir() if path.name.startswith(".")]:
            wrong.append(f"step {step}: {left} is left")
    return {"steps": total, "killed": killed, "wrong": wrong}


def main(folder: str, points: int, names: list[str]) -> None:
    """Kill every command at so many points."""
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = folder + "/cache"
    shutil.copytree(mini.MODEL_FOLDER, "model")
    mini.write_images(Path("images"), ["car", "dog", "tree"], ["photo", "sketch"], [1, 2, 3])
    said = nsu(
        "erase", *MODEL, *CELL, "--undo", "way-back", "--patch", "car.patch", "--output", "edited"
    )
    assert said.code == 0, said.err
    Path("mine.yaml").write_text(RECIPE)
    np.save("z.npy", np.random.default_rng(0).normal(size=(300, 64)).astype("f4"))
    found = {name: check(*COMMANDS[name], points, name in GROWS) for name in names or COMMANDS}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
