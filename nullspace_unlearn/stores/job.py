"""Editing a store: part by part, so that it can be stopped and go on, and be shared.

The edited store grows in a folder beside the output, `OUTPUT.parts`, with a note of each part that
is done. Once all are, it takes its place and the folder goes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

from threadpoolctl import threadpool_limits

from nullspace_unlearn.files import (
    claimed,
    new_file,
    new_folder,
    read_json,
    refuse_existing,
    remove_folder,
)
from nullspace_unlearn.fingerprint import Fingerprint, code_of, in_words
from nullspace_unlearn.processes import Processes
from nullspace_unlearn.progress import progress
from nullspace_unlearn.stores.change import Change, Seen
from nullspace_unlearn.stores.store import Store, StoreFile, open_store

_FORMAT = "nullspace-unlearn store parts 1"
_JOB, _EDITED, _DONE = "job.json", "edited", "done"

Bad = Literal["refuse", "keep"]


@dataclass(frozen=True)
class _Part:
    """A piece of the work: some rows of a file of vectors, or a whole one."""

    number: int
    file: StoreFile
    unit: int

    @property
    def rows(self) -> int:
        return self.file.rows_of(self.unit)


def edit_store(
    path: str | Path,
    output: str | Path,
    change: Change,
    *,
    column: str | None = None,
    bad: Bad = "refuse",
    overwrite: bool = False,
    threads: int | None = None,
    processes: Processes | None = None,
    quiet: bool = False,
) -> Seen:
    """Edit stored embeddings into a store of the same layout and dtype.

    What is done is kept in `OUTPUT.parts`, and the same call goes on from there; the output is the
    same bytes however often it was stopped and however many processes shared the work. Memory holds
    a few blocks of rows.

    Args:
        path: The store; see `store.open_store`.
        output: The file or folder to write.
        change: What is made of each vector.
        column: Which column or tensor holds vectors, where there are several.
        bad: Rows with NaN or Inf: "refuse" the store, with their number and the first of them, or
            "keep" them as they are.
        overwrite: Whether an existing output, and parts of another job, may be replaced.
        threads: That share the rows; absent: as many as the process may use.
        processes: Those that share the parts; all must see the same folders. Absent: this one.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        What was met.

    Raises:
        OutputExists: If the output exists and `overwrite` is false.
        OutputInUse: If another process is making these parts.
        ValueError: If the store or a vector in it cannot be used, the output is or is in the store,
            or the parts are of another job.
        OSError: If writing fails; the parts done are kept.
        WorkerLost: If another process died; the parts done are kept.
        SystemExit: If another process failed, which says why.
    """
    processes = processes or Processes()
    job = processes.step(
        lambda: _Job(open_store(Path(path), change, column), Path(output), change, bad, overwrite)
    )
    with processes.led(lambda: claimed(job.folder)):
        return _done(job, processes, threads, quiet)


def _done(job: _Job, processes: Processes, threads: int | None, quiet: bool) -> Seen:
    """Edit what is left of a job, and put it in its place."""
    processes.step(lambda: job.begin() if processes.leads else None)
    todo = processes.step(job.todo)
    mine = todo[processes.rank :: processes.count]
    bar = progress(
        total=job.store.rows,
        initial=job.store.rows - sum(part.rows for part in todo),
        unit="row",
        unit_scale=True,
        desc="editing",
        hidden=quiet or not processes.leads,
    )
    # Threads share the rows, so those of the matrix products would only wait for one another.
    with threadpool_limits(1), ThreadPoolExecutor(threads or _cores(processes)) as pool, bar:
        for first in range(0, len(todo), processes.count):
            part = mine.pop(0) if mine else None
            try:
                processes.step(partial(job.do, part, pool))
            except ValueError:  # raised in one process alone, when the others have stopped
                remove_folder(job.folder)
                raise
            bar.update(sum(one.rows for one in todo[first : first + processes.count]))
    seen = processes.step(job.seen)
    processes.step(lambda: job.finish(seen) if processes.leads else None)
    return seen


class _Job:
    """A store, what is to be made of it, and the folder where that grows."""

    def __init__(
        self, store: Store, output: Path, change: Change, bad: Bad, overwrite: bool
    ) -> None:
        _check_apart(store.path, output)
        self.store, self.output, self.change = store, output, change
        self.bad, self.overwrite = bad, overwrite
        self.folder = output.with_name(output.name + ".parts")
        units = [(file, unit) for file in store.files for unit in range(file.units)]
        self.parts = [_Part(number, *one) for number, one in enumerate(units)]

    def begin(self) -> None:
        """Make the folder, or find it as this job left it."""
        refuse_existing(self.output, self.overwrite)
        _check_replaceable(self.output, self.store)
        facts = self._facts()
        if (self.folder / _JOB).is_file():
            differences = self._kept().differences(facts)
            if not differences and not self._taken():
                return
            if differences and not self.overwrite:
                raise ValueError(
                    f"{str(self.folder)!r} holds parts of another job ({in_words(differences)}); "
                    "finish that one, name another --output, or pass --overwrite"
                )
            remove_folder(self.folder)
        if self.folder.exists() and any(f for f in self.folder.iterdir() if f.name[0] != "."):
            raise ValueError(
                f"{str(self.folder)!r} is where the parts would be kept, and holds something else; "
                "move it, or name another --output"
            )
        if self.folder.is_dir():
            self.folder.rmdir()
        with new_folder(self.folder) as folder:
            (folder / _DONE).mkdir()
            for file in self.store.files:
                file.prepare(folder / _EDITED / file.name)
            for other in self.store.others:
                target = folder / _EDITED / other.relative_to(self.store.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(other, target)
            said = {"format": _FORMAT, "facts": dict(facts.facts)}
            (folder / _JOB).write_text(json.dumps(said, indent=2), encoding="utf-8")

    def _taken(self) -> bool:
        """Whether a kill came between putting the store in its place and removing the parts."""
        done = (part for part in self.parts if self._note(part).is_file())
        return any(not self._target(part.file).is_file() for part in done)

    def todo(self) -> list[_Part]:
        """The parts that are not done."""
        return [part for part in self.parts if self._noted(part) is None]

    def do(self, part: _Part | None, pool: ThreadPoolExecutor) -> None:
        """Edit a part, and note that it is done."""
        if part is None:  # the last round is not for all
            return
        try:
            seen = part.file.edit(part.unit, self._target(part.file), self.change, pool)
            note = json.dumps(asdict(seen))
            with new_file(self._note(part), overwrite=True) as temporary:
                temporary.write_text(note, encoding="utf-8")
        except OSError as error:
            done = len(self.parts) - len(self.todo())
            raise OSError(
                f"{error.strerror or error}: {error.filename or self.folder}; {done} of "
                f"{len(self.parts)} parts are done and kept, and the same command goes on from "
                "there"
            ) from None

    def seen(self) -> Seen:
        """What was met in all parts."""
        noted = [self._noted(part) for part in self.parts]
        if any(one is None for one in noted):
            raise ValueError(f"a part is not in {str(self.folder)!r}: all must see one folder")
        return reduce(add, (one for one in noted if one is not None), Seen())

    def finish(self, seen: Seen) -> None:
        """Put the edited store in its place; or nothing, where it holds what is refused."""
        if seen.bad and self.bad == "refuse":
            remove_folder(self.folder)
            raise ValueError(
                f"{seen.bad_in_words}: mend them, or pass --nan keep, which leaves these rows as "
                "they are"
            )
        edited = self.folder / _EDITED
        if self.store.path.is_dir():
            with new_folder(self.output, self.overwrite) as whole:
                for file in edited.iterdir():
                    file.replace(whole / file.name)
        else:
            refuse_existing(self.output, self.overwrite)
            self._target(self.store.files[0]).replace(self.output)
        remove_folder(self.folder)

    def _target(self, file: StoreFile) -> Path:
        return self.folder / _EDITED / file.name

    def _note(self, part: _Part) -> Path:
        return self.folder / _DONE / f"{part.number}.json"

    def _noted(self, part: _Part) -> Seen | None:
        """What was met in a part that is done; None for one that is to do."""
        try:
            said = read_json(self._note(part))
            named = tuple((str(file), int(row)) for file, row in said.pop("named"))
            seen = Seen(**said, named=named)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return seen if self._target(part.file).is_file() else None

    def _kept(self) -> Fingerprint:
        try:
            said = read_json(self.folder / _JOB)
            return Fingerprint({**said["facts"], "format": said["format"]})
        except (OSError, ValueError, KeyError, TypeError):
            return Fingerprint({"format": "damaged"})

    def _facts(self) -> Fingerprint:
        """All that the edited store depends on."""
        root = self.store.path if self.store.path.is_dir() else self.store.path.parent
        paths: Iterable[Path] = (*(file.path for file in self.store.files), *self.store.others)
        return Fingerprint(
            {
                "format": _FORMAT,
                "patches": [patch.digest for patch in self.change.patches],
                "lengths": self.change.lengths,
                "columns": {f.name: getattr(f, "column", None) for f in self.store.files},
                "files": {path.relative_to(root).as_posix(): _stat(path) for path in paths},
                "code": code_of("stores.job"),
            }
        )


def _stat(path: Path) -> list[Any]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _check_apart(store: Path, output: Path) -> None:
    one, other = store.resolve(), output.resolve()
    if one == other or other.is_relative_to(one) or one.is_relative_to(other):
        raise ValueError(
            f"output {str(output)!r} is the store, or one holds the other: name another"
        )


def _check_replaceable(output: Path, store: Store) -> None:
    """Refuse to replace a folder that holds anything else than such a store."""
    if output.is_dir() and not store.path.is_dir():
        raise ValueError(f"output {str(output)!r} is a folder, and a file is to be written")
    if output.is_file() and store.path.is_dir():
        raise ValueError(f"output {str(output)!r} is a file, and a folder is to be written")
    if output.is_file():
        store.files[0].check_alike(output)
    if output.is_dir():
        ours = {file.name for file in store.files}
        ours |= {other.relative_to(store.path).as_posix() for other in store.others}
        held = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
        if foreign := sorted(held - ours):
            raise ValueError(
                f"output {str(output)!r} holds {foreign[0]!r}, which is not of this store, so it "
                "is not replaced"
            )


def _cores(processes: Processes) -> int:
    """Threads for this process, where others may share the machine."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (able or 1) // processes.count)
