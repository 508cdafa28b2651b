"""Kill writing commands at points spread over all that they do to files; one process forks them.

Run with a folder to work in, how many points a command, and which commands (absent: all), or
controls; prints JSON: for each how many steps were looked at, how many processes were killed, and
what was wrong. A process of its own, so that it has one thread when it forks.

Each command runs twice, on two inputs, the second time over the outputs of the first; in between it
is killed, which what comes next has to bear. What lies in the way of a step is looked at before
every step of every run, since that is what a kill there would leave.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
from killed import forked
from shell import nsu

from nullspace_unlearn import files
from nullspace_unlearn.clip import folder as model_folder
from nullspace_unlearn.data import mini

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.", "tempfile.")
EXCHANGES = ("renameat2", "renamex_np")
INPUTS = ("car", "dog")
KEPT = Path("kept")
MODEL = ("--model", "{}-model", "--quiet")
CELL = ("--class", "{}", "--classes", "car,dog,tree")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "erase": (("erase", *MODEL, *CELL, "--undo", "undo", "--output", "out"), ("out", "undo")),
    "embed": (("embed", *MODEL, "--data", "{}-images", "--output", "features"), ("features",)),
    "sweep": (
        ("sweep", *MODEL, "--data", "images", "--class", "{}", "--method", "hull",
         "--output", "rows"),
        ("rows",),
    ),
    "prototypes": (
        ("prototypes", *MODEL, "--class", "{}", "--domain", "sketch", "--each", "1",
         "--classes", "car,dog", "--output", "pictures"),
        ("pictures",),
    ),
    "revert": (("revert", "{}", "{}.undo", "--output", "back", "--quiet"), ("back",)),
    "recipes": (("recipes", "cp", "{}.yaml", "recipe.yaml"), ("recipe.yaml",)),
    "patch": (
        ("erase", *MODEL, *CELL, "--patch", "new.patch", "--output", "out"),
        ("out", "new.patch"),
    ),
    "apply": (("apply", "{}.patch", "--model", "{}-model", "--output", "out", "--quiet"), ("out",)),
    "stores": (
        ("apply", "{}.patch", "--embeddings", "z.npy", "--output", "less.npy", "--quiet"),
        ("less.npy",),
    ),
    "export": (
        ("export", "{}", "--to", "transformers", "--output", "other", "--quiet"), ("other",)
    ),
    "report": (
        ("report", "{}", "--output", "page.html", "--tables", "tables", "--quiet"),
        ("page.html", "tables"),
    ),
    "train": (
        ("train", "ascent", *MODEL, "--data", "images", "--shots", "1", "--validation", "1",
         "--epochs", "1", "--class", "{}", "--output", "out"),
        ("out",),
    ),
    "bench": (("bench", "{}.yaml", "--output", "trials", "--quiet"), ("trials",)),
    "audit": (
        ("audit", "{}", "--against", "{}-model", "--data", "images", "--only", "yardstick",
         "--output", "answers", "--quiet"),
        ("answers",),
    ),
}  # fmt: skip
GROWS = {"bench", "audit"}
"""Whose outputs are written part by part: what is there after a kill is a part of the new."""
SECONDS = re.compile(rb'"seconds": (\{[^}]*\}|[^,}]*)|^[^\n]*,seconds,[^\n]*', re.MULTILINE)
RECIPE = """\
name: mine
model: {{name: nsu-mini}}
data: {{kind: bundled, each: 1}}
requests: [{{kind: cell, classes: [{}], domains: [sketch]}}]
methods: [{{name: nullspace}}]
metrics: [kept]
"""

Contents = dict[str, str] | None


def contents(path: Path) -> Contents:
    """Hashes of what is at a path: None for nothing. A trial's result says how long it took."""
    if not path.exists():
        return None
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): digest(file) for file in inside if file.is_file()}


def is_part(now: dict[str, str], old: Contents, new: Contents) -> bool:
    """Whether what is there, less what is hidden, is whole files of the old and of the new."""
    whole = {*(old or {}).items(), *(new or {}).items()}
    return all(one in whole for one in now.items() if not Path(one[0]).name.startswith("."))


def digest(file: Path) -> str:
    data = file.read_bytes()
    return hashlib.sha1(SECONDS.sub(b"", data) if b"seconds" in data else data).hexdigest()


@dataclass
class Watch:
    """What the hook does at each step, in this process or in one that was forked from it."""

    look: Callable[[], None] | None = None
    at: int = 0
    steps: int = 0
    busy: bool = field(default=False, repr=False)

    def __call__(self, event: str, told: tuple[object, ...]) -> None:
        if self.look is None or self.busy or not self.counts(event, told):
            return
        self.busy, self.steps = True, self.steps + 1
        self.look()
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.busy = False

    @staticmethod
    def counts(event: str, told: tuple[object, ...]) -> bool:
        """Whether it changes what is in this folder: no cache, and nothing that imports do."""
        if event == "ctypes.dlsym":
            return told[1] in EXCHANGES
        paths = (os.fsdecode(one) for one in told if isinstance(one, str | bytes | os.PathLike))
        return event.startswith(CHANGES) and any(map(is_here, paths))


def is_here(path: str) -> bool:
    return os.path.abspath(path).startswith(os.getcwd() + os.sep)


WATCH = Watch()


class Killing:
    """One command, run and killed."""

    def __init__(self, name: str) -> None:
        self.name, self.looked, self.wrong = name, 0, list[str]()
        self.command, self.outputs = COMMANDS[name]

    def work(self, given: str) -> None:
        said = nsu(*(word.format(given) for word in self.command), "--overwrite")
        if said.code:
            raise RuntimeError(said.err)

    def found(self) -> list[Contents]:
        return [contents(Path(name)) for name in self.outputs]

    def watched(self, given: str, at: int = 0) -> tuple[int, list[tuple[int, list[Contents]]]]:
        """Run it, in a process that is killed before a step if one is named.

        Returns:
            The exit status, and for each step what was there before it, less what was as before.
        """
        seen: list[tuple[int, list[Contents]]] = []

        def look() -> None:
            if not seen or self.found() != seen[-1][1]:
                seen.append((WATCH.steps, self.found()))
                if at:
                    log.write(json.dumps(seen[-1]) + "\n")
                    log.flush()

        with open("seen", "w") as log:
            WATCH.look, WATCH.at, WATCH.steps = look, at, 0
            try:
                if not at:
                    self.work(given)
                    return 0, seen
                status = forked(lambda: self.work(given))
            finally:
                WATCH.look = None
                self.looked += at or WATCH.steps
        lines = Path("seen").read_text().splitlines()
        return status, [(step, found) for step, found in map(json.loads, lines)]

    def put(self, contents: list[Contents]) -> None:
        """Let the outputs be those that are kept, or none."""
        for path, kept in zip(map(Path, self.outputs), contents, strict=True):
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if kept is not None:
                copy = shutil.copytree if (KEPT / path).is_dir() else shutil.copyfile
                copy(KEPT / path, path)

    def judge(
        self,
        seen: list[tuple[int, list[Contents]]],
        there: list[Contents],
        old: list[Contents],
        new: list[Contents],
    ) -> None:
        """Note what is lost of what was there, and what is neither the old nor the new."""
        for step, found in seen:
            for name, now, before, *whole in zip(self.outputs, found, there, old, new, strict=True):
                if now is None:
                    if before is not None:
                        self.wrong.append(f"before step {step}: {name} is lost")
                elif not (is_part(now, *whole) if self.name in GROWS else now in whole):
                    self.wrong.append(f"before step {step}: {name} is neither the old nor the new")
            if self.name == "erase" and old != new and found == [old[0], new[1]]:
                self.wrong.append(f"before step {step}: the undo file is not that of the folder")

    def run(self, points: int) -> dict[str, object]:
        """Run it twice; kill it in between at so many points, at each third without old outputs."""
        first, second = INPUTS
        before = set(Path().iterdir())
        nothing: list[Contents] = [None] * len(self.outputs)
        _, fresh = self.watched(first)
        steps, old = WATCH.steps, self.found()
        self.judge(fresh, nothing, old, old)
        for name in self.outputs:
            os.rename(name, KEPT / name)
        left, killed = [], 0
        for number in range(points):
            at = 1 + (number + 1) * steps // (points + 1)
            start = nothing if number % 3 == 1 else old
            self.put(start)
            status, seen = self.watched(second, at)
            left.append((start, seen))
            killed += status == -signal.SIGKILL
            if status > 0:  # at 0 it had less to do than the first time
                self.wrong.append(f"it is refused, at the kill before step {at} at the latest")
        self.put(old)
        left.append((old, self.watched(second)[1]))
        new = self.found()
        for start, seen in left:
            self.judge(seen, start, old, new)
        if new == old:
            self.wrong.append("both inputs give the same")
        for path in map(KEPT.joinpath, self.outputs):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        there = {path.name for path in set(Path().iterdir()) - before} - {"seen", *self.outputs}
        if there:
            self.wrong.append(f"{sorted(there)} is left")
        self.put(nothing)
        return {"steps": self.looked, "killed": killed, "wrong": self.wrong}


def no_exchange() -> contextlib.AbstractContextManager[object]:
    """A folder is replaced in two steps."""
    return patch.object(files, "_exchange", lambda one, other: False)


def unlink_first() -> contextlib.AbstractContextManager[object]:
    """A file makes room before the new one takes its place."""
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        Path(target).unlink(missing_ok=True)
        return replace(self, target)

    return patch.object(Path, "replace", replaced)


def undo_first() -> contextlib.AbstractContextManager[object]:
    """The undo file is at its place before the folder is."""
    write = model_folder._write_undo
    return patch.object(
        model_folder, "_write_undo", lambda clip, original, edited, undo: write(
            clip, original, edited, Path("undo")
        )
    )  # fmt: skip


CONTROLS = {
    "revert, in two steps": ("revert", no_exchange, "back is lost"),
    "stores, unlinked first": ("stores", unlink_first, "less.npy is lost"),
    "erase, undo first": ("erase", undo_first, "the undo file is not that of the folder"),
}


def main(folder: str, points: int, names: list[str]) -> None:
    """Kill every command at so many points."""
    os.environ["XDG_CACHE_HOME"] = folder + "/cache"
    os.mkdir(folder + "/work")
    os.chdir(folder + "/work")
    open_clip.get_tokenizer = functools.cache(open_clip.get_tokenizer)
    for given in INPUTS:  # weights alike, so that a patch of one is one of the other
        shutil.copytree(mini.MODEL_FOLDER, f"{given}-model")
    Path("dog-model", "vocabulary.json").unlink()
    for images in ("images", *(f"{given}-images" for given in INPUTS)):
        seeds = range(len(images), len(images) + 3)
        mini.write_images(Path(images), ["car", "dog", "tree"], ["photo", "sketch"], seeds)
    for given in INPUTS:
        words = (word.format(given) for word in (*MODEL, *CELL))
        kept = ("--undo", f"{given}.undo", "--patch", f"{given}.patch", "--output", given)
        said = nsu("erase", *words, *kept)
        assert said.code == 0, said.err
        Path(f"{given}.yaml").write_text(RECIPE.format(given))
    np.save("z.npy", np.random.default_rng(0).normal(size=(300, 64)).astype("f4"))
    KEPT.mkdir()
    sys.addaudithook(WATCH)
    found = {}
    for name in names or COMMANDS:
        command, broken, _ = CONTROLS.get(name, (name, contextlib.nullcontext, ""))
        with broken():
            found[name] = Killing(command).run(points)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
