"""Two-sided: a class that cannot be named, and whose images are harder to find by one another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.hull import DEPTH, hull, names_to_move, same_names
from nullspace_unlearn.erasers.method import Given, Method, said
from nullspace_unlearn.erasers.wording import in_other_words
from nullspace_unlearn.linalg import (
    as_float64,
    group_means,
    leading_basis,
    oblique_dual,
    regularised,
    unit,
)

RIDGE = 0.01
"""Relative ridge of the visual metric. Without the name ImageNet figures hardly change from 0.001
to 0.03; with it, a larger ridge trades as a smaller name_weight does."""

# What hull tells of its half.
_OF_HULL = ("same_to_the_model", "in_other_words")
# A displacement shorter than this, beside its prototype, is rounding.
_NOWHERE = 1e-6


@dataclass(frozen=True)
class Numbers:
    """What `two_sided` must be told beside prototypes.

    Attributes:
        share: Share of the displacement taken out of the images, in [0, 1]; 0 is `hull`.
        name_weight: Weight of the name in the displacement, at least 0.
        depth: How deep `hull` goes, in [0, 1].
    """

    share: float = 1.0
    name_weight: float = 0.6
    depth: float = DEPTH

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.name_weight < float("inf"):
            raise ValueError(
                "share must lie in [0, 1] and name_weight be finite and at least 0, got "
                f"{self.share} and {self.name_weight}"
            )
        if not 0 <= self.depth <= 1:
            raise ValueError(f"depth must lie in [0, 1], got {self.depth}")


def two_sided(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "n dim"],
    visual_forget: Float[Tensor, "*batch m dim"],
    visual_keep: Float[Tensor, "*visual_batch_or_none k dim"],
    *,
    keep_mask: Bool[Tensor, "*batch n"] | None = None,
    visual_keep_mask: Bool[Tensor, "*batch k"] | None = None,
    share: float = 1.0,
    name_weight: float = 0.6,
    depth: float = DEPTH,
    wordings: Float[Tensor, "*batch p dim"] | None = None,
) -> Edit:
    """`hull` on the names, after an oblique projection that takes the class out of the images.

    `hull` keeps a class from being named; its images still resemble one another, more than before
    even, since all of them are pushed the same way. So the embedding first loses the displacement
    that sets the class's images apart,

        d_c = (v_c - mean of kept visual prototypes) + name_weight · (what hull removes of t_c),

    in which the name sharpens what a few images say about all images of the class. With `D` an
    orthonormal basis of the `d_c` and `S = VᵀV/k + RIDGE · tr/dim · I`, the second moment of the
    kept visual rows V,

        M = P H,   P = I - share · read Dᵀ,   read = S⁻¹D (Dᵀ S⁻¹ D)⁻¹,   H the operator of hull

    Three things hold. (1) The certificate of hull, at any share: `H t_c = Σ a_k H t_k` with
    convex `a`, and P stands on the far side of H from the names, so `M t_c = Σ a_k M t_k`.
    (2) At share 1 `d_c M = 0`, exactly: with `name_weight = 0` the visual prototype is given
    the embedding of the kept ones' mean. (3) At share 1, of all `M` with (1)'s `M δ_c = 0`
    and (2), this one changes the scores of kept names on kept images least in the mean square,
    up to the ridges: with `E = I - M` that square is `tr(S E C Eᵀ)`, C being hull's metric, whose
    least value under constraints on either side of E is reached at
    `S^½ M C^½ = (I - p_v) S^½ C^½ (I - p_t)` with orthogonal projections p, which is `P H`.
    The moment is about the origin, not the mean: a shift that all images share also changes which
    name is best. `P` at `name_weight = 0` and with a covariance in place of S is LEACE (Belrose et
    al., arXiv 2306.03819) without its constant.

    The default name_weight was picked on two images a class of 1,000: the least of 0, 0.2, 0.3, ...
    0.8 that costs at most 0.5 points of kept accuracy beside hull, ten classes forgotten, on
    choices that no figure is reported on. With many images of a few classes 0 hides more. A linear
    probe trained on many edited images of the class finds it all the same: only the displacement
    that the given prototypes show is removed.

    Args:
        forget: `[*batch, m, dim]` unit text prototypes, as for `hull`.
        keep: `[n, dim]` unit text prototypes that stay, shared by the whole batch.
        visual_forget: `[*batch, m, dim]` unit visual prototypes of the same m: the mean of some
            images' embeddings, normalised. (Each image as a direction of its own costs more and
            hides no more.)
        visual_keep: `[k, dim]` shared by the whole batch, or `[*batch, k, dim]`: unit embeddings of
            images that stay, or prototypes of classes that do; all classes alike.
        keep_mask: `[*batch, n]`, which names each request keeps; absent: all.
        visual_keep_mask: `[*batch, k]`, which visual rows each request keeps; absent: all. The
            metric is that of all rows, so that a batch shares it.
        share: Share of the displacement taken out of the images, in [0, 1]; 0 is `hull`.
        name_weight: Weight of the name in the displacement, at least 0; above 0 part of the visual
            displacement itself stays, and with it more kept accuracy.
        depth: As for `hull`.
        wordings: As for `hull`.

    Returns:
        An edit of rank at most 2m, float64, and more with wordings.

    Raises:
        ValueError: For what `hull` refuses; if visual prototypes are not finite or their shapes
            do not fit; if a number is out of range; if no visual prototype is kept, a forgotten
            one is also kept or is the mean of the kept ones, or the displacements of names and
            images together span the whole space.
    """
    v, rows = as_float64("visual_forget", visual_forget), as_float64("visual_keep", visual_keep)
    if v.shape != forget.shape:
        raise ValueError(
            f"visual_forget must have one row for each of forget, {list(forget.shape)}, got "
            f"{list(v.shape)}"
        )
    if rows.ndim not in (2, v.ndim) or rows.shape[-1] != v.shape[-1]:
        raise ValueError(
            f"visual_keep must be [k, {v.shape[-1]}] or have visual_forget's leading dimensions, "
            f"got {list(rows.shape)} beside {list(v.shape)}"
        )
    numbers = Numbers(share, name_weight, depth)
    names = hull(forget, keep, keep_mask=keep_mask, depth=depth)
    kept = v.new_ones((*v.shape[:-2], rows.shape[-2]), dtype=torch.bool)
    kept = kept if visual_keep_mask is None else visual_keep_mask
    if not kept.any(-1).all():
        raise ValueError("no visual prototype is kept, so nothing sets the forgotten ones apart")
    if (same_names(v, rows) & kept).any():
        raise ValueError("a forgotten visual prototype is also a kept one: leave it out of either")
    each = kept.to(v) / kept.sum(-1, keepdim=True)
    apart = v - each[..., None, :] @ rows
    norm = torch.linalg.vector_norm
    if (norm(apart, dim=-1) <= _NOWHERE * norm(v, dim=-1)).any():
        raise ValueError("a forgotten visual prototype is the mean of the kept ones: nothing to do")
    of_name = as_float64("forget", forget) @ names.read @ names.read.mT
    basis, _ = leading_basis(apart + name_weight * of_name)
    if basis.shape[-1] + names.rank >= basis.shape[-2]:
        raise ValueError("the edit would remove everything: the displacements span the whole space")
    if wordings is not None:
        f, r, kept, _ = names_to_move(forget, keep, keep_mask)
        names = in_other_words(names, wordings, (norm(f, dim=-1) > 0).sum(-1), r, kept)
    moment = regularised(rows.mT @ rows / rows.shape[-2], RIDGE)
    # One inverse serves a whole batch; to solve would copy the factor for each request.
    solved = torch.cholesky_inverse(torch.linalg.cholesky(moment)) @ basis
    images = Edit(read=share * oblique_dual(basis, solved), write=basis)
    # Rows multiply from the left: the images' half first, hull next to the names.
    return replace(
        images @ names,
        provenance={
            **said("two_sided", numbers, basis.shape[-1] + names.rank),
            **{key: names.provenance[key] for key in _OF_HULL if key in names.provenance},
        },
    )


def _derive(given: Given, numbers: Numbers) -> Edit:
    """One visual prototype a class, over all domains; a class's other names share its."""
    assert given.seen is not None  # `Method.edit` has seen to it
    means, labels, _ = given.seen.cell_means()
    shown, which = labels.unique(return_inverse=True)
    names = unit(as_float64("names", given.names))
    rows = torch.zeros_like(names)
    rows[shown] = unit(group_means(means, which, len(shown)))

    def one(request: Given) -> Edit:
        stays = request.kept[shown]
        return two_sided(
            names[request.forgotten],
            names[request.kept],
            rows[request.owner[request.forgotten]],
            rows[shown[stays]],
            share=numbers.share,
            name_weight=numbers.name_weight,
            depth=numbers.depth,
            wordings=None if request.moves is None else request.moves.flatten(-3, -2),
        )

    return given.one_by_one(one)


METHOD = Method(
    name="two_sided",
    title="hull, after taking the class out of the images",
    paradigms=("global",),
    sides=("visual",),
    images="must",
    certified=True,
    wordings=True,
    numbers=Numbers,
    derive=_derive,
)
