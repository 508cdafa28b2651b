"""Gated: lower a class's score by how much the image looks like the forgotten cells."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.linalg import (
    as_float64,
    covariance,
    regularised,
    solve_definite,
    unit,
    weighted_ridge,
)

_ROUNDS = 50


def gated(
    cells: Float[Tensor, "classes domains *samples dim"],
    classes: Float[Tensor, "classes dim"],
    mask: Bool[Tensor, "*batch classes domains"],
    *,
    ridge: float = 3.0,
    other: float = 0.05,
    gain: float = 1.75,
) -> Edit:
    """Forget cells of the class x domain grid: text says where to write, prototypes what to read.

    A linear edit cannot multiply "is a sketch" with "is a car", and need not: `read = β g_c`,
    `write = w_c` lowers the score of class c alone, `z'·t_k = z·t_k - β (z·g_c) δ_kc`, and a dog in
    a sketch is unharmed since its car score was low anyway. Each class with a forgotten cell gets
    one column:

    - `g_c` solves a weighted ridge regression from cell prototypes to the wanted fall of the
      class's score: 1 on its forgotten cells, 0 on its kept ones, and at least 0 elsewhere. A
      fall is harmless on images of another class, a rise is not, so a cell of another class
      counts (with the small weight `other`) only while its fall would be negative: asymmetric
      least squares (Newey & Powell, Econometrica 55, 1987), solved by dropping and taking up rows
      until they stand.
    - `w_c` moves the score of class c against the other names' mean by 1 and the others'
      differences as little as possible in the mean square: `S⁻¹d/(dᵀS⁻¹d)`, `d = t_c - mean`,
      `S = cov` of the other class prototypes with a small ridge.
    - `β` comes from the prototypes: the fall that puts the mean forgotten prototype's margin (its
      own score over the best other one) halfway between the falls of forgotten and kept
      prototypes, times `gain`, since images name their domain more faintly than prompts do.

    The defaults (ridge 3, other 0.05, gain 1.75) are a compromise between three small models, seen
    on images that no figure is reported on: training images of the two PACS models, flat around
    it, and pictures of the bundled model with seeds of their own, which asks for a lower ridge.

    Args:
        cells: `[classes, domains, dim]` unit prototypes of the cells, or
            `[classes, domains, ..., dim]` with several a cell (prompts, synthesised or real
            images).
        classes: `[classes, dim]` unit text prototypes of the classes, which the scores use.
        mask: `[*batch, classes, domains]`, true where a cell is forgotten.
        ridge: Ridge relative to the prototypes' mean square per dimension.
        other: Weight of another class's cell beside the class's own, in (0, 1].
        gain: Factor on the balanced fall, above 0.

    Returns:
        A joint edit, float64; its rank is the largest number of classes a request touches.

    Raises:
        ValueError: If shapes do not fit, something is not finite, a number is out of range, a
            request forgets nothing, or forgets everything.
    """
    p, t = as_float64("cells", cells), as_float64("classes", classes)
    if p.ndim >= 3:
        p = p.reshape(*p.shape[:2], -1, p.shape[-1])
    count, domains, samples, dim = p.shape if p.ndim == 4 else (0, 0, 0, 0)
    if p.ndim != 4 or t.shape != (count, dim) or mask.shape[-2:] != (count, domains):
        raise ValueError(
            "expected cells [classes, domains, ..., dim], classes [classes, dim] and mask "
            f"[..., classes, domains], got {list(cells.shape)}, {list(t.shape)}, {list(mask.shape)}"
        )
    if count < 2:
        raise ValueError("a class can only be forgotten among others: give at least 2 classes")
    if not ridge > 0 or not 0 < other <= 1 or not gain > 0:
        raise ValueError(
            f"ridge and gain must be above 0 and other in (0, 1], got {ridge}, {gain}, {other}"
        )
    if not mask.any((-2, -1)).all() or mask.all(-1).all(-1).any():
        raise ValueError("each request must forget at least one cell and keep at least one")
    batch = mask.shape[:-2]
    mask = mask.reshape(-1, count, domains).to(p.device)
    touched = mask.any(-1)
    request, class_ = touched.nonzero(as_tuple=True)
    read = _gates(p, t, mask[request], class_, ridge, other, gain)
    if not torch.isin(torch.arange(len(mask), device=p.device), request[read.any(-1)]).all():
        raise ValueError(
            "the edit would remove nothing: in the forgotten cells every prompt already scores "
            "another class higher than its own"
        )
    # One column a touched class; a request that touches fewer than the most has zero columns.
    column = touched.cumsum(-1)[request, class_] - 1
    shape = (len(mask), int(touched.sum(-1).max()), dim)
    reads, writes = (torch.zeros(shape, dtype=p.dtype, device=p.device) for _ in range(2))
    reads[request, column] = read
    written = touched.any(0).nonzero()[:, 0]
    writes[request, column] = _writes(t, written)[torch.searchsorted(written, class_)]
    return Edit(
        read=reads.mT.reshape(*batch, dim, -1),
        write=writes.mT.reshape(*batch, dim, -1),
        provenance={
            "method": "gated",
            "numbers": {"ridge": ridge, "other": other, "gain": gain, "rank": shape[1]},
        },
    )


def _gates(
    p: Float[Tensor, "classes domains samples dim"],
    t: Float[Tensor, "classes dim"],
    mask: Bool[Tensor, "q classes domains"],
    class_: Tensor,
    ridge: float,
    other: float,
    gain: float,
) -> Float[Tensor, "q dim"]:
    """`β g` for each (request, class) pair q."""
    count, domains, samples, dim = p.shape
    rows = p.reshape(-1, dim)
    pair = torch.arange(len(class_), device=p.device)
    own = torch.zeros(len(class_), count, domains, dtype=torch.bool, device=p.device)
    own[pair, class_] = True
    wanted = (own & mask).to(p.dtype)
    weight = torch.where(own, 1.0, other).to(p.dtype) / samples

    def per_row(grid: Tensor) -> Tensor:
        return grid[..., None].expand(*grid.shape, samples).reshape(len(class_), -1)

    row_own, row_wanted, row_weight = per_row(own), per_row(wanted), per_row(weight)
    counts = torch.ones_like(row_own)
    for _ in range(_ROUNDS):
        gate = weighted_ridge(rows, row_weight * counts, row_wanted, ridge * row_weight.sum(-1))
        fall = gate @ rows.mT
        # Absolute zero would let rounding switch a row on and off for ever.
        harmful = row_own | (fall <= 1e-9 * fall.abs().amax(-1, keepdim=True))
        if (harmful == counts).all():
            break
        counts = harmful
    fall = fall.reshape(len(class_), count, domains, samples).mean(-1)[pair, class_]
    forgotten = mask[pair, class_]
    mean_fall = (fall * forgotten).sum(-1) / forgotten.sum(-1)
    kept_fall = fall.masked_fill(forgotten, -torch.inf).amax(-1).clamp(min=0)
    middle = (mean_fall + kept_fall) / 2
    scores = unit(p.mean(2))[class_] @ t.mT
    rival = scores.scatter(-1, class_[:, None, None].expand(-1, domains, 1), -torch.inf).amax(-1)
    margin = scores.gather(-1, class_[:, None, None].expand(-1, domains, 1))[..., 0] - rival
    margin = (margin.clamp(min=0) * forgotten).sum(-1) / forgotten.sum(-1)
    # A class that prompts already name otherwise in those cells needs no fall there.
    needed = (mean_fall > 0) & (margin > 0)
    return torch.where(needed[:, None], gate * (gain * margin / middle)[:, None], 0.0)


def _writes(t: Float[Tensor, "classes dim"], written: Int[Tensor, " k"]) -> Float[Tensor, "k dim"]:
    """For each written class the direction that moves its score against the others', by 1."""
    rows = []
    for class_ in written.tolist():
        others = torch.cat([t[:class_], t[class_ + 1 :]])
        apart = t[class_] - others.mean(0)
        spread = regularised(covariance(others), 1e-3)
        solved = solve_definite(spread, apart[:, None])[:, 0]
        rows.append(solved / (solved @ apart))
    return torch.stack(rows)
