"""Level: a name scores its own images as it scores others, at the least cost for many names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.hull import names_to_move
from nullspace_unlearn.erasers.method import Given, Method, said
from nullspace_unlearn.linalg import (
    covariance,
    regularised,
    solve_covariance_of_kept,
    solve_definite,
)

READ_RIDGE = 15.0
"""Ridge of what is read, relative to the variance of kept names in a direction. Large: only the few
directions in which names, and so images, vary most are read less."""

WRITE_RIDGE = 0.01
"""Relative ridge of what is written."""

NEAR = 0.25
"""How much of the write metric is that of the names that answer to the reading direction."""

# A displacement shorter than this is no displacement.
_NOWHERE = 1e-9
# Numbers held at once by one chunk of metrics.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Numbers:
    """What `level` must be told beside prototypes.

    Attributes:
        read_ridge: Relative ridge of the read metric, above 0.
        write_ridge: Relative ridge of the write metric, above 0.
        near: Share of the write metric that the names near a forgotten one make up, in [0, 1).
    """

    read_ridge: float = READ_RIDGE
    write_ridge: float = WRITE_RIDGE
    near: float = NEAR

    def __post_init__(self) -> None:
        if not self.read_ridge > 0 or not self.write_ridge > 0 or not 0 <= self.near < 1:
            raise ValueError(
                "read_ridge and write_ridge must be above 0 and near lie in [0, 1), got "
                f"{self.read_ridge}, {self.write_ridge} and {self.near}"
            )


def level(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "*batch_or_none n dim"],
    *,
    keep_mask: Bool[Tensor, "*batch n"] | None = None,
    read_ridge: float = READ_RIDGE,
    write_ridge: float = WRITE_RIDGE,
    near: float = NEAR,
) -> Edit:
    """Take from each forgotten name's score what sets its own images apart, and no more.

    `hull` asks that a forgotten name scores a mixture of kept names on *every* image. It must then
    be exact in all dimensions for all forgotten names at once, and a hundred of them pay for one
    another. That a name says nothing asks for one number a name: with `e_c = t_c - mean(keep)`,
    along which its images lie apart from others,

        e_cᵀ M e_c = 0        M = I - read writeᵀ

    (the more an image has of `e_c`, the name leads the mean kept name by no more and no less). Of
    all `M` that do this, the one that changes kept names' scores `t_k` on images z least, in the
    mean square `tr(S E C Eᵀ)`, `E = I - M`, S the images' second moment and C the names', is

        E = Σ_c λ_c a_c b_cᵀ,   a_c = S⁻¹e_c,   b_c = C⁻¹e_c,   (AᵀF ∘ BᵀF)ᵀ λ = |e_c|²

    with F the columns `e_c`: m equations in m unknowns, in which the forgotten names neither push
    one another down nor share out dimensions. Two things are known of S and C without an image. S
    is like the names' covariance, but images vary in more directions than names do: hence the large
    read_ridge. And an image that answers to `a_c` is one of a name that does, whose rivals are such
    names too: so C is a mixture, with share `near`, of the covariance of all kept names and that
    of kept names weighted by the square of their answer `a_c·(t_k - mean)`, for each c its own.

    Numbers were picked on choices among the even ImageNet classes, so that 10 and 100 classes leave
    at most .05; no figure is reported on such choices.

    Args:
        forget: `[*batch, m, dim]` unit text prototypes; rows of zeros fill up the shorter requests
            of a ragged batch, and count for nothing.
        keep: `[n, dim]` shared by the whole batch, or `[*batch, n, dim]`: unit text prototypes of
            the vocabulary whose recognition must stay.
        keep_mask: `[*batch, n]`, which names of the vocabulary each request keeps; absent: all.
        read_ridge: Relative ridge of the read metric, above 0.
        write_ridge: Relative ridge of the write metric, above 0.
        near: Share of the near names in the write metric, in [0, 1).

    Returns:
        An edit of rank m, float64. It has no certificate: on some image the name may win.

    Raises:
        ValueError: If prototypes are not finite, dimensions differ, a number is out of range,
            nothing is kept, or a forgotten name is the mean of the kept ones.
    """
    f, r, kept, same = names_to_move(forget, keep, keep_mask)
    numbers = Numbers(read_ridge, write_ridge, near)
    share = kept.to(r.dtype) / kept.sum(-1, keepdim=True)
    middle = share[..., None, :] @ r
    named = torch.linalg.vector_norm(f, dim=-1) > 0
    apart = (f - middle) * named[..., None]
    distance = torch.linalg.vector_norm(apart, dim=-1)
    if not named.any(-1).all() or (named & (distance <= _NOWHERE)).any():
        raise ValueError("the edit would remove nothing: a forgotten name is the mean of kept ones")
    read = solve_covariance_of_kept(r, kept, read_ridge, apart.mT)
    answer = ((r - middle) @ read).mT.square() * kept[..., None, :]
    total = answer.sum(-1, keepdim=True)
    close = torch.where(total > 0, answer / total.masked_fill(total == 0, 1), share[..., None, :])
    weight = (1 - near) * share[..., None, :] + near * close
    write = _solve(r, weight, write_ridge, apart).mT
    # A name given twice, or a row of zeros, has no equation of its own: the least solution.
    system = (apart @ read) * (apart @ write)
    size = torch.linalg.pinv(system, rtol=1e-10) @ distance.square()[..., None]
    return Edit(
        read=read * size.mT,
        write=write,
        provenance={
            **said("level", numbers, f.shape[-2]),
            "same_to_the_model": int(same.sum()),
        },
    )


def _solve(
    rows: Float[Tensor, "*batch_or_none n dim"],
    weight: Float[Tensor, "*batch m n"],
    ridge: float,
    right: Float[Tensor, "*batch m dim"],
) -> Float[Tensor, "*batch m dim"]:
    """`(C + ridge · tr(cov)/dim · I)⁻¹ right`, C the rows' second moment in each weighting."""
    flat, sides = weight.flatten(0, -2), right.flatten(0, -2)
    size = max(1, _CHUNK // rows[..., 0, :, :].numel() if rows.ndim > 2 else _CHUNK // rows.numel())
    solved = []
    for start in range(0, len(flat), size):
        some = slice(start, start + size)
        of = rows if rows.ndim == 2 else rows.flatten(0, -3)[_owner(rows, right)[some]]
        share = flat[some] / flat[some].sum(-1, keepdim=True)
        mean = share[..., None, :] @ of
        # About the origin, as in `hull`: what is written must not shift all names together.
        metric = regularised(covariance(of, share), ridge) + mean.mT @ mean
        solved.append(solve_definite(metric, sides[some, :, None])[..., 0])
    return torch.cat(solved).reshape(right.shape)


def _owner(rows: Tensor, right: Tensor) -> Tensor:
    members = rows.shape[:-2].numel()
    return torch.arange(members, device=rows.device).repeat_interleave(right.shape[-2])


def _derive(given: Given, numbers: Numbers) -> Edit:
    told = given.told()
    return level(
        told.padded(),
        told.rows,
        keep_mask=told.kept,
        read_ridge=numbers.read_ridge,
        write_ridge=numbers.write_ridge,
        near=numbers.near,
    )


METHOD = Method(
    name="level",
    title="level a name's score on its own images with others', for many names at once",
    paradigms=("global",),
    sides=("visual",),
    numbers=Numbers,
    derive=_derive,
)
