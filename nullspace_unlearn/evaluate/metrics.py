"""What a request did: accuracy on the forgotten cells, and on what should have stayed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid, predict
from nullspace_unlearn.forget import groups, harmonic_mean


@dataclass(frozen=True)
class Figures:
    """Accuracies of one model under one request.

    Each is the mean over the cells of its group that have images, each cell counting once, so that
    a well-filled cell cannot hide a ruined one. A group that the request leaves no cells in, or
    that has no images, is None: forgetting a class everywhere leaves it in no domain, and
    forgetting a whole domain leaves no other class in it.

    Attributes:
        forgotten: The forgotten cells.
        same_class: The forgotten classes, in the domains where they stay.
        same_domain: The other classes, in the domains that something is forgotten in.
        rest: All other cells.
        kept: Every cell that is not forgotten.
        worst_kept: The lowest accuracy of any of these, which no average hides.
        h4: Harmonic mean of `1 - forgotten`, `same_class`, `same_domain` and `rest`, those that are
            there. For whole domains, and for a class everywhere, that leaves `1 - forgotten` and
            `kept`. It is 0 where one of them is 0, so no average can hide a ruined group.
    """

    forgotten: float
    same_class: float | None
    same_domain: float | None
    rest: float | None
    kept: float
    worst_kept: float
    h4: float


def figures(grid: Grid, mask: Bool[Tensor, "classes domains"]) -> Figures:
    """The figures of a model from its accuracy in each cell.

    Args:
        grid: Accuracy in each cell.
        mask: True where a cell is forgotten, as from `Forget.mask`.

    Returns:
        The figures.

    Raises:
        ValueError: If the shapes differ, or no images are of forgotten cells, or none of kept ones.
    """
    if mask.shape != grid.count.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be boolean {list(grid.count.shape)}, got {mask.dtype} {list(mask.shape)}"
        )
    mask = mask.cpu()
    grid = Grid(grid.accuracy, (grid.count > 0).long())  # each cell counts once
    forgotten, kept = grid.mean(mask), grid.mean(~mask)
    if forgotten is None or kept is None:
        what = "forgotten" if forgotten is None else "kept"
        raise ValueError(f"there are no images of {what} cells, so nothing can be said of them")
    stay = [grid.mean(group) for group in groups(mask)[1:]]
    present = [value for value in stay if value is not None]
    return Figures(
        forgotten=forgotten,
        same_class=stay[0],
        same_domain=stay[1],
        rest=stay[2],
        kept=kept,
        worst_kept=float(grid.accuracy[~mask & (grid.count > 0).cpu()].min()),
        h4=harmonic_mean([1 - forgotten, *present]),
    )


def ideal_grid(
    embeddings: Float[Tensor, "n dim"],
    prototypes: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"] | None,
    mask: Bool[Tensor, "classes domains"],
) -> Grid:
    """What a perfect edit of this very model would reach.

    Classes forgotten everywhere are struck off the list that images choose from, which helps the
    images that were mistaken for them. For any other request the forgotten cells fall to 0 and
    every other cell keeps the accuracy of the untouched model.

    Args:
        embeddings: `[n, dim]` of the untouched model.
        prototypes: `[classes, dim]` of the untouched model.
        labels: `[n]` classes.
        domains: `[n]` domains, or None for a single one.
        mask: True where a cell is forgotten, as from `Forget.mask`.

    Returns:
        The accuracy in each cell.

    Raises:
        ValueError: If shapes differ, or every cell is forgotten.
    """
    mask = mask.cpu()
    if mask.ndim != 2 or len(mask) != len(prototypes) or mask.all():
        raise ValueError(
            f"mask must be [{len(prototypes)}, domains] and keep at least one cell, got "
            f"{list(mask.shape)}" + (", all forgotten" if mask.all() else "")
        )
    if (mask.all(1) == mask.any(1)).all():
        kept = (~mask.all(1)).nonzero()[:, 0]
        predicted = kept[predict(embeddings, prototypes[kept.to(prototypes.device)]).cpu()]
        return accuracy_grid(predicted, labels, domains, *mask.shape)
    grid = accuracy_grid(predict(embeddings, prototypes), labels, domains, *mask.shape)
    return Grid(grid.accuracy.masked_fill(mask, 0), grid.count)


def subgroup_score(before: Grid, after: Grid, mask: Bool[Tensor, "classes domains"]) -> float:
    """The score of Targeted Forgetting of Image Subgroups (arXiv 2506.03117), in percent.

    `100 · mean{1 - a/a₀ of what is to be forgotten, min(1, a/a₀) of every other column}`; the
    paper's columns are data sets, here they are cells. Chosen: each forgotten cell is a column;
    cells that the untouched model never gets right, or that have no images, are left out. A model
    that did nothing scores the share of cells that are kept, so where one cell of many is forgotten
    the score says little about forgetting, unlike `Figures.h4`.

    Args:
        before: The untouched model's accuracy in each cell.
        after: The edited model's.
        mask: True where a cell is forgotten, as from `Forget.mask`.

    Returns:
        At most 100; below 0 only where forgotten cells are recognised far better than before.

    Raises:
        ValueError: If the shapes differ, or the untouched model gets no forgotten cell right.
    """
    mask = mask.cpu()
    if not mask.shape == before.count.shape == after.count.shape:
        raise ValueError(
            f"mask and grids must be of one shape, got {list(mask.shape)}, "
            f"{list(before.count.shape)} and {list(after.count.shape)}"
        )
    known = ((before.count > 0) & (after.count > 0)).cpu() & (before.accuracy.cpu() > 0)
    if not (known & mask).any():
        raise ValueError("the untouched model gets no image of a forgotten cell right")
    ratio = after.accuracy.cpu()[known] / before.accuracy.cpu()[known]
    return 100 * float(torch.where(mask[known], 1 - ratio, ratio.clamp(max=1)).mean())


def report(before: Figures, after: Figures, ideal: Figures) -> dict[str, Any]:
    """Three models side by side, as plain JSON values.

    Args:
        before: The untouched model.
        after: The edited one.
        ideal: What a perfect edit would reach, from `ideal_grid`.

    Returns:
        "before", "after" and "ideal", each with the fields of `Figures`; null for an absent group.
    """
    return {"before": asdict(before), "after": asdict(after), "ideal": asdict(ideal)}
