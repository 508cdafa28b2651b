"""One weighted ridge regression at any ridge, and what it says of rows it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ridge:
    """`G = argmin sum_i weight_i |row_i G - target_i|² + ridge · scale · |G|²`, for any ridge.

    The rows are decomposed once; targets and ridges cost a product each.

    Attributes:
        rows: `[n, dim]`, float64.
        weight: `[n]`, above 0.
    """

    rows: Float[Tensor, "n dim"]
    weight: Float[Tensor, " n"]

    @cached_property
    def scale(self) -> Float[Tensor, ""]:
        """The weighted rows' sum of squares per dimension: what a ridge is relative to."""
        return (self.weight[:, None] * self.rows.square()).sum() / self.rows.shape[1]

    def solve(self, target: Float[Tensor, "n k"], ridge: float) -> Float[Tensor, "dim k"]:
        """The regression.

        Args:
            target: `[n, k]`, float64.
            ridge: Relative to `scale`, above 0.

        Returns:
            `[dim, k]`.
        """
        left, singular, right = self._parts
        shrunk = singular / (singular.square() + ridge * self.scale)
        return right.mT @ (shrunk[:, None] * (left.mT @ (self._root * target)))

    def held_out(
        self, target: Float[Tensor, "n k"], ridge: float, group: Int[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """What each group of rows is given by the regression on the other groups, in closed form.

        With the hat matrix H of the weighted rows, rows B left out have the residual
        `(I - H_BB)⁻¹ (y - H y)_B` (Allen's PRESS 1974 for one row; the same for a block). The ridge
        is what it is for all rows.

        Args:
            target: `[n, k]`, float64.
            ridge: Relative to `scale`, above 0.
            group: `[n]` rows that are left out together share a number.

        Returns:
            `[n, k]` predictions.
        """
        left, singular, _ = self._parts
        kept = (singular.square() / (singular.square() + ridge * self.scale)).sqrt()
        half = left * kept
        wanted = self._root * target
        residual = wanted - half @ (half.mT @ wanted)
        held = torch.empty_like(wanted)
        for one in group.unique():
            rows = (group == one).nonzero()[:, 0]
            part = half[rows]
            eye = torch.eye(len(rows), dtype=part.dtype, device=part.device)
            held[rows] = torch.linalg.solve(eye - part @ part.mT, residual[rows])
        return (wanted - held) / self._root

    @cached_property
    def _root(self) -> Float[Tensor, "n 1"]:
        return self.weight.sqrt()[:, None]

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.linalg.svd(self._root * self.rows, full_matrices=False)
