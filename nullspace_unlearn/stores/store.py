"""A store: one file of vectors, or a folder of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from nullspace_unlearn.stores.arrays import ArrayFile, npy_file, safetensors_file
from nullspace_unlearn.stores.change import Change
from nullspace_unlearn.stores.tables import TableFile, parquet_file

StoreFile: TypeAlias = ArrayFile | TableFile
SUFFIXES = (".npy", ".parquet", ".safetensors")


@dataclass(frozen=True)
class Store:
    """Files of vectors.

    Attributes:
        path: The file or folder.
        files: The files of vectors in it, by name.
        others: The files in a folder that hold none; they are copied.
    """

    path: Path
    files: tuple[StoreFile, ...]
    others: tuple[Path, ...] = ()

    @property
    def rows(self) -> int:
        """How many vectors there are."""
        return sum(file.rows for file in self.files)


def open_store(path: Path, change: Change, column: str | None = None) -> Store:
    """Look at what is to be edited.

    Args:
        path: A .npy, .parquet or .safetensors file, or a folder with such files at any depth.
        change: What is to be made of it.
        column: As for the files.

    Returns:
        The store.

    Raises:
        ValueError: If it is not there, is no store, or a file in it is damaged or of another width.
    """
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if not _hidden(p.relative_to(path)))
        if links := [p for p in inside if p.is_symlink() and not p.exists()]:
            raise ValueError(f"{str(links[0])!r} is a link that leads nowhere")
        found = [p for p in inside if p.is_file()]
        held = [p for p in found if p.suffix.lower() in SUFFIXES]
        others = tuple(p for p in found if p not in set(held))
    elif path.is_file():
        held, others = [path], ()
    else:
        raise ValueError(f"store {str(path)!r} is not there: name a file or a folder")
    if not held or any(file.suffix.lower() not in SUFFIXES for file in held):
        raise ValueError(
            f"store {str(path)!r} holds no vectors that can be read; allowed: "
            f"{', '.join(SUFFIXES)}, or a folder of such files"
        )
    root = path if path.is_dir() else path.parent
    files = _open(held, root, change, column)
    for file in files:
        file.check(change)
    return Store(path, files, others)


def _open(
    held: Sequence[Path], root: Path, change: Change, column: str | None
) -> tuple[StoreFile, ...]:
    files: list[StoreFile] = []
    for file in held:
        name, kind = file.relative_to(root).as_posix(), file.suffix.lower()
        if kind == ".npy":
            files.append(npy_file(file, name))
        elif kind == ".parquet":
            files.append(parquet_file(file, name, column))
        else:
            files.append(safetensors_file(file, name, column, change))
    return tuple(files)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
