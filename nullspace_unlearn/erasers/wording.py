"""What other words make of a forgotten name is held down, as far as kept names allow."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.linalg import Spread, as_float64, solve_moment_of_kept

# How much a wording's mean square counts beside that of the kept names' scores, and the ridge of
# these relative to how names vary. Both on development images of three small models: with less of
# either wordings come back, with more searches by kept names find less.
_WEIGHT, _RIDGE = 3.0, 0.1
# Directions of which less than this share would be taken out are left.
_HARDLY = 0.02


def borne(
    dim: int, names: Int[Tensor, "*batch"], kept: Int[Tensor, "*batch"]
) -> Int[Tensor, "*batch"]:
    """In how many directions at most wordings may be held down.

    Kept names do not differ in as many directions as dimensions exceed them. Where there are none
    of these, every direction is one that tells kept names apart: there it is one for each name, and
    a 64th of the space at most.

    Args:
        dim: Of the space.
        names: How many names each request forgets.
        kept: How many stay.

    Returns:
        The number, of each request.
    """
    return torch.maximum(dim - kept, names.clamp(max=dim // 64))


def in_other_words(
    edit: Edit,
    moves: Float[Tensor, "*batch p dim"],
    names: Int[Tensor, "*batch"],
    keep: Float[Tensor, "n dim"],
    kept: Bool[Tensor, "*batch n"],
    spread: Spread | None = None,
) -> Edit:
    """An edit that forgets names, and what stands before it so that other words do not find them.

    With the edit's operator H and the moves `m` that it leaves, `H m`, of all F the one that
    minimises

        weight · mean_m |H m - F H m|² + tr(F S Fᵀ),   S = RᵀR/n + ridge · tr(cov(R))/dim · I

    stands before it, `M = (I - F) H`: kept names R keep their scores on every image, and images
    their lengths, by which searches find them, as far as that goes (`S`). `F = A (I + Aᵀ S⁻¹ A)⁻¹
    Aᵀ S⁻¹` with the weighted moves in the columns of A. Whatever H makes equal stays so: `M t_c =
    (I - F) H t_c`. To take the same directions out whole lengthens images by what they differ in
    there, and searches by kept names then find the wrong ones.

    Args:
        edit: An edit of names, of the embedding; its provenance says its numbers (`method.said`).
        moves: How wordings move the names, beyond how they move any name; rows of zeros count for
            nothing.
        names: How many names each request forgets.
        keep: `[n, dim]` prototypes that stay, float64.
        kept: Which of them each request keeps.
        spread: That of `keep`, where it is at hand.

    Returns:
        The composed edit, with the edit's provenance, and how many of how many directions were
        held down.

    Raises:
        ValueError: If moves are not finite.
    """
    moves = as_float64("wordings", moves)
    left = moves - (moves @ edit.write) @ edit.read.mT
    many = (moves != 0).any(-1).sum(-1)
    _, size, frame = torch.linalg.svd(left, full_matrices=False)
    scale = _WEIGHT / many.clamp(min=1)
    rows = (size * scale[..., None].sqrt())[..., None] * frame  # AᵀA' is theirs too
    count = kept.sum(-1)[..., None, None]
    solved = count * solve_moment_of_kept(keep, kept, _RIDGE, rows.mT, spread)
    most = borne(keep.shape[-1], names, kept.sum(-1))
    held, there = answered(rows, rows, solved, most)
    both = held @ edit
    told = {
        "numbers": {**edit.provenance["numbers"], "rank": both.rank},
        "in_other_words": {"directions": held.rank, "of": there},
    }
    return replace(both, provenance={**edit.provenance, **told})


def answered(
    rows: Float[Tensor, "*batch p dim"],
    wanted: Float[Tensor, "*batch p dim"],
    solved: Float[Tensor, "*batch dim p"],
    most: Int[Tensor, "*batch"],
) -> tuple[Edit, int]:
    """The ridge regression that takes `wanted` off where it meets `rows`, in few directions.

    Of all E the one that minimises `|rows E - wanted|² + tr(Eᵀ S E)`, as `write readᵀ`: by the
    eigenvectors of `rows S⁻¹ rowsᵀ`, of which those count that are answered at all.

    Args:
        rows: What is met, float64, weighed.
        wanted: What is to be taken off there, weighed alike.
        solved: `S⁻¹ rowsᵀ`.
        most: In how many directions at most, the strongest first.

    Returns:
        The edit, and how many directions are answered at all, in the request with most.
    """
    strength, turn = torch.linalg.eigh(rows @ solved)
    strength, turn = strength.flip(-1).clamp(min=0), turn.flip(-1)
    there = strength / (1 + strength) > _HARDLY
    joins = there & (there.cumsum(-1) <= most[..., None])
    some = slice(int(joins.sum(-1).max()))
    turn = (turn * joins[..., None, :])[..., some]
    edit = Edit(read=wanted.mT @ turn, write=solved @ turn / (1 + strength)[..., None, some])
    return edit, int(there.sum(-1).max())
