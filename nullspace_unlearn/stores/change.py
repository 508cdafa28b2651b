"""What patches make of a block of stored embeddings, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nullspace_unlearn.patch import Patch

Lengths = Literal["unit", "linear"]
UNIT = 1e-3
"""How far a row's length may be from 1 to count as normalised; half precision rounds by less."""
_NAMED = 5  # rows in a message


@dataclass(frozen=True)
class Seen:
    """What was met in some rows.

    Attributes:
        rows: How many there were.
        normalised: How many of them were of length 1, and are so again.
        bad: How many held NaN or Inf, and stand as they were.
        named: Where the first of these are: the file, and the row in it from 0.
    """

    rows: int = 0
    normalised: int = 0
    bad: int = 0
    named: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.rows + other.rows,
            self.normalised + other.normalised,
            self.bad + other.bad,
            (*self.named, *other.named)[:_NAMED],
        )

    @property
    def bad_in_words(self) -> str:
        """How many rows held NaN or Inf, and where the first are."""
        where = "; ".join(f"{file} row {row}" for file, row in self.named)
        more = f" and {self.bad - len(self.named)} more" if self.bad > len(self.named) else ""
        return f"{self.bad} of {self.rows} rows hold NaN or Inf ({where}{more})"


@dataclass(frozen=True, eq=False)
class Change:
    """Patches for embeddings, one after another.

    Half precision and float32 are computed in float32, float64 in float64, and each row is rounded
    once at the end: a float16 store is at most one unit in the last place away from what float64
    arithmetic would give.

    Attributes:
        patches: Patches of the embedding, all of one side.
        lengths: "unit": a row of length 1 (`UNIT`) leaves with length 1; other rows keep the length
            that the edit gives them. "linear": every row does.
    """

    patches: tuple[Patch, ...]
    lengths: Lengths = "unit"

    def __post_init__(self) -> None:
        for patch in self.patches:
            _check_acts_on_embeddings(patch)
        if len({patch.side for patch in self.patches}) > 1:
            raise ValueError(
                "some patches edit the image tower and some the text tower: apply those to stored "
                "images and these to stored texts, apart"
            )
        if len({patch.write.shape[0] for patch in self.patches}) > 1:
            widths = ", ".join(str(patch.write.shape[0]) for patch in self.patches)
            raise ValueError(f"the patches are for embeddings of different widths: {widths}")

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return int(self.patches[0].write.shape[0])

    def check_width(self, width: int, what: str) -> None:
        """Refuse vectors of another width.

        Args:
            width: Theirs.
            what: What they are called.

        Raises:
            ValueError: If it is not the patches'.
        """
        if width != self.width:
            raise ValueError(
                f"{what} holds vectors of {width} dimensions, and the patch is for {self.width}"
            )

    def of(self, rows: np.ndarray, file: str = "", first: int = 0) -> tuple[np.ndarray, Seen]:
        """Edit some rows.

        Args:
            rows: `[n, width]` float16, float32 or float64; not changed.
            file: What they are from, for `Seen`.
            first: The number of the first of them there.

        Returns:
            `[n, width]` edited rows in the same dtype, those with NaN or Inf as they were; and what
            was met.
        """
        wide = np.float64 if rows.dtype.itemsize == 8 else np.float32
        edited = rows.astype(wide)
        with np.errstate(all="ignore"):  # rows of NaN are dealt with below
            before = _squares(edited)
            bad = np.flatnonzero(~np.isfinite(before))
            bad = bad[~np.isfinite(rows[bad]).all(axis=1)]
            for read, write in self._matrices(wide):
                edited -= (edited @ read) @ write.T
            normalised = 0
            if self.lengths == "unit":
                unit = np.flatnonzero(np.abs(np.sqrt(before) - 1) <= UNIT)
                normalised = len(unit)
                scale = np.ones_like(before)
                after = np.sqrt(_squares(edited)[unit])
                scale[unit] = np.where(after > 0, 1 / np.where(after > 0, after, 1), 1)
                edited *= scale[:, None]
            out = edited.astype(rows.dtype)
        out[bad] = rows[bad]
        named = tuple((file, first + int(row)) for row in bad[:_NAMED])
        return out, Seen(len(rows), normalised, len(bad), named)

    def _matrices(self, dtype: type[np.floating]) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = []
        for patch in self.patches:
            thin = patch.read.astype(dtype), patch.write.astype(dtype)
            # The text takes an edit transposed.
            pairs.append(thin if patch.side == "visual" else thin[::-1])
        return pairs


def change(patches: Sequence[Patch], lengths: Lengths = "unit") -> Change:
    """What patches make of embeddings.

    Args:
        patches: At least one.
        lengths: As `Change.lengths`.

    Raises:
        ValueError: If there is none, one does not act on embeddings, or they are of different
            sides or widths.
    """
    if not patches:
        raise ValueError("there is no patch to apply")
    return Change(tuple(patches), lengths)


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _check_acts_on_embeddings(patch: Patch) -> None:
    if patch.space != "embedding":
        raise ValueError(
            f"the edit for {patch.title} reads the {patch.space} feature, which a store of "
            "embeddings does not hold: apply it to the model (nsu apply PATCH --model M --output "
            "OUT) and embed the images again (nsu embed --model OUT), or erase anew with --space "
            "embedding"
        )
    if patch.read.ndim != 2 or patch.read.shape != patch.write.shape:
        raise ValueError(f"{patch!r} is no single edit of embeddings")
