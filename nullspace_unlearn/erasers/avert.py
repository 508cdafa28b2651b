"""Avert: turn a name's text prototype away from every image, for edits of the text side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.method import Given, Method, said
from nullspace_unlearn.erasers.wording import answered, borne
from nullspace_unlearn.linalg import as_float64, solve_moment_of_kept, unit

# What kept names have in common, less what sets a forgotten one apart, is less than this of a name.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Numbers:
    """What `avert` must be told beside prototypes.

    Attributes:
        ridge: Relative ridge of what kept names pay, above 0.
        away: How far past the origin, above 0.
    """

    ridge: float = 0.01
    away: float = 0.3

    def __post_init__(self) -> None:
        if not self.ridge > 0 or not self.away > 0:
            raise ValueError(f"ridge and away must be above 0, got {self.ridge} and {self.away}")


def avert(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "*batch_or_none n dim"],
    *,
    ridge: float = Numbers.ridge,
    away: float = Numbers.away,
    wordings: Float[Tensor, "*batch m wordings dim"] | None = None,
) -> Edit:
    """Move forgotten text prototypes to where they say nothing, kept ones hardly at all.

    Text features are normalised after their projection, which undoes whatever makes a prototype
    shorter: one that was moved into the hull of the kept ones (`hull`) is stretched out of it
    again. What survives normalising is a direction. Names share a large common part that every
    image has some of, so a forgotten prototype is sent the other way, where it scores below the
    others. The mean of the kept names by itself would still tell: an image of the class has less
    of it than another. So what sets the class apart, `e_c = t_c - mean(keep)`, is taken out,

        p_c = mean(keep) - e_c (e_c · mean(keep)) / |e_c|²,  normalised

    and of all E the one stands behind the text tower, `t (I - E)`, that minimises

        Σ_c |t_c E - (t_c + away p_c)|² + Σ_c mean_w |t_cw E - (t_cw + away p_c)|² + tr(Eᵀ S E)

    with `t_cw` the name in other words and `S = RᵀR/n + ridge · tr(cov(R))/dim · I`: each wording
    goes to `-away p_c`, as far as kept names R pay nothing for it. There is no certificate: an
    image that scores below that with every kept name may yet be given a forgotten one.

    Args:
        forget: `[*batch, m, dim]` unit text prototypes.
        keep: `[n, dim]` shared by the batch, or `[*batch, n, dim]`: unit text prototypes that stay.
        ridge: Relative ridge of what kept names pay, above 0.
        away: How far past the origin, above 0.
        wordings: `[*batch, m, wordings, dim]`, how other words move each forgotten prototype. With
            these the edit takes as many directions more as `erasers.wording.borne` says.

    Returns:
        An edit of rank at most m for the text side (`Edit.fold(clip, "text")`), float64; of more
        with wordings.

    Raises:
        ValueError: If prototypes are not finite, dimensions differ, a number is out of range,
            nothing is kept, or kept names have nothing in common beside what is forgotten.
    """
    f, r = as_float64("forget", forget), as_float64("keep", keep)
    if f.ndim < 2 or f.shape[-2] == 0 or r.ndim not in (2, f.ndim) or r.shape[-2] == 0:
        raise ValueError(
            "expected forget [*batch, m, dim] and keep [n, dim] or [*batch, n, dim], none of them "
            f"empty, got {list(f.shape)} and {list(r.shape)}"
        )
    if f.shape[-1] != r.shape[-1]:
        raise ValueError(f"forget has {f.shape[-1]} dimensions and keep {r.shape[-1]}")
    numbers = Numbers(ridge, away)
    mean = r.mean(-2, keepdim=True)
    apart = f - mean
    size = apart.square().sum(-1, keepdim=True)
    common = mean - apart * (apart * mean).sum(-1, keepdim=True) / torch.where(size > 0, size, 1)
    if (torch.linalg.vector_norm(common, dim=-1) < _NOTHING).any():
        raise ValueError("kept names have nothing in common beside what sets a forgotten one apart")
    goal = away * torch.linalg.vector_norm(f, dim=-1, keepdim=True) * unit(common)
    rows, wanted, many = f, f + goal, f.shape[-2]
    batch, (n, dim) = f.shape[:-2], r.shape[-2:]
    most = torch.full(batch, many)
    if wordings is not None and wordings.shape[-2]:
        told = f[..., None, :] + as_float64("wordings", wordings)
        weight = wordings.shape[-2] ** -0.5
        rows = torch.cat([rows, weight * told.flatten(-3, -2)], -2)
        gone = weight * (told + goal[..., None, :])
        wanted = torch.cat([wanted, gone.flatten(-3, -2)], -2)
        most = most + borne(dim, most, torch.full(batch, n))
    turn, length, frame = torch.linalg.svd(rows, full_matrices=False)
    rows, wanted = length[..., None] * frame, turn.mT @ wanted
    kept = torch.ones(*batch, n, dtype=torch.bool)
    solved = n * solve_moment_of_kept(r, kept, ridge, rows.mT)
    edit, there = answered(rows, wanted, solved, most)
    provenance = said("avert", numbers, edit.rank)
    if wordings is not None:
        provenance["in_other_words"] = {"directions": edit.rank, "of": there}
    return Edit(edit.read, edit.write, provenance=provenance)


def _derive(given: Given, numbers: Numbers) -> Edit:
    def one(request: Given) -> Edit:
        told = request.told()
        forget, keep = told.rows[told.forgotten], told.rows[told.kept]
        return avert(forget, keep, ridge=numbers.ridge, away=numbers.away, wordings=request.moves)

    return given.one_by_one(one)


METHOD = Method(
    name="avert",
    title="turn a name away from every image",
    paradigms=("global",),
    sides=("text",),
    wordings=True,
    numbers=Numbers,
    derive=_derive,
)
