"""What many edits leave told, from shared scores and low-rank updates of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.asking import Answers, Asking, Told, against, rounded
from nullspace_unlearn.linalg import unit

MOST_OTHERS = 1024
"""Images that the blind values of `named` are taken of, at most; a search ranks all of them."""

# Numbers held at once for edits x images x names.
_TILE = 1 << 22


@dataclass(frozen=True, eq=False)
class Shared:
    """Images and names that many edits are asked about.

    Attributes:
        embeddings: `[n, dim]` float64 unit rows, of the untouched model.
        texts: `[names, dim]` float64 unit rows.
        labels: `[n]` classes of the images.
        domains: `[n]` their domains.
        sample: `[m]` images, evenly spaced, that stand for the others.
        scores: `[m, names]` what the untouched model says of these.
    """

    embeddings: Float[Tensor, "n dim"]
    texts: Float[Tensor, "names dim"]
    labels: Int[Tensor, " n"]
    domains: Int[Tensor, " n"]
    sample: Int[Tensor, " m"]
    scores: Float[Tensor, "m names"]

    @classmethod
    def of(
        cls,
        embeddings: Float[Tensor, "n dim"],
        classifier: Float[Tensor, "names dim"],
        labels: Int[Tensor, " n"],
        domains: Int[Tensor, " n"],
        most: int = MOST_OTHERS,
    ) -> Shared:
        """Score a sample of the images once.

        Args:
            embeddings: `[n, dim]`, any positive scale of a row.
            classifier: `[names, dim]`, any positive scale of a row.
            labels: `[n]`.
            domains: `[n]`.
            most: Images of the sample, at most.
        """
        rows, texts = unit(embeddings.double()), unit(classifier.double())
        # Evenly spaced by class and domain, so that each is there by its share.
        order = (labels * (int(domains.max()) + 1) + domains).argsort(stable=True)
        spaced = torch.linspace(0, len(order) - 1, min(most, len(order))).round().long()
        sample = order[spaced].sort().values
        return cls(rows, texts, labels, domains, sample, rows[sample] @ texts.mT)

    def told(self, mask: Bool[Tensor, "classes domains"], edit: Edit | None) -> Told:
        """What edits of the image tower leave told under one request.

        Args:
            mask: True where a cell is forgotten.
            edit: A batch `[edits]` of edits that read the embedding; None for the untouched model.

        Returns:
            `[edits, k, ways]`; without edits, `[k, ways]`.
        """
        if edit is None:
            nothing = torch.zeros(1, self.texts.shape[1], 1, dtype=torch.float64)
            found = self.told(mask, Edit(nothing, nothing))
            return replace(found, value=found.value[0], blind=found.blind[0])
        asking = Asking.of(mask, self.labels, self.domains, len(self.texts))
        few, at = self._thinned(asking)
        read, write = edit.read.double(), edit.write.double()
        moves = self.texts @ write
        score = self._score(asking, read, write, moves)
        base = self._scores(few)
        amount = self.embeddings[few.images] @ read
        parts = []
        size = max(1, _TILE // max(1, base.numel()))
        for a, b in zip(amount.split(size), moves.split(size), strict=True):
            parts.append(against(rounded(base - a @ b.mT), few)[1:])
        above, ties = (torch.cat(some) for some in zip(*parts, strict=True))
        named = Answers(few, score[..., at], above, ties).told()
        searched = Answers(asking, score, score.int() * 0, score.int() * 0).told()
        lists = sum(way.startswith("named") for way in named.ways)
        value, blind = (
            torch.cat([own[..., :lists], its[..., lists:]], -1)
            for own, its in ((named.value, searched.value), (named.blind, searched.blind))
        )
        return Told(named.ways, value, blind)

    def _thinned(self, asking: Asking) -> tuple[Asking, Tensor]:
        """The asking with the sample's images for the others, and where its images stand."""
        there = torch.zeros(len(self.labels), dtype=torch.bool)
        there[self.sample] = True
        kept = asking.own.any(0) | there[asking.images]
        others = asking.others & kept
        if not others.any(1).all():  # none of some domain was drawn
            kept, others = torch.ones_like(kept), asking.others
        at = kept.nonzero()[:, 0]
        few = replace(asking, images=asking.images[at], own=asking.own[:, at], others=others[:, at])
        return few, at

    def _scores(self, few: Asking) -> Tensor:
        """Untouched scores `[n, names]` of some images, those of the sample not made again."""
        place = torch.searchsorted(self.sample, few.images).clamp(max=len(self.sample) - 1)
        drawn = self.sample[place] == few.images
        base = self.scores[place]
        base[~drawn] = self.embeddings[few.images[~drawn]] @ self.texts.mT
        return base

    def _score(self, asking: Asking, read: Tensor, write: Tensor, moves: Tensor) -> Tensor:
        """Cosines `[edits, k, n]` with the forgotten names: of all images, one column a name."""
        rows, names = self.embeddings[asking.images], asking.classes
        amount = rows @ read
        score = rows @ self.texts[names].mT - amount @ moves[:, names].mT
        square = 1 - 2 * (amount * (rows @ write)).sum(-1)
        square = square + ((amount @ (write.mT @ write)) * amount).sum(-1)
        length = square.clamp(min=0).sqrt()[..., None]
        return rounded(score / length.masked_fill(length == 0, 1)).mT
