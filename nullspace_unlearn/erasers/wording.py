"""Directions in which other words move a forgotten name, as many as the dimension bears."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.linalg import leading_basis

# Singular values below this share of the largest are what wordings hardly differ in.
_HARDLY = 0.003


def borne(dim: int, names: int, kept: int) -> int:
    """How many further directions an edit may take out of a space.

    A direction in which kept names do not differ costs them nothing. There are at least as many of
    these as dimensions exceed kept names, and a quarter of them is taken. Where there are none,
    every direction costs as much as one more forgotten name: there it is one for each name, and a
    64th of the space at most.

    Args:
        dim: Of the space.
        names: How many names are forgotten.
        kept: How many stay.

    Returns:
        The number.
    """
    return max((dim - kept) // 4, min(names, dim // 64))


def with_wordings(
    basis: Float[Tensor, "*batch dim rank"],
    moves: Float[Tensor, "*batch p dim"],
    most: int,
) -> tuple[Float[Tensor, "*batch dim more"], int]:
    """A basis, and the leading directions in which wordings move names outside of it.

    Args:
        basis: Orthonormal columns; those a member of the batch does not need are zero.
        moves: How wordings move the names, a row each; rows of zeros count for nothing.
        most: How many directions may join, in all.

    Returns:
        The wider basis, and how many directions there would have been.
    """
    rest = moves - (moves @ basis) @ basis.mT
    further, _ = leading_basis(rest, rtol=_HARDLY)
    there = further.shape[-1]
    room = basis.shape[-2] - 1 - basis.shape[-1]
    return torch.cat([basis, further[..., : max(0, min(most, room))]], -1), there
