"""Figures of many edits at once, from how many images of each cell are named right."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.evaluate.metrics import Figures
from nullspace_unlearn.forget import groups

FIGURES = tuple(field.name for field in fields(Figures))
"""The names of the figures, in order."""

# Images ranked at once.
_IMAGES = 4096


def grid_figures(
    right: Int[Tensor, "*edits batch classes domains"],
    count: Int[Tensor, "classes domains"],
    masks: Bool[Tensor, "batch classes domains"],
) -> dict[str, Float[Tensor, "*edits batch"]]:
    """`metrics.figures` of many grids at once.

    Args:
        right: `[*edits, batch, classes, domains]`, images of each cell that are named right.
        count: `[classes, domains]`, images of each cell.
        masks: `[batch, classes, domains]`, one request for each of the batch.

    Returns:
        The fields of `metrics.Figures`, float64; NaN for an absent group.
    """
    seen = count > 0
    accuracy = right / count.clamp(min=1).double()
    cells = (torch.stack([*groups(masks), ~masks]) & seen).to(accuracy.dtype)
    total = torch.einsum("...bcd,gbcd->g...b", accuracy, cells)
    number = cells.sum((-2, -1)).reshape(len(cells), *(1 for _ in right.shape[:-3]), -1)
    forgotten, same_class, same_domain, rest, kept = total / number
    parts = torch.stack([1 - forgotten, same_class, same_domain, rest])
    there = ~parts.isnan()
    # A part that is 0 divides to infinity, and the mean is 0, as it should be.
    mean = there.sum(0) / (1 / parts.masked_fill(~there, 1) * there).sum(0)
    worst = accuracy.masked_fill(~(seen & ~masks), torch.inf).amin((-2, -1))
    return dict(
        zip(FIGURES, (forgotten, same_class, same_domain, rest, kept, worst, mean), strict=True)
    )


@dataclass(frozen=True, eq=False)
class Untouched:
    """The untouched model on some images, and what it takes to strike classes off its list.

    Attributes:
        count: `[classes, domains]` images.
        right: `[classes, domains]` images named right.
        cells: `[k]` the cell of each image whose class is among the `most + 1` that score highest;
            no other image is ever named right with at most `most` classes struck off.
        labels: `[k]` their classes.
        above: `[k, most]` the classes that win over it; the number of classes where there are no
            more.
    """

    count: Int[Tensor, "classes domains"]
    right: Int[Tensor, "classes domains"]
    cells: Int[Tensor, " k"]
    labels: Int[Tensor, " k"]
    above: Int[Tensor, "k most"]

    @classmethod
    def of(
        cls,
        embeddings: Float[Tensor, "n dim"],
        classifier: Float[Tensor, "classes dim"],
        labels: Int[Tensor, " n"],
        domains: Int[Tensor, " n"],
        shape: tuple[int, int],
        most: int,
    ) -> Untouched:
        """Rank the classes of each image once, some images at a time.

        Args:
            embeddings: `[n, dim]`.
            classifier: `[classes, dim]` unit prototypes.
            labels: `[n]`.
            domains: `[n]`.
            shape: Classes and domains.
            most: The largest number of classes that any request strikes off.
        """
        cells, kept, above = [], [], []
        cell = labels * shape[1] + domains
        classes = torch.arange(shape[0])
        for part in torch.arange(len(labels)).split(_IMAGES):
            scores = embeddings[part].double() @ classifier.double().mT
            own = scores.gather(1, labels[part, None])
            # Of equal scores the first class wins, as for arg max.
            wins = (scores > own) | ((scores == own) & (classes < labels[part, None]))
            near = wins.sum(-1) <= most
            cells.append(cell[part][near])
            kept.append(labels[part][near])
            wins = wins[near]
            image, winner = wins.nonzero(as_tuple=True)
            ahead = torch.full((len(wins), most), shape[0], dtype=torch.int32)
            ahead[image, wins.cumsum(-1)[image, winner] - 1] = winner.int()
            above.append(ahead)
        found = cls(
            count=torch.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape),
            right=torch.zeros(shape, dtype=torch.int64),
            cells=torch.cat(cells),
            labels=torch.cat(kept),
            above=torch.cat(above),
        )
        return replace(found, right=found.without(torch.zeros(shape[0], dtype=torch.bool)))

    def without(self, gone: Bool[Tensor, " classes"]) -> Int[Tensor, "classes domains"]:
        """Images named right where some classes are struck off: their own never are."""
        struck = torch.cat([gone, gone.new_ones(1)])
        wins = ~gone[self.labels] & struck[self.above.long()].all(-1)
        found = torch.bincount(self.cells[wins], minlength=self.count.numel())
        return found.reshape(self.count.shape)

    def ideal(self, mask: Bool[Tensor, "classes domains"]) -> Int[Tensor, "classes domains"]:
        """The images that `metrics.ideal_grid` has named right."""
        if (mask.all(1) == mask.any(1)).all():
            return self.without(mask.all(1))
        return self.right.masked_fill(mask, 0)
