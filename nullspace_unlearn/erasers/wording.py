"""Directions in which other words move a forgotten name, as many as the dimension bears."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.linalg import leading_basis

# Singular values below this share of the largest are what wordings hardly differ in.
_HARDLY = 0.003


def borne(
    dim: int, names: Int[Tensor, "*batch"], kept: Int[Tensor, "*batch"]
) -> Int[Tensor, "*batch"]:
    """How many further directions an edit may take out of a space.

    A direction in which kept names do not differ costs them nothing. There are at least as many of
    these as dimensions exceed kept names, and a quarter of them is taken. Where there are none,
    every direction costs as much as one more forgotten name: there it is one for each name, and a
    64th of the space at most.

    Args:
        dim: Of the space.
        names: How many names each request forgets.
        kept: How many stay.

    Returns:
        The number, of each request.
    """
    return torch.maximum((dim - kept) // 4, names.clamp(max=dim // 64))


def with_wordings(
    basis: Float[Tensor, "*batch dim rank"],
    moves: Float[Tensor, "*batch p dim"],
    most: Int[Tensor, "*batch"],
) -> tuple[Float[Tensor, "*batch dim more"], Int[Tensor, "*batch"], Int[Tensor, "*batch"]]:
    """A basis, and the leading directions in which wordings move names outside of it.

    Args:
        basis: Orthonormal columns; those a member of the batch does not need are zero.
        moves: How wordings move the names, a row each; rows of zeros count for nothing.
        most: How many directions may join.

    Returns:
        The wider basis, how many directions joined, and how many there would have been.
    """
    rest = moves - (moves @ basis) @ basis.mT
    further, _ = leading_basis(rest, rtol=_HARDLY)
    there, taken = ((columns != 0).any(-2) for columns in (further, basis))
    room = basis.shape[-2] - 1 - taken.sum(-1)
    joins = there & (there.cumsum(-1) <= torch.minimum(most, room)[..., None])
    count = joins.sum(-1)
    wider = further[..., : int(count.max())] * joins[..., None, : int(count.max())]
    return torch.cat([basis, wider], -1), count, there.sum(-1)
