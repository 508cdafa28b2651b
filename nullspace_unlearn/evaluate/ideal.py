"""The "ideal": names struck off the one list that images choose from, nothing else changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.evaluate.figures import Evidence
from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid, predict

# Images ranked at once.
_IMAGES = 4096


def ideal_grid(
    embeddings: Float[Tensor, "n dim"],
    prototypes: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"] | None,
    mask: Bool[Tensor, "classes domains"],
) -> Grid:
    """The untouched model with names struck off one list: the "ideal" of the tables.

    It names nothing that is forgotten, and a search by the name finds all of it as before.

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

    def evidence(
        self,
        right: Int[Tensor, "*edits classes domains"],
        mask: Bool[Tensor, "*#edits classes domains"],
    ) -> Evidence:
        """What figures follow from, of models that name so many images right.

        Args:
            right: `[*edits, classes, domains]` images of each cell that are named right.
            mask: True where a cell is forgotten.
        """
        many = self.count.clamp(min=1).double()
        return Evidence(mask, self.count, right / many, before=self.right / many)

    def without(self, gone: Bool[Tensor, " classes"]) -> Int[Tensor, "classes domains"]:
        """Images named right where some classes are struck off: their own never are."""
        struck = torch.cat([gone, gone.new_ones(1)])
        wins = ~gone[self.labels] & struck[self.above.long()].all(-1)
        found = torch.bincount(self.cells[wins], minlength=self.count.numel())
        return found.reshape(self.count.shape)

    def ideal(self, mask: Bool[Tensor, "classes domains"]) -> Int[Tensor, "classes domains"]:
        """The images that `ideal_grid` has named right."""
        if (mask.all(1) == mask.any(1)).all():
            return self.without(mask.all(1))
        return self.right.masked_fill(mask, 0)
