"""Ridge regression of several sources that write together, each into a subspace of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.linalg.held_out import Ridge

_EXACT = 1e-8
_ROUNDS = 1000


@dataclass(frozen=True, eq=False)
class CoupledRidge:
    """`B = argmin Σ_i weight_i |Σ_h row_ih B_h U_hᵀ - target_i|² + λ Σ_h |B_h|²`, for any ridge.

    With Gram matrices `K_h` of the weighted rows and `P_h = U_h U_hᵀ`, its solution is
    `B_h = X_hᵀ Λ U_h` with `Σ_h K_h Λ P_h + λ Λ = target`: n · dim unknowns, and no system of
    source · r of them. It is solved by conjugate gradients (Hestenes & Stiefel 1952),
    preconditioned by what it would be if all heads had the mean projection.

    λ is the ridge, times `scale`, times the share of the joint space that a source writes in the
    mean: as much as an ordinary ridge would shrink if each could write all of it.

    Attributes:
        rows: `[n, heads, source]`, float64.
        weight: `[n]`, above 0.
        bases: `[heads, dim, r]` orthonormal columns U_h, or zeros where a source writes less.
    """

    rows: Float[Tensor, "n heads source"]
    weight: Float[Tensor, " n"]
    bases: Float[Tensor, "heads dim r"]

    @cached_property
    def scale(self) -> Float[Tensor, ""]:
        """The weighted rows' sum of squares per dimension of one source."""
        return self._gram.diagonal(dim1=-2, dim2=-1).sum() / self.rows.shape[-1]

    def solve(
        self, target: Float[Tensor, "n dim"], ridge: float
    ) -> Float[Tensor, "heads source r"]:
        """The regression.

        Args:
            target: `[n, dim]`, float64.
            ridge: Relative to `scale`, above 0.

        Returns:
            `[heads, source, r]`.
        """
        share = self.bases.square().sum() / self.bases[..., 0].numel()
        strength = ridge * self.scale * share
        energy, frame, part, axes = self._mean
        damped = energy[:, None] * part + strength

        def preconditioned(rest: Tensor) -> Tensor:
            return frame @ ((frame.mT @ rest @ axes) / damped) @ axes.mT

        wanted = self._root * target
        dual, rest = torch.zeros_like(wanted), wanted
        step = better = preconditioned(rest)
        lead = (rest * better).sum()
        for _ in range(_ROUNDS):
            if rest.norm() <= _EXACT * wanted.norm():
                break
            moved = self._applied(step) + strength * step
            length = lead / (step * moved).sum()
            dual, rest = dual + length * step, rest - length * moved
            better = preconditioned(rest)
            before, lead = lead, (rest * better).sum()
            step = better + lead / before * step
        return self._weighted.mT @ (dual @ self.bases)

    def held_out(
        self, target: Float[Tensor, "n dim"], ridge: float, group: Int[Tensor, " n"]
    ) -> Float[Tensor, "n dim"]:
        """What each group of rows is given by the regression on the others (`Ridge.held_out`).

        Of the regression in which every source may write all of the joint space: there it is
        closed form, and what is reached differs little.

        Args:
            target: `[n, dim]`, float64.
            ridge: As for `solve`.
            group: `[n]` rows that are left out together share a number.

        Returns:
            `[n, dim]` predictions.
        """
        energy, frame, _, _ = self._mean
        rows = frame * (energy * len(self.bases)).sqrt() / self._root  # the same Gram matrix
        return Ridge(rows, self.weight).held_out(
            target, ridge * len(rows) / self.rows.shape[-1], group
        )

    @cached_property
    def _root(self) -> Float[Tensor, "n 1"]:
        return self.weight.sqrt()[:, None]

    @cached_property
    def _weighted(self) -> Float[Tensor, "heads n source"]:
        return (self._root[..., None] * self.rows).transpose(0, 1).contiguous()

    @cached_property
    def _gram(self) -> Float[Tensor, "heads n n"]:
        return self._weighted @ self._weighted.mT

    @cached_property
    def _mean(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Eigenvalues and vectors of the mean Gram matrix, and of the projections' sum."""
        energy, frame = torch.linalg.eigh(self._gram.mean(0))
        part, axes = torch.linalg.eigh((self.bases @ self.bases.mT).sum(0))
        return energy.clamp(min=0), frame, part.clamp(min=0), axes

    def _applied(self, dual: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        return ((self._gram @ (dual @ self.bases)) @ self.bases.mT).sum(0)
