"""Avert: turn a name's text prototype away from every image, for edits of the text side."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.method import Given, Method, said
from nullspace_unlearn.linalg import (
    as_float64,
    leading_basis,
    oblique_dual,
    regularised,
    solve_definite,
)


@dataclass(frozen=True)
class Numbers:
    """What `avert` must be told beside prototypes.

    Attributes:
        ridge: Relative ridge of the write metric, above 0.
        away: How far past the origin, above 0.
    """

    ridge: float = 0.003
    away: float = 0.5

    def __post_init__(self) -> None:
        if not self.ridge > 0 or not self.away > 0:
            raise ValueError(f"ridge and away must be above 0, got {self.ridge} and {self.away}")


def avert(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "*batch_or_none n dim"],
    *,
    ridge: float = 0.003,
    away: float = 0.5,
) -> Edit:
    """Move forgotten text prototypes to the far side of the origin, kept ones hardly at all.

    Text features are normalised after their projection, which undoes whatever makes a prototype
    shorter: one that was moved into the hull of the kept ones (`hull`) is stretched out of it
    again. What survives normalising is a direction. Names share a large common part that every
    image has some of, so a forgotten prototype is sent the other way, to `-away · mean(keep)`,
    where it scores below the others. With `D` an orthonormal basis of the displacements
    `t_c + away · mean(keep)` and `S = R Rᵀ/n + ridge · tr/dim · I` (about the origin: here also a
    shift that all kept names share would change scores)

        read = D,   write = S⁻¹D (Dᵀ S⁻¹ D)⁻¹

    moves the kept prototypes least, in the mean square, of all edits that move the forgotten ones
    there. There is no certificate: an image that scores below 0 with every kept name may yet be
    given a forgotten one.

    Args:
        forget: `[*batch, m, dim]` unit text prototypes.
        keep: `[n, dim]` shared by the batch, or `[*batch, n, dim]`: unit text prototypes that stay.
        ridge: Relative ridge of the write metric, above 0.
        away: How far past the origin, above 0.

    Returns:
        An edit of rank at most m for the text side (`Edit.fold(clip, "text")`), float64.

    Raises:
        ValueError: If prototypes are not finite, dimensions differ, a number is out of range,
            nothing is kept, or the displacements span the whole space.
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
    basis, _ = leading_basis(f + away * r.mean(-2, keepdim=True))
    if basis.shape[-1] == basis.shape[-2]:
        raise ValueError("the edit would remove everything: the displacements span the whole space")
    second_moment = regularised(r.mT @ r / r.shape[-2], ridge)
    solved = solve_definite(second_moment.expand(*f.shape[:-2], -1, -1), basis)
    return Edit(
        read=basis,
        write=oblique_dual(basis, solved),
        provenance=said("avert", numbers, basis.shape[-1]),
    )


def _derive(given: Given, numbers: Numbers) -> Edit:
    def one(request: Given) -> Edit:
        told = request.told()
        forget, keep = told.rows[told.forgotten], told.rows[told.kept]
        return avert(forget, keep, ridge=numbers.ridge, away=numbers.away)

    return given.one_by_one(one)


METHOD = Method(
    name="avert",
    title="turn a name away from every image",
    paradigms=("global",),
    sides=("text",),
    numbers=Numbers,
    derive=_derive,
)
