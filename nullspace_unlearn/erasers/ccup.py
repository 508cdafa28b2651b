"""CCUP: a quadratic trade-off between forgetting, keeping and changing little."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.method import Given, Method, said
from nullspace_unlearn.linalg import as_float64, solve_definite


@dataclass(frozen=True)
class Numbers:
    """What `ccup` must be told beside prototypes.

    Attributes:
        lam: Weight of forgetting, above 0.
        mu: Weight of keeping, at least 0.
    """

    lam: float = 100.0
    mu: float = 10.0

    def __post_init__(self) -> None:
        if not self.lam > 0 or not self.mu >= 0:
            raise ValueError(
                f"lam must be above 0 and mu at least 0, got lam={self.lam}, mu={self.mu}"
            )


def ccup(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "*batch_or_none n dim"],
    *,
    lam: float = 100.0,
    mu: float = 10.0,
) -> Edit:
    """Minimise `|M - I|² + lam |M F|² + mu |M R - R|²` in closed form.

    `read = F`, `write = lam G⁻¹ F` with `G = I + lam F Fᵀ + mu R Rᵀ` (columns of F and R are the
    prototypes): "Erasing CLIP Memories", arXiv 2512.14137. `mu = 0, lam → ∞` is `nullspace`.

    Args:
        forget: `[*batch, m, dim]` unit text prototypes to forget.
        keep: `[n, dim]` shared by the batch, or `[*batch, n, dim]`, to keep.
        lam: Weight of forgetting, above 0.
        mu: Weight of keeping, at least 0.

    Returns:
        An edit of rank m, float64.

    Raises:
        ValueError: If a prototype is not finite, dimensions differ, or a weight is out of range.
    """
    f, r = as_float64("forget", forget), as_float64("keep", keep)
    if f.shape[-1] != r.shape[-1]:
        raise ValueError(f"forget has {f.shape[-1]} dimensions and keep {r.shape[-1]}")
    numbers = Numbers(lam, mu)
    eye = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    kept = eye + mu * (r.mT @ r)
    # G⁻¹F lam = K⁻¹F (I/lam + FᵀK⁻¹F)⁻¹ with K = I + mu R Rᵀ, which a batch can share.
    factor = torch.linalg.cholesky(kept)
    solved = torch.cholesky_solve(f.mT, factor)
    small = torch.eye(f.shape[-2], dtype=f.dtype, device=f.device) / lam + f @ solved
    write = solve_definite(small, solved.mT).mT
    return Edit(
        read=f.mT.expand_as(write).contiguous(),
        write=write,
        provenance=said("ccup", numbers, write.shape[-1]),
    )


def _derive(given: Given, numbers: Numbers) -> Edit:
    def one(request: Given) -> Edit:
        told = request.told()
        forget, keep = told.rows[told.forgotten], told.rows[told.kept]
        return ccup(forget, keep, lam=numbers.lam, mu=numbers.mu)

    return given.one_by_one(one)


METHOD = Method(
    name="ccup",
    title="weigh forgetting, keeping and changing little",
    paper="arXiv 2512.14137",
    numbers=Numbers,
    derive=_derive,
)
