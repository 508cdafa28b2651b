"""Hull: remove only what sets a class apart from the names that stay, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.method import Given, Method, said
from nullspace_unlearn.erasers.wording import in_other_words
from nullspace_unlearn.linalg import (
    HullPoint,
    Metric,
    Spread,
    as_float64,
    covariance,
    leading_basis,
    marked_first,
    nearest_in_hull,
    oblique_dual,
    regularised,
    solve_moment_of_kept,
    stacked,
    unit,
)

# Two unit prototypes nearer than this are one name to the model: no linear edit tells them apart.
_SAME_NAME = 1e-3
# A displacement shorter than this is what the hull's tolerance leaves of a name inside the hull.
_INSIDE = 2e-5

RIDGE = 0.03
"""Relative ridge of the write metric of `hull` by default."""

DEPTH = 1.0
"""How deep `hull` goes by default: to the middle, where a name says nothing about an image."""

# Keeps the hull's metric definite in directions no name varies in.
_METRIC_RIDGE = 0.1

# So many names left out are taken off a metric that a batch shares.
_FEW = 16
# Share of the names' spread below which what is left hides behind what is left out.
_HIDDEN = 1e-3


@dataclass(frozen=True)
class Numbers:
    """What `hull` must be told beside prototypes.

    Attributes:
        ridge: Relative ridge of the write metric, above 0.
        depth: Share of the way from the hull's nearest point to its middle, in [0, 1].
    """

    ridge: float = RIDGE
    depth: float = DEPTH

    def __post_init__(self) -> None:
        if not 0 <= self.depth <= 1 or not self.ridge > 0:
            raise ValueError(
                f"depth must lie in [0, 1] and ridge above 0, got {self.depth} and {self.ridge}"
            )


def hull(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "n dim"],
    *,
    keep_mask: Bool[Tensor, "*batch n"] | None = None,
    ridge: float = RIDGE,
    depth: float = DEPTH,
    wordings: Float[Tensor, "*batch p dim"] | None = None,
) -> Edit:
    """Move each forgotten prototype into the convex hull of the kept ones.

    For each forgotten `t_c` take a point `x_c` of the hull of the kept prototypes and the
    displacement `δ_c = t_c - x_c`. At depth 0 it is the point nearest in the metric `cov(keep)`
    (what matters is distance along the directions in which names, and so images, differ): the name
    wins in no list that holds all kept names, at the least cost, but in a shorter list, or looked
    for by itself, it is found as before. At depth 1 it is the middle, the mean of the kept names:
    the name says nothing about an image any more. Between them the point moves on a line. With `D`
    an orthonormal basis of the displacements and `S = RᵀR/n + ridge · tr(cov(R))/dim · I`

        read = D,   write = S⁻¹D (Dᵀ S⁻¹ D)⁻¹        so  M D = 0,  M = I - read writeᵀ

    which, of all `M` with `M D = 0`, changes the kept names' scores least in the mean square over
    names, whatever the images. The moment is about the origin: a shift that all names share changes
    no list's winner, but it is another one for every image, and a search by a kept name would find
    the images with the largest. The ridge holds down what is written where no name is, which
    lengthens images, and so spoils searches too. `M t_c = Σ a_k M t_k` with convex `a`: for every
    image the score of a forgotten class is a convex combination of kept ones, hence never above the
    best of them; at depth 1 it is the mean of the kept ones. That is the certificate
    (`nullspace_unlearn.certificate`). With a single kept name there is only one point, and the two
    names tie on every image: then rounding decides which is best, and no certificate holds.

    A kept name that is the same vector as a forgotten one (a synonym to the model) cannot stay: it
    is left out of `keep`, and counted in the edit's provenance.

    Args:
        forget: `[*batch, m, dim]` unit text prototypes; further templates or aliases are further
            rows, each with a certificate of its own. Rows of zeros fill up the shorter requests of
            a ragged batch, and count for nothing.
        keep: `[n, dim]` unit text prototypes of the vocabulary whose recognition must stay, shared
            by the whole batch.
        keep_mask: `[*batch, n]`, which names of the vocabulary each request keeps; absent: all.
        ridge: Relative ridge of the write metric, above 0.
        depth: Share of the way from the nearest point to the hull's middle, in [0, 1]: above 0,
            a forgotten class cannot tie with the best of several kept ones.
        wordings: `[*batch, p, dim]`, how other words for the forgotten names move their prototypes,
            beyond how they move any name's. What the edit leaves of these is held down too, as far
            as kept names allow and in as many directions as the dimension bears
            (`erasers.wording.in_other_words`), so that the names do not come back in other words.

    Returns:
        An edit of rank at most m, float64, and more with wordings.

    Raises:
        ValueError: If prototypes are not finite, dimensions differ, a number is out of range,
            nothing is kept, nothing sets the forgotten names apart (the edit would remove
            nothing), or their displacements span the whole space (it would remove everything).
    """
    if keep.ndim != 2:
        raise ValueError(
            f"keep must be one vocabulary [n, {forget.shape[-1]}] for the whole batch, got "
            f"{list(keep.shape)}; what each request keeps of it says keep_mask [*batch, n]"
        )
    f, r, kept, same = names_to_move(forget, keep, keep_mask)
    numbers = Numbers(ridge, depth)
    share = kept.to(r.dtype) / kept.sum(-1, keepdim=True)
    middle = share[..., None, :] @ r
    spread = Spread.of(r)
    target = middle
    if depth < 1:
        target = torch.lerp(nearest_kept(f, r, kept, spread).of(r), middle, depth)
    displacement = f - target
    norm = torch.linalg.vector_norm(f, dim=-1)
    # A row of zeros is no name, and this keeps it from asking for anything.
    apart = torch.linalg.vector_norm(displacement, dim=-1) > _INSIDE * norm
    basis, _ = leading_basis(displacement * (apart & (norm > 0))[..., None])
    if basis.shape[-1] == 0 or not basis.abs().amax((-2, -1)).all():
        raise ValueError("the edit would remove nothing: a forgotten name lies among the kept ones")
    if basis.shape[-1] == basis.shape[-2]:
        raise ValueError("the edit would remove everything: the displacements span the whole space")
    solved = solve_moment_of_kept(r, kept, ridge, basis, spread)
    edit = Edit(
        read=basis,
        write=oblique_dual(basis, solved),
        provenance={
            **said("hull", numbers, basis.shape[-1]),
            "same_to_the_model": int(same.sum()),
        },
    )
    if wordings is None or not wordings.shape[-2]:
        return edit
    return in_other_words(edit, wordings, (norm > 0).sum(-1), r, kept, spread)


def _derive(given: Given, numbers: Numbers) -> Edit:
    told = given.told()
    rows = told.padded()
    stays = told.kept.reshape(-1, len(told.rows)).any(0)  # other names have no part in it
    return hull(
        rows, told.rows[stays], keep_mask=told.kept[..., stays],
        ridge=numbers.ridge, depth=numbers.depth,
        wordings=None if given.moves is None else given.moves.flatten(-3, -2),
    )  # fmt: skip


METHOD = Method(
    name="hull",
    title="move a name among those that stay",
    paradigms=("global",),
    sides=("visual",),
    certified=True,
    wordings=True,
    numbers=Numbers,
    derive=_derive,
)


def names_to_move(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "*batch_or_none n dim"],
    keep_mask: Bool[Tensor, "*batch n"] | None,
) -> tuple[
    Float[Tensor, "*batch m dim"],
    Float[Tensor, "*batch_or_none n dim"],
    Bool[Tensor, "*batch n"],
    Bool[Tensor, "*batch n"],
]:
    """Prototypes checked, in float64, and which names stay: kept ones that are no forgotten one.

    Args:
        forget: As for `hull`.
        keep: As for `hull`.
        keep_mask: As for `hull`.

    Returns:
        `forget` and `keep` in float64, which of `keep` stay, and which cannot since they are the
        same vector as a forgotten name.

    Raises:
        ValueError: If prototypes are not finite, dimensions differ or nothing is kept.
    """
    f, r = as_float64("forget", forget), as_float64("keep", keep)
    if f.ndim < 2 or f.shape[-2] == 0:
        raise ValueError(f"forget must be [*batch, m, dim] with m >= 1, got {list(f.shape)}")
    if f.shape[-1] != r.shape[-1] or r.ndim not in (2, f.ndim):
        raise ValueError(
            f"keep must be [n, {f.shape[-1]}] or have forget's leading dimensions, got "
            f"{list(r.shape)} beside {list(f.shape)}"
        )
    same = same_names(f, r)
    kept = ~same if keep_mask is None else keep_mask & ~same
    if not kept.any(-1).all():
        raise ValueError(
            "nothing is kept: keep is empty, or all of it is the same to the model as what is "
            "forgotten"
        )
    return f, r, kept, same if keep_mask is None else same & keep_mask


def same_names(
    forget: Float[Tensor, "*batch m dim"], keep: Float[Tensor, "*batch_or_none n dim"]
) -> Bool[Tensor, "*batch n"]:
    """Which kept prototypes are the same vector as a forgotten one.

    Args:
        forget: `[*batch, m, dim]`, float64.
        keep: `[n, dim]` or `[*batch, n, dim]`, float64.

    Returns:
        `[*batch, n]`.
    """
    return (unit(forget) @ unit(keep).mT).amax(-2) > 1 - _SAME_NAME**2 / 2


def nearest_kept(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "n dim"],
    kept: Bool[Tensor, "*batch n"],
    spread: Spread | None = None,
) -> HullPoint:
    """The point of the hull of the kept prototypes that is nearest in their covariance.

    Each request has the metric of the names that it keeps. Few names left out change the covariance
    of all of them in as few directions, so one eigendecomposition serves those requests; a request
    by itself, or where many are left out, or hide what is kept, has its own.

    Args:
        forget: `[*batch, m, dim]`, float64.
        keep: `[n, dim]`, float64.
        kept: `[*batch, n]`, which of them each request may use.
        spread: That of the prototypes, where it is at hand.

    Returns:
        Its weights on the prototypes.
    """
    batch, (m, dim) = forget.shape[:-2], forget.shape[-2:]
    points, masks = forget.reshape(-1, m, dim), kept.reshape(-1, len(keep))
    own = torch.ones(len(masks), dtype=torch.bool, device=keep.device)
    parts = []
    if len(masks) > 1:
        spread = spread or Spread.of(keep)
        metric, own = _metrics(spread, masks)
    if not own.all():
        assert spread is not None  # a request by itself has its own
        some = ~own
        shared = nearest_in_hull(
            points[some] @ spread.frame, keep @ spread.frame, masks[some, None], metric=metric[some]
        )
        parts.append((some.nonzero()[:, 0], shared))
    for i in own.nonzero()[:, 0]:
        root = torch.linalg.cholesky(regularised(covariance(keep[masks[i]]), _METRIC_RIDGE))
        parts.append(
            (i[None], nearest_in_hull(points[i] @ root, keep @ root, masks[i, None])[None])
        )
    order = torch.cat([index for index, _ in parts]).argsort()
    together = stacked([part for _, part in parts])[order].reshape(*batch)
    return replace(together, point=together.of(keep))


def _metrics(spread: Spread, kept: Bool[Tensor, "b n"]) -> tuple[Metric, Bool[Tensor, " b"]]:
    """The covariances of the kept rows, regularised, in the frame of all rows.

    Returns:
        The metrics (each up to a factor), and which requests are better off with their
        own: those that leave out many names, or of which too little stays.
    """
    centred, energy = spread.centred, spread.energy
    count = kept.sum(-1)
    few = len(centred) - count <= _FEW
    order = marked_first(~kept & few[:, None])
    marked = (~kept & few[:, None]).take_along_dim(order, -1)
    left_out = centred[order] * marked[..., None]
    mean = left_out.sum(-2) / count[:, None]  # of the kept rows about that of all, but for its sign
    less = torch.cat([left_out, (count.sqrt()[:, None] * mean)[:, None]], -2)
    total = energy.sum() - less.square().sum((-2, -1))
    scale = energy + (_METRIC_RIDGE * total / len(energy))[:, None]
    return Metric(scale, less @ spread.frame), ~few | (total <= _HIDDEN * energy.sum())
