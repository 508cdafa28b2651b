"""Embedding into a file: part by part, so that it can stop and go on, and be shared.

The images are cut into parts, each a fixed number of batches, so that no batch depends on how many
processes there are or how often they were stopped. A part goes to a sealed file of its own in a
folder beside the output; once all are there, the output is put together from them, one part at a
time, and the folder goes.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.tensors import to_bytes
from nullspace_unlearn.data.source import Batch, Skipped, Source
from nullspace_unlearn.edit import Space
from nullspace_unlearn.features.embed import encode, made_with, skipped_files
from nullspace_unlearn.features.features import check_replaceable, file_header
from nullspace_unlearn.files import (
    claimed,
    new_file,
    read_json,
    refuse_existing,
    remove_folder,
)
from nullspace_unlearn.fingerprint import Fingerprint, code_of, in_words, machine
from nullspace_unlearn.header import layout, parse_header
from nullspace_unlearn.processes import Processes
from nullspace_unlearn.progress import progress
from nullspace_unlearn.sealed import SEALED, read_sealed, write_sealed

_FORMAT = "nullspace-unlearn parts 2"
_BATCHES = 8  # of a part
_JOB = "job.json"


def embed_to_file(
    clip: Clip,
    source: Source,
    path: str | Path,
    *,
    hidden: bool | None = None,
    batch_size: int = 64,
    workers: int = 2,
    overwrite: bool = False,
    processes: Processes | None = None,
    quiet: bool = False,
) -> None:
    """Embed the images of a set into a feature file, which `Features.load` reads.

    What is done is kept in the folder `PATH.parts`, and the same call goes on from there. The file
    is the same bytes however often that happened and however many processes shared the work, where
    these compute alike (one kind of machine, one number of threads). Memory holds a few batches and
    the names of the images, never the features of all.

    Args:
        clip: The model.
        source: The images.
        path: The file to write.
        hidden: Whether to keep the hidden features too, which an edit of the hidden space reads;
            absent: where the image tower has a final projection of its own.
        batch_size: Images per forward pass.
        workers: Threads that read images ahead.
        overwrite: Whether an existing file, and parts of another job, may be replaced.
        processes: Those that share the work; all must see the same folder. Absent: this one alone.
        quiet: Whether to leave out the progress bar on stderr.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        OutputInUse: If another process is making these parts.
        ValueError: If the parts are of another job (which says what differs), the model's weights
            are random or changed, a cell has files but no readable one, or the model gives NaN or
            Inf.
        OSError: If a part or the file cannot be written; the parts done are kept.
        WorkerLost: If another process died; the parts done are kept.
        SystemExit: If another process failed, which says why.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size and workers must be at least 1, got {batch_size}, {workers}")
    processes = processes or Processes()
    path = Path(path)
    kept_hidden = has_projection(clip) if hidden is None else hidden
    job = _Job(clip, source, kept_hidden, batch_size)
    parts = processes.step(lambda: _Parts(path.with_name(path.name + ".parts"), job))
    with processes.led(lambda: claimed(parts.folder)):
        _make(parts, path, overwrite, workers, processes, quiet)


def _make(
    parts: _Parts, path: Path, overwrite: bool, workers: int, processes: Processes, quiet: bool
) -> None:
    """Make the parts that are missing, and the file of them."""
    job = parts.job
    todo = processes.step(lambda: _begin(parts, path, overwrite, processes.leads))
    todo = processes.from_lead(todo).nonzero()[:, 0]
    processes.step(parts.check)
    mine: list[int] = todo[processes.rank :: processes.count].tolist()
    chosen = torch.cat([torch.empty(0, dtype=torch.int64), *map(job.images_of, mine)])
    some = job.source.subset(chosen)
    batches = some.batches(job.clip.preprocess, job.batch_size, workers, part=True)
    sizes = [len(job.images_of(part)) for part in todo.tolist()]
    bar = progress(
        total=len(job.source),
        initial=len(job.source) - sum(sizes),
        unit="image",
        hidden=quiet or not processes.leads,
        desc="embedding",
    )
    with closing(batches), bar:
        for first in range(0, len(todo), processes.count):
            part = mine.pop(0) if mine else None
            processes.step(partial(_embed_part, parts, part, batches))
            bar.update(sum(sizes[first : first + processes.count]))
    processes.step(lambda: _put_together(parts, path, overwrite) if processes.leads else None)


def has_projection(clip: Clip) -> bool:
    """Whether a model's image tower ends in a projection of its own, so that it hides more."""
    try:
        return clip.projection("visual").weight is not None
    except ValueError:
        return False


@dataclass(frozen=True, eq=False)
class _Job:
    """What is embedded, with what, in parts of how many images."""

    clip: Clip
    source: Source
    hidden: bool
    batch_size: int

    @property
    def size(self) -> int:
        return self.batch_size * _BATCHES

    @property
    def count(self) -> int:
        return -(-len(self.source) // self.size)

    def images_of(self, part: int) -> Int[Tensor, " n"]:
        return torch.arange(part * self.size, min((part + 1) * self.size, len(self.source)))

    def features(self, images: Float[Tensor, "n 3 rows columns"]) -> dict[str, Tensor]:
        """The rows of some images that the file keeps, by name."""
        spaces: tuple[Space, ...] = ("hidden",) if self.hidden else ()
        made = encode(self.clip, images, *spaces)
        rows = {{"embedding": "embeddings"}.get(name, name): row for name, row in made.items()}
        if not all(value.isfinite().all() for value in rows.values()):
            raise ValueError(f"the image tower of {self.clip.source.name} gives NaN or Inf")
        return rows

    def provenance(self) -> dict[str, Any]:
        """All that the features depend on."""
        if self.clip.changes or self.clip.source.sha256 is None:
            why = "been changed since it was loaded" if self.clip.changes else "random weights"
            raise ValueError(
                f"the model has {why}: a file could not say what its features were made with"
            )
        return {
            **made_with(self.clip),
            "batch_size": self.batch_size,
            "images": self.source.name,
            "contents": dict(self.source.fingerprint.facts),
        }

    def fingerprint(self) -> Fingerprint:
        """What all parts depend on; besides, each does on the contents of its own images."""
        some = self.source
        return Fingerprint(
            {
                "model": self.clip.fingerprint,
                "machine": machine(self.clip.device),
                "code": code_of("features.file"),
                "images": some.fingerprint.only("count", "cells"),
                "grid": {"classes": some.classes, "domains": some.domains},
                "batch_size": self.batch_size,
                "hidden": self.hidden,
            }
        )

    def contents_of(self, part: int) -> str:
        """What a part's images hold, as a hash."""
        return self.source.subset(self.images_of(part)).fingerprint.digest


class _Parts:
    """The folder with the parts of a job that are done.

    Args:
        folder: The folder.
        job: The job.
    """

    def __init__(self, folder: Path, job: _Job) -> None:
        self.folder, self.job = folder, job
        self.provenance, self.fingerprint = job.provenance(), job.fingerprint()

    def open(self, overwrite: bool) -> None:
        """Make the folder, or find it as this job left it."""
        if self._in_use():
            try:
                return self.check()
            except ValueError:
                # A folder without a job is nobody's parts, and not ours to remove.
                if not overwrite or not (self.folder / _JOB).is_file():
                    raise
                remove_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with new_file(self.folder / _JOB) as temporary:
            facts = {"format": _FORMAT, "facts": self.fingerprint.facts}
            temporary.write_text(json.dumps(facts, indent=2), encoding="utf-8")

    def check(self) -> None:
        """Refuse a folder that is another job's, or none's."""
        try:
            kept = read_json(self.folder / _JOB)
            theirs = Fingerprint(dict(kept["facts"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{str(self.folder)!r} is where the parts would be kept, and holds something else; "
                "move it, or name another --output"
            ) from None
        if differences := theirs.differences(self.fingerprint):
            raise ValueError(
                f"{str(self.folder)!r} holds parts of another job ({in_words(differences)}); "
                "finish that one, name another --output, or pass --overwrite"
            )

    def _in_use(self) -> bool:
        """Whether something is there besides what a full disk leaves of the job's file: nothing."""
        if not self.folder.is_dir():
            return self.folder.exists() or self.folder.is_symlink()
        return any(not file.name.startswith(".") for file in self.folder.iterdir())

    def files(self) -> dict[int, Path]:
        """The file of each part that is there."""
        names = ((SEALED.fullmatch(file.name), file) for file in sorted(self.folder.iterdir()))
        found = {int(name[1]): file for name, file in names if name and name[1].isdecimal()}
        return {part: file for part, file in found.items() if part < self.job.count}

    def missing(self) -> Int[Tensor, " parts"]:
        """1 for each part that is not there whole, or not of its images; such a one is removed."""
        missing = torch.ones(self.job.count, dtype=torch.int64)
        for part, file in self.files().items():
            try:
                if json.loads(read_sealed(file)[1])["contents"] != self.job.contents_of(part):
                    raise ValueError(f"images of part {part} have changed since it was made")
                missing[part] = 0
            except ValueError as error:
                warnings.warn(f"{error}; it is made again", stacklevel=2)
                file.unlink()
        return missing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say of a full disk what is kept."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{error.strerror or error}: {error.filename or self.folder}; "
                f"{len(self.files())} of {self.job.count} parts are done and kept, and the same "
                "command goes on from there"
            ) from None


def _begin(parts: _Parts, path: Path, overwrite: bool, leads: bool) -> Int[Tensor, " parts"]:
    """1 for each part that is to be made; only the leading process looks."""
    if not leads:
        return torch.zeros(parts.job.count, dtype=torch.int64)
    check_replaceable(path, overwrite)
    if path.is_dir():
        raise ValueError(f"output {str(path)!r} is a folder")
    parts.open(overwrite)
    return parts.missing()


def _embed_part(parts: _Parts, part: int | None, batches: Iterator[Batch]) -> None:
    """Embed the images of a part, which are what the next batches hold, and write it."""
    if part is None:  # the last round is not for all
        return
    job = parts.job
    rows: dict[str, list[Tensor]] = {"index": []}
    skipped: list[tuple[int, str]] = []
    for block in job.images_of(part).split(job.batch_size):
        batch = next(batches)
        lost = {one.picture: one.reason for one in batch.skipped}
        read = torch.tensor([job.source.pictures[i] not in lost for i in block.tolist()])
        rows["index"].append(block[read])
        skipped += [(i, lost[job.source.pictures[i]]) for i in block[~read].tolist()]
        if len(batch.indices):
            for name, value in job.features(batch.images).items():
                rows.setdefault(name, []).append(value)
    with parts.writing():
        tensors = {name: torch.cat(values) for name, values in rows.items()}
        note = {"skipped": skipped, "contents": job.contents_of(part)}
        write_sealed(parts.folder, str(part), tensors, json.dumps(note))


def _put_together(parts: _Parts, path: Path, overwrite: bool) -> None:
    """Write the file from the parts, and remove them."""
    job, files = parts.job, parts.files()
    lacking = [part for part in range(job.count) if part not in files]
    if lacking:
        raise ValueError(
            f"part {lacking[0]} is not in {str(parts.folder)!r}: all processes must see one folder"
        )
    kept, skipped, shapes = [], [], dict[str, tuple[int, int]]()
    for part in range(job.count):
        tensors, note = read_sealed(files[part])
        kept.append(tensors.pop("index"))
        lost = json.loads(note)["skipped"]
        skipped += [Skipped(job.source.pictures[i], reason) for i, reason in lost]
        for name, rows in sorted(tensors.items()):
            shapes[name] = shapes.get(name, (0, 0))[0] + len(rows), rows.shape[1]
    index = torch.cat(kept)
    try:
        job.source.check_cells(index, skipped)
    except ValueError:
        for part in range(job.count):  # so that images put right are looked at again
            if len(kept[part]) < len(job.images_of(part)):
                files[part].unlink()
        raise
    cells = {"labels": job.source.class_index, "domains": job.source.domain_index}
    provenance = {**parts.provenance, "skipped": skipped_files(skipped)}
    text = layout(
        {name: ("I64", (len(index),), 8 * len(index)) for name in cells}
        | {name: ("F32", shape, 4 * shape[0] * shape[1]) for name, shape in shapes.items()},
        file_header(job.source.classes, job.source.domains, provenance),
    )
    whole = parts.folder / "whole"
    with parts.writing(), new_file(whole, overwrite=True) as temporary, temporary.open("wb") as out:
        out.write(struct.pack("<Q", len(text.encode())) + text.encode())
        for name in parse_header(text).entries:
            if name in cells:
                out.write(to_bytes(cells[name][index]))
                continue
            for part in range(job.count):
                tensors, _ = read_sealed(files[part])
                out.write(to_bytes(tensors[name]) if name in tensors else b"")
    refuse_existing(path, overwrite)
    whole.replace(path)
    remove_folder(parts.folder)
