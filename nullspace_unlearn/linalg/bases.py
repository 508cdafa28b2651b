"""Rows: in float64, at unit norm, their leading directions, means of groups."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def as_float64(name: str, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in float64, refused where a decomposition could not be trusted.

    Args:
        name: What the tensor is, for the message.
        tensor: Any real floating tensor.

    Returns:
        The same numbers in float64.

    Raises:
        ValueError: If it is not floating, or holds NaN or Inf.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a floating point tensor, got {kind}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or Inf")
    return tensor.to(torch.float64)


def unit(rows: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
    """Rows scaled to unit norm; a zero row stays zero.

    Args:
        rows: `[*any, dim]`.

    Returns:
        `[*any, dim]`, same dtype.
    """
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norm.masked_fill(norm == 0, 1)


def leading_basis(
    rows: Float[Tensor, "*batch n dim"], energy: float = 1.0, rtol: float = 1e-6
) -> tuple[Float[Tensor, "*batch dim rank"], Float[Tensor, "*batch k"]]:
    """Leading right singular vectors of the rows, with a relative rank rule.

    Directions whose singular value is at most `rtol` times the largest are never kept; of the
    others, the fewest that hold a share `energy` of the sum of squares. In a batch the rank is the
    largest any member needs, and the columns that a member does not need are zero.

    Args:
        rows: `[*batch, n, dim]`, float64; n may exceed dim and the rows may be dependent.
        energy: Share of squared singular values to keep, in (0, 1].
        rtol: Relative cut-off that separates rank from rounding.

    Returns:
        Orthonormal columns `[*batch, dim, rank]` and all singular values `[*batch, min(n, dim)]`.
    """
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    squares = singular**2
    before = squares.cumsum(-1) - squares
    total = squares.sum(-1, keepdim=True)
    # The small slack keeps energy=1 from asking for the rounding error of the sum itself.
    needed = (before < total * (energy - 1e-12)) & (singular > rtol * singular[..., :1])
    rank = int(needed.sum(-1).max()) if needed.numel() else 0
    basis = right.mT[..., :rank] * needed[..., None, :rank]
    return basis, singular


def group_means(
    values: Float[Tensor, n * any], group: Int[Tensor, " n"], groups: int
) -> Float[Tensor, groups * any]:
    """Mean of the values of each group.

    Args:
        values: `[n, *any]`.
        group: `[n]` which group each belongs to.
        groups: Number of groups; one without values gives NaN.

    Returns:
        `[groups, *any]`, same dtype.
    """
    total = values.new_zeros(groups, *values.shape[1:]).index_add(0, group, values)
    count = torch.bincount(group, minlength=groups)
    return total / count.reshape(-1, *(1 for _ in values.shape[1:]))


def marked_first(marked: Bool[Tensor, "*batch n"]) -> Int[Tensor, "*batch most"]:
    """Where the marked rows of each member stand, and behind a shorter list a row not marked."""
    flat = marked.reshape(-1, marked.shape[-1])
    count = flat.sum(-1)
    most = int(count.max()) if len(flat) else 0
    row, column = flat.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    order = flat.to(torch.int8).argmin(-1, keepdim=True).repeat(1, most)
    order[row, place] = column
    return order.reshape(*marked.shape[:-1], most)
