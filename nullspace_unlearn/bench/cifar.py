"""CIFAR-10 and CIFAR-100 in their binary version, which needs no unpickling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from nullspace_unlearn.words import check_names

_SIDE = 32


@dataclass(frozen=True)
class CifarFiles:
    """The files of one of the two.

    Attributes:
        folder: Where they lie.
        classes: Names of the classes, blanks for underscores.
        names: The file that names them.
        train: Files of training pictures.
        test: Files of test pictures.
        ahead: Bytes of labels before each picture, the last of which counts: CIFAR-100 has the
            coarse label first.
    """

    folder: Path
    classes: tuple[str, ...]
    names: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    ahead: int

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [self.folder / name for name in (*self.train, *self.test, self.names)]

    def read(
        self, files: Sequence[str]
    ) -> tuple[UInt8[np.ndarray, "n rows columns 3"], Int[np.ndarray, " n"]]:
        """Pictures and labels of some of the files.

        Args:
            files: Their names.

        Raises:
            ValueError: If one is cut short, or a label has no name.
        """
        size = self.ahead + 3 * _SIDE * _SIDE
        parts = []
        for file in files:
            raw = np.fromfile(self.folder / file, np.uint8)
            if not len(raw) or len(raw) % size:
                raise ValueError(
                    f"{str(self.folder / file)!r} has {len(raw)} bytes, which is no number of "
                    f"records of {size}: it is damaged, or not the binary version"
                )
            parts.append(raw.reshape(-1, size))
        records = np.concatenate(parts)
        labels = records[:, self.ahead - 1].astype(np.int64)
        if labels.max() >= len(self.classes):
            raise ValueError(
                f"{str(self.folder)!r} has label {labels.max()}, and names {len(self.classes)} "
                "classes: it is damaged"
            )
        planes = records[:, self.ahead :].reshape(-1, 3, _SIDE, _SIDE)  # red, green, blue
        return planes.transpose(0, 2, 3, 1), labels


def find_cifar(folder: Path) -> CifarFiles:
    """Look for the files of either.

    Args:
        folder: The folder that the archive unpacks to.

    Returns:
        The files.

    Raises:
        ValueError: If one is missing; the version for Python is pickled, and never read.
    """
    if (folder / "train.bin").is_file():
        train, test, names, ahead = ["train.bin"], "test.bin", "fine_label_names.txt", 2
    else:
        train = sorted(path.name for path in folder.glob("data_batch_*.bin"))
        test, names, ahead = "test_batch.bin", "batches.meta.txt", 1
    missing = [name for name in (*train, test, names) if not (folder / name).is_file()]
    if missing or not train:
        raise ValueError(
            f"{str(folder)!r} lacks {(missing or ['data_batch_1.bin'])[0]!r}: the binary version "
            "of CIFAR is needed (the one for Python is pickled, and never read)"
        )
    lines = (folder / names).read_text(encoding="utf-8").splitlines()
    classes = tuple(line.strip().replace("_", " ") for line in lines if line.strip())
    check_names("class", classes)
    return CifarFiles(folder, classes, names, tuple(train), (test,), ahead)
