"""Nullspace projection: the faithful baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.method import Given, Method, Told, said
from nullspace_unlearn.linalg import as_float64, leading_basis


@dataclass(frozen=True)
class Numbers:
    """What `nullspace` must be told beside prototypes.

    Attributes:
        energy: Share of squared singular values to remove, in (0, 1].
    """

    energy: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], got {self.energy}")


def nullspace(
    forget: Float[Tensor, "*batch m dim"],
    *,
    energy: float = 1.0,
    centre: Float[Tensor, "*batch dim"] | None = None,
) -> Edit:
    """Project the forgotten prototypes' subspace out of the joint space.

    `forget = U S Vᵀ` (SVD), `W' = W (I - V_r V_rᵀ)` with the leading `r` right singular
    vectors: "Selective, Controlled and Domain-Agnostic Unlearning in Pretrained CLIP", arXiv
    2512.14113, section 3. The paper does not state the rank rule; here it is a relative one: the
    fewest directions that hold a share `energy` of the prototypes' squared singular values.

    Args:
        forget: `[*batch, m, dim]` prototypes (text, visual, or both stacked); any m >= 1, also
            dependent or more than dim. Scale does not matter beyond the rank rule.
        energy: Share of squared singular values to remove, in (0, 1].
        centre: `[*batch, dim]` subtracted from every prototype first (the vocabulary's mean is a
            useful one): what all names share is then left alone.

    Returns:
        An edit of rank at most `min(m, dim)`, float64.

    Raises:
        ValueError: If the prototypes are empty, not finite, all zero, or span the whole space.
    """
    rows = as_float64("forget", forget)
    if rows.ndim < 2 or rows.shape[-2] == 0:
        raise ValueError(f"forget must be [*batch, m, dim] with m >= 1, got {list(rows.shape)}")
    numbers = Numbers(energy)
    if centre is not None:
        rows = rows - as_float64("centre", centre)[..., None, :]
    basis, _ = leading_basis(rows, energy)
    if basis.shape[-1] == 0 or not basis.abs().amax((-2, -1)).all():
        raise ValueError("the edit would remove nothing: a request's prototypes are all zero")
    if basis.shape[-1] == basis.shape[-2]:
        raise ValueError("the edit would remove everything: the prototypes span the whole space")
    return Edit(read=basis, write=basis, provenance=said("nullspace", numbers, basis.shape[-1]))


def _derive(given: Given, numbers: Numbers) -> Edit:
    rows = given.told().padded()
    if given.seen is not None:
        means, labels, domains = given.seen.cell_means()
        gone = given.forgets(labels, domains)
        rows = torch.cat([rows, Told(means, gone, ~gone).padded()], -2)
    return nullspace(rows, energy=numbers.energy)


METHOD = Method(
    name="nullspace",
    title="project the forgotten prototypes out",
    paper="arXiv 2512.14113",
    images="may",
    prompts_beside_images=True,
    numbers=Numbers,
    derive=_derive,
)
