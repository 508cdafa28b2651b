"""Stores that are one array in a file: .npy, and .safetensors. Their rows are edited in place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from nullspace_unlearn.header import Header, opening, read_header
from nullspace_unlearn.stores.change import Change, Seen

_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_UNIT = 64 << 20  # bytes after which what is done is noted
_BLOCK = 1 << 20  # bytes that a thread has in hand


@dataclass(frozen=True)
class ArrayFile:
    """Rows at a place in a file.

    Attributes:
        path: The file.
        name: What it is called in its store.
        dtype: Of its numbers.
        shape: Rows and width.
        start: Offset of the first row.
        head: What the edited file begins with, in place of the bytes before `body`.
        body: Offset of what is copied as it is: the other tensors, and the rows until edited.
    """

    path: Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, int]
    start: int
    head: bytes
    body: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.shape[0]

    @property
    def units(self) -> int:
        """Into how many parts the work falls."""
        return max(1, -(-self.rows // self._unit_rows))

    def rows_of(self, unit: int) -> int:
        """How many rows a part has."""
        return min(self._unit_rows, self.rows - unit * self._unit_rows)

    def check(self, change: Change) -> None:
        """Refuse vectors of another width."""
        change.check_width(self.shape[1], self.name)

    def check_alike(self, other: Path) -> None:
        """Refuse to replace a file that is no such store."""
        try:
            if self.path.suffix.lower() == ".npy":
                alike = npy_file(other, other.name).shape[1] == self.shape[1]
            else:
                names = [read_header(file).entries.keys() for file in (other, self.path)]
                alike = names[0] == names[1]
        except ValueError:
            alike = False
        if not alike:
            raise ValueError(f"output {str(other)!r} is no such store, so it is not replaced")

    def prepare(self, target: Path) -> None:
        """Lay the edited file out, its rows to come."""
        target.parent.mkdir(parents=True, exist_ok=True)
        stop = self.start + self.rows * self._row_bytes
        with self.path.open("rb") as source, target.open("wb") as out:
            out.write(self.head)
            source.seek(self.body)
            _copy(source, out, self.start - self.body)
            out.seek(stop - self.start, 1)
            source.seek(stop)
            shutil.copyfileobj(source, out)
            out.truncate()

    def size(self) -> int:
        """Bytes of the edited file."""
        return len(self.head) + self.path.stat().st_size - self.body

    def edit(self, unit: int, target: Path, change: Change, pool: Executor) -> Seen:
        """Edit a part.

        Args:
            unit: Which.
            target: The edited file, laid out.
            change: What is made of the rows.
            pool: Threads that share them.

        Returns:
            What was met.
        """
        first = unit * self._unit_rows
        last = first + self.rows_of(unit)
        step = max(1, _BLOCK // max(self._row_bytes, 1))
        work = partial(self._edit_rows, target, change, last, step)
        seen = list(pool.map(work, range(first, last, step)))
        with target.open("rb+") as out:
            os.fsync(out.fileno())
        return reduce(add, seen, Seen())

    def _edit_rows(self, target: Path, change: Change, last: int, step: int, first: int) -> Seen:
        n = min(step, last - first)
        at, shift = self.start + first * self._row_bytes, len(self.head) - self.body
        # Mapped block by block: what is mapped counts as the process's memory.
        shape = n, self.shape[1]
        rows = np.memmap(self.path, self.dtype, "r", at, shape)
        out, seen = change.of(rows, self.name, first)
        with target.open("rb+") as file:  # a mapping would not tell of a full disk, but die
            file.seek(at + shift)
            file.write(out.data)
        return seen

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    @property
    def _unit_rows(self) -> int:
        return max(1, _UNIT // max(self._row_bytes, 1))


def npy_file(path: Path, name: str) -> ArrayFile:
    """Look at a .npy file.

    Args:
        path: The file.
        name: What it is called in its store.

    Raises:
        ValueError: If it is damaged, pickled, or no array of vectors.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # whose words advise to unpickle it
        raise ValueError(f"{name} is no .npy file of numbers: damaged, or pickled") from None
    if not isinstance(array, np.memmap):
        raise ValueError(f"{name} holds several arrays: a store is one")
    _check_vectors(name, array.dtype, array.shape)
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} is stored by columns: save it by rows (np.ascontiguousarray)")
    start = int(array.offset)
    with path.open("rb") as file:
        head = file.read(start)
    return ArrayFile(path, name, array.dtype, array.shape, start, head, start)


def safetensors_file(path: Path, name: str, column: str | None, change: Change) -> ArrayFile:
    """Look at a .safetensors file.

    Args:
        path: The file.
        name: What it is called in its store.
        column: Which tensor holds the vectors; absent: "embeddings", or the only one of vectors.
        change: What is to be made of it, which a feature file says of itself from then on.

    Raises:
        ValueError: If it is damaged, or which tensor is meant does not show.
    """
    header = read_header(path)
    vectors = [k for k, e in header.entries.items() if e.dtype in _DTYPES and len(e.shape) == 2]
    if column is None:
        column = "embeddings" if "embeddings" in vectors else None
        if column is None and len(vectors) != 1:
            listed = ", ".join(vectors) or "none"
            raise ValueError(f"say with --column which tensor of {name} holds vectors: {listed}")
        column = column or vectors[0]
    if column not in header.entries:
        listed = ", ".join(header.entries) or "nothing"
        raise ValueError(f"{name} holds no tensor {column!r}; it holds {listed}")
    entry = header.entries[column]
    if entry.dtype not in _DTYPES:
        raise ValueError(f"{column!r} in {name} is {entry.dtype}; allowed: F16, F32, F64")
    dtype = np.dtype(_DTYPES[entry.dtype])
    _check_vectors(name, dtype, entry.shape)
    rows, width = entry.shape
    start = header.offset + entry.start
    text = _told(header, change)
    head = opening(text)
    return ArrayFile(path, name, dtype, (rows, width), start, head, header.offset)


def _told(header: Header, change: Change) -> str:
    """The header; a feature file's says what was done, so that it is not taken for the model's."""
    try:
        provenance = json.loads(header.metadata["provenance"])
        edits = provenance["made_with"]["edits"]
        before = edits[change.patches[0].side]
    except (KeyError, ValueError, TypeError):
        return header.text
    digests = "".join([str(before), *(patch.digest for patch in change.patches)])
    edits[change.patches[0].side] = "patched " + hashlib.sha256(digests.encode()).hexdigest()
    metadata = {**header.metadata, "provenance": json.dumps(provenance)}
    said = {**json.loads(header.text), "__metadata__": metadata}
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)


def _check_vectors(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(
            f"{name} holds {dtype} of shape {list(shape)}; a store is [n, dim] of float16, float32 "
            "or float64"
        )


def _copy(source: Any, out: Any, size: int) -> None:
    while size > 0 and (block := source.read(min(size, _BLOCK))):
        out.write(block)
        size -= len(block)
