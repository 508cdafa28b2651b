"""What many edits leave told, from shared scores and low-rank updates of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.asking import (
    FOUND,
    RECALL,
    Answers,
    Asking,
    Told,
    against,
    rounded,
    search,
)
from nullspace_unlearn.evaluate.kept_search import Searched, Searching, mean_of
from nullspace_unlearn.linalg import unit

MOST_OTHERS = 512
"""Images that the blind values of `named` are taken of, at most; a search ranks all of them."""

MOST_NAMES = 16
"""Names that stay which are searched for, at most, among the sample's images."""

# Classes that are compared with every name one by one, in float32.
_FEW = 8
# Scores nearer than this are equal, as in `asking`.
_EQUAL = 5e-7


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
        base, amount = self._scores(few), self.embeddings[few.images] @ read
        beaten = _beaten if len(few.classes) <= _FEW else _beaten_sorted
        parts = [beaten(base, a, b, few) for a, b in zip(amount, moves, strict=True)]
        above, ties = (torch.stack(some) for some in zip(*parts, strict=True))
        named = Answers(few, score[..., at], above, ties).told()
        for j, (own, others) in enumerate(zip(asking.own, asking.others, strict=True)):
            ranked = own | others
            ranking = search(score[..., j, ranked], own[ranked])
            for way, value, blind in (
                (FOUND, ranking.precision, ranking.precision_blind),
                (RECALL, ranking.recall, ranking.recall_blind),
            ):
                named.value[..., j, named.ways.index(way)] = value
                named.blind[..., j, named.ways.index(way)] = blind
        return named

    def searched(self, mask: Bool[Tensor, "classes domains"], edit: Edit | None) -> Searched:
        """What searches by names that stay find, some names among the sample's images.

        Args:
            mask: True where a cell is forgotten.
            edit: As for `told`.

        Returns:
            `[edits]`; without edits, a single one.
        """
        at = self.sample
        searching = Searching.of(mask, self.labels[at], self.domains[at], most=MOST_NAMES)
        score = self.scores[:, searching.classes]
        if edit is not None:
            read, write = edit.read.double(), edit.write.double()
            rows = self.embeddings[at]
            amount, written = rows @ read, rows @ write
            score = score - amount @ (self.texts[searching.classes] @ write).mT
            score = score / _length(amount, written, write)
        every = torch.arange(len(searching.classes))
        return mean_of(searching.precision(rounded(score).mT, every))

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
        names, whole = asking.classes, len(asking.images) == len(self.labels)
        rows = self.embeddings if whole else self.embeddings[asking.images]
        columns = torch.cat([self.texts[names].mT.expand(len(read), -1, -1), read, write], -1)
        many = [len(names), read.shape[-1], write.shape[-1]]
        told, amount, written = (rows @ columns).split(many, -1)
        score = told - amount @ moves[:, names].mT
        return rounded(score / _length(amount, written, write)).mT


def _length(amount: Tensor, written: Tensor, write: Tensor) -> Tensor:
    """Lengths `[edits, n, 1]` of edited unit rows; 1 where nothing is left of one."""
    square = 1 - 2 * (amount * written).sum(-1)
    square = square + ((amount @ (write.mT @ write)) * amount).sum(-1)
    length = square.clamp(min=0).sqrt()[..., None]
    return length.masked_fill(length == 0, 1)


def _beaten(base: Tensor, amount: Tensor, moves: Tensor, few: Asking) -> tuple[Tensor, Tensor]:
    """Listed names that beat or meet each forgotten one `[k, n]`, of one edit; of few classes."""
    scores = torch.addmm(base.float(), amount.float(), moves.float().mT, alpha=-1)
    above, ties = [], []
    for c, listed in zip(few.classes.tolist(), few.listed, strict=True):
        own = scores[:, c, None]
        beats, meets = scores > own + _EQUAL, scores >= own - _EQUAL
        missing = (~listed).nonzero()[:, 0]
        over, upto = (some.sum(-1) - some[:, missing].sum(-1) for some in (beats, meets))
        above.append(over.int())
        ties.append((upto - over).int())
    return torch.stack(above), torch.stack(ties)


def _beaten_sorted(
    base: Tensor, amount: Tensor, moves: Tensor, few: Asking
) -> tuple[Tensor, Tensor]:
    """The same of many classes, which share a sorted list."""
    return against(rounded(base - amount @ moves.mT), few)[1:]
