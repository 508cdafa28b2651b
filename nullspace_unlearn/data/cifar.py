"""CIFAR-10 and CIFAR-100 in their binary version, which needs no unpickling."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image

from nullspace_unlearn.data.names import spoken
from nullspace_unlearn.data.source import NO_DOMAIN, NO_DOMAIN_WORD, Source

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE  # bytes of a picture


@dataclass(frozen=True, slots=True)
class Record:
    """A picture of a binary file.

    Attributes:
        folder: Where the file lies.
        file: Its name.
        offset: Of the picture's first byte.
    """

    folder: Path
    file: str
    offset: int

    @property
    def name(self) -> str:
        """The file and the place in it."""
        return f"{self.file}:{self.offset}"

    def open(self) -> BinaryIO:
        """Its bytes: all red ones, all green ones, all blue ones."""
        with (self.folder / self.file).open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(_PIXELS))

    @property
    def holder(self) -> tuple[Path, Path]:
        """The folder and the file."""
        return self.folder, self.folder / self.file

    @property
    def place(self) -> tuple[int, int]:
        """Its first byte in the file, and how many they are."""
        return self.offset, _PIXELS

    def decode(self) -> Image.Image:
        """The image in RGB."""
        with self.open() as file:
            planes = np.frombuffer(file.read(), np.uint8).reshape(3, _SIDE, _SIDE)
        return Image.fromarray(planes.transpose(1, 2, 0).copy())

    def __str__(self) -> str:
        return f"{self.folder / self.file}:{self.offset}"


def is_cifar(folder: Path) -> bool:
    """Whether a folder holds either data set, in whichever version."""
    return any(any(folder.glob(name)) for name in ("train.bin", "data_batch_*"))


def read_cifar(
    folder: str | Path,
    part: Literal["train", "test"] = "test",
    class_words: Mapping[str, str] | None = None,
) -> Source:
    """Find the images of either.

    Args:
        folder: The folder that the archive unpacks to.
        part: Which part of them.
        class_words: Class name -> the word that prompts use for it, in place of the rule's.

    Returns:
        The images, in the files' order.

    Raises:
        ValueError: If a file is missing or cut short, or a label has no name; the version for
            Python is pickled, and never read.
    """
    folder = Path(folder)
    hundred = (folder / "train.bin").is_file()
    if hundred:
        files, names = [f"{part}.bin"], "fine_label_names.txt"
    else:
        train = sorted(path.name for path in folder.glob("data_batch_*.bin"))
        files = (train or ["data_batch_1.bin"]) if part == "train" else ["test_batch.bin"]
        names = "batches.meta.txt"
    missing = [name for name in (*files, names) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{str(folder)!r} lacks {missing[0]!r}: the binary version of CIFAR is needed (the one "
            "for Python is pickled, and never read)"
        )
    lines = (folder / names).read_text(encoding="utf-8").splitlines()
    folders = tuple(line.strip() for line in lines if line.strip())
    # CIFAR-100 has the coarse label first.
    labels, pictures = _records(folder, files, 2 if hundred else 1, len(folders))
    classes = spoken("class", folders, class_words)
    return Source(
        name=folder.name or folder.resolve().name,
        kind=f"the {part} images of CIFAR-{100 if hundred else 10}",
        classes=classes.words,
        domains=(NO_DOMAIN,),
        domain_words=(NO_DOMAIN_WORD,),
        class_index=torch.from_numpy(labels),
        domain_index=torch.zeros(len(labels), dtype=torch.int64),
        pictures=tuple(pictures),
        notes=classes.said,
    )


def _records(
    folder: Path, files: Sequence[str], ahead: int, classes: int
) -> tuple[np.ndarray, list[Record]]:
    """The labels and pictures of some files, with so many bytes of labels before each picture."""
    size = ahead + _PIXELS
    labels, pictures = [], []
    for file in files:
        raw = np.fromfile(folder / file, np.uint8)
        if not len(raw) or len(raw) % size:
            raise ValueError(
                f"{str(folder / file)!r} has {len(raw)} bytes, which is no number of records of "
                f"{size}: it is damaged, or not the binary version"
            )
        labels.append(raw[ahead - 1 :: size].astype(np.int64))
        pictures += [Record(folder, file, at + ahead) for at in range(0, len(raw), size)]
    joined = np.concatenate(labels)
    if joined.max() >= classes:
        raise ValueError(
            f"{str(folder)!r} has label {joined.max()}, and names {classes} classes: it is damaged"
        )
    return joined, pictures
