"""Searches by the names that stay: whether they still find their images, which no list shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.evaluate.asking import rounded, search
from nullspace_unlearn.linalg import unit

# Numbers held at once for images x names.
_TILE = 1 << 22


@dataclass(frozen=True, eq=False)
class Searched:
    """How well searches by names that stay find their images.

    Attributes:
        value: `[*edits]` average precision, the mean over the names; NaN where there is none.
        blind: `[*edits]` what names that say nothing would score.
    """

    value: Float[Tensor, "*edits"]
    blind: Float[Tensor, "*edits"]

    @classmethod
    def together(cls, several: Sequence[Searched]) -> Searched:
        """Several along a new last dimension.

        Args:
            several: Of requests, say; all of one shape.
        """
        return cls(
            torch.stack([one.value for one in several], -1),
            torch.stack([one.blind for one in several], -1),
        )


@dataclass(frozen=True, eq=False)
class Searching:
    """Who looks for what under one request.

    The name of each class that stays somewhere looks for the class's images that stay, among these
    and all images of other classes, those of forgotten cells too: whoever searches ranks what is
    there. Where a class is forgotten in some domains, its images there are left out.

    Attributes:
        classes: `[k]` the classes that there are images of in cells that stay.
        sought: `[k, n]` the images that each looks for.
        ranked: `[k, n]` the images that each ranks.
    """

    classes: Int[Tensor, " k"]
    sought: Bool[Tensor, "k n"]
    ranked: Bool[Tensor, "k n"]

    @classmethod
    def of(
        cls,
        mask: Bool[Tensor, "classes domains"],
        labels: Int[Tensor, " n"],
        domains: Int[Tensor, " n"] | None = None,
        most: int | None = None,
    ) -> Searching:
        """Work out who looks for what.

        Args:
            mask: True where a cell is forgotten.
            labels: `[n]` classes of the images.
            domains: `[n]` their domains, or None for a single one.
            most: Classes at most, evenly spaced among those there are; all if None.

        Returns:
            The searching; of no class where all images are of one.
        """
        mask, labels = mask.cpu(), labels.cpu()
        domains = torch.zeros_like(labels) if domains is None else domains.cpu()
        gone = mask[labels, domains]
        classes = labels[~gone].unique()
        if bool((labels == labels[:1]).all()):
            classes = classes[:0]
        if most is not None and len(classes) > most:
            classes = classes[torch.linspace(0, len(classes) - 1, most).round().long()]
        own = labels == classes[:, None]
        return cls(classes, own & ~gone, ~(own & gone))

    def find(
        self,
        embeddings: Float[Tensor, "*edits n dim"],
        classifier: Float[Tensor, "*texts names dim"],
        weight: Float[Tensor, "*draws n"] | None = None,
    ) -> Searched:
        """What the searches find with a model, or each of a batch, in float64.

        Args:
            embeddings: `[*edits, n, dim]`, any positive scale of a row.
            classifier: `[*texts, names, dim]` a row a name, any positive scale of it, the classes
                first; its leading dimensions are those of the embeddings, or none.
            weight: `[*draws, n]` how often each image is there, for the bootstrap; once if None.

        Returns:
            The mean over the names.
        """
        rows, texts = unit(embeddings.double()), unit(classifier.double())
        many = rows[..., 0].numel() * (1 if weight is None else weight[..., 0].numel())
        found = []
        for some in torch.arange(len(self.classes)).split(max(1, _TILE // max(1, many))):
            names = texts[..., self.classes[some].to(texts.device), :].mT.to(rows.device)
            found.append(self.precision(rounded(rows @ names).mT.cpu(), some, weight))
        if not found:
            nothing = torch.full(rows.shape[:-2], torch.nan, dtype=torch.float64)
            return Searched(nothing, nothing)
        return mean_of(torch.cat(found, -2))

    def precision(
        self,
        score: Float[Tensor, "*edits some n"],
        some: Int[Tensor, " some"],
        weight: Float[Tensor, "*draws n"] | None = None,
    ) -> Float[Tensor, "*found some 2"]:
        """Average precision of some of the searches, and by chance; NaN where nothing is sought.

        Args:
            score: `[*edits, some, n]` cosines, rounded.
            some: Which of the searches.
            weight: As for `find`.
        """
        ranked = self.ranked[some].double()
        if weight is not None:
            ranked = ranked * weight.double()[..., None, :]
        found = search(score, self.sought[some], ranked)
        return torch.stack([found.precision, found.precision_blind], -1)


def mean_of(precision: Float[Tensor, "*edits k 2"]) -> Searched:
    """The mean over the searches that looked for something.

    Args:
        precision: As `Searching.precision` gives it.
    """
    value, blind = precision.nanmean(-2).unbind(-1)
    return Searched(value, blind)
