"""Ways of asking a model for a forgotten name, and what each of them still finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.linalg import unit

LISTS = (2, 5, 10, 50)
"""Lengths of the lists of names that an image is asked to choose from, beside the whole list."""

ALL, DEPLOYED, FOUND, RECALL = "named_all", "named_deployed", "found", "recall"

# Numbers held at once for images x names.
_TILE = 1 << 22
# Classes that are compared with every name one by one.
_FEW = 8
# Scores are equal where they agree to so many decimals: below that is the rounding of a model in
# float32, by which names that are one vector, or a direction that was taken out, would be told.
_DECIMALS = 6


def way_of(length: int) -> str:
    """The way of asking by lists of one length."""
    return f"named_{length}"


@lru_cache(maxsize=64)
def chances(names: int, length: int) -> Float[Tensor, " beaten"]:
    """How likely a name wins a list that is drawn with it, by how many names score above it.

    The list is the name and `length - 1` of `names` others, every choice of them equally likely.
    With b of them above, it wins where none of the b is drawn: `C(names - b, length - 1) /
    C(names, length - 1)`.

    Args:
        names: How many other names there are.
        length: From 1 to `names + 1`.

    Returns:
        `[names + 1]` float64, for b from 0 to `names`.

    Raises:
        ValueError: If there are not that many names.
    """
    if not 1 <= length <= names + 1:
        raise ValueError(f"a list of {length} names cannot be drawn from {names} others and one")
    if length == names + 1:
        return (torch.arange(names + 1) == 0).double()
    drawn = torch.arange(length - 1, dtype=torch.float64)
    left = torch.arange(names, -1, -1, dtype=torch.float64)[:, None] - drawn
    return (left.clamp(min=0) / (names - drawn)).prod(-1)


def named(
    above: Int[Tensor, "*any"], ties: Int[Tensor, "*any"], names: int, length: int
) -> Float[Tensor, "*any"]:
    """How often an image gets a name when it chooses from lists drawn with that name.

    A list whose best score the name shares with others counts half.

    Args:
        above: Other names that score above it.
        ties: Other names that score exactly the same.
        names: How many other names there are.
        length: Names on a list, this one included.

    Returns:
        The share of all lists, float64; exact, nothing is drawn.
    """
    table = chances(names, length).to(above.device)
    return (table[above.long()] + table[(above + ties).long()]) / 2


@dataclass(frozen=True, eq=False)
class Search:
    """How well a ranking finds some images, and what any ranking of these scores finds by chance.

    Attributes:
        precision: `[*any]` average precision: the mean, over what is looked for, of the precision
            down to its score; equal scores are one step, as in scikit-learn.
        precision_blind: `[*any]` its mean over all ways of saying which images are looked for. Of
            few images it exceeds their share, which it tends to.
        recall: `[*any]` share of what is looked for among the k that score highest; of equal scores
            at the end of the k, each is among them with equal chance.
        recall_blind: `[*any]` its mean over all ways of saying which images are looked for.
    """

    precision: Float[Tensor, "*any"]
    precision_blind: Float[Tensor, "*any"]
    recall: Float[Tensor, "*any"]
    recall_blind: Float[Tensor, "*any"]


def search(
    score: Float[Tensor, "*#any n"],
    positive: Bool[Tensor, "*#any n"],
    weight: Float[Tensor, "*#any n"] | None = None,
    k: int | None = None,
) -> Search:
    """Rank images by a score and look for some of them.

    Args:
        score: `[*any, n]`, the highest first.
        positive: `[*any, n]`, what is looked for.
        weight: How often each image is there; once if None.
        k: How many are taken for the recall; as many as are looked for if None.

    Returns:
        What is found.
    """
    falling, order = (-score).sort(-1)
    falling = falling.contiguous()
    shapes = [score.shape, positive.shape, *([] if weight is None else [weight.shape])]
    shape = torch.broadcast_shapes(*shapes)
    first = torch.searchsorted(falling, falling).expand(shape)
    last = (torch.searchsorted(falling, falling, right=True) - 1).expand(shape)
    order = order.expand(shape)
    every = torch.ones(shape, dtype=torch.float64, device=score.device)
    if weight is not None:
        every = weight.double().expand(shape).gather(-1, order)
    sought = every * positive.expand(shape).gather(-1, order)
    down, hits = every.cumsum(-1), sought.cumsum(-1)
    n, total = down[..., -1:], hits[..., -1:]
    rank = down.gather(-1, last).clamp(min=1)
    precision = (sought * hits.gather(-1, last) / rank).sum(-1) / total[..., 0]
    # Of the others, each is as likely as any to be one of the rest of what is looked for.
    likely = (total - 1) / (n - 1).clamp(min=1)
    by_chance = (every * (1 + likely * (rank - 1)) / rank).sum(-1) / n[..., 0]

    taken = total if k is None else torch.full_like(total, k).minimum(n)
    end = torch.searchsorted(down, taken.contiguous()).clamp(max=shape[-1] - 1)
    start, stop = first.gather(-1, end), last.gather(-1, end)
    above = [
        sums.gather(-1, start) - part.gather(-1, start)
        for sums, part in ((down, every), (hits, sought))
    ]
    group = down.gather(-1, stop) - above[0]
    share = (taken - above[0]) / group.clamp(min=1)
    hit = above[1] + (hits.gather(-1, stop) - above[1]) * share
    return Search(precision, by_chance, (hit / total)[..., 0], (taken / n)[..., 0])


@dataclass(frozen=True, eq=False)
class Asking:
    """Who is asked for what, under one request.

    For a class forgotten in some domains, or in all: *its* images are those of its forgotten
    cells; *the others* are images of other classes in the same domains, of cells that stay; and
    the names it is listed with are those that stay there. Where nothing stays in these domains, as
    when whole domains go, the others are all other classes' images there, and all other names.

    Attributes:
        classes: `[k]` the forgotten classes that there are images of, and images of others beside.
        images: `[n]` the images that any of them is judged by.
        own: `[k, n]`, which of these are the class's.
        others: `[k, n]`, which are the others.
        listed: `[k, names]`, the names it is listed with.
    """

    classes: Int[Tensor, " k"]
    images: Int[Tensor, " n"]
    own: Bool[Tensor, "k n"]
    others: Bool[Tensor, "k n"]
    listed: Bool[Tensor, "k names"]

    @classmethod
    def of(
        cls,
        mask: Bool[Tensor, "classes domains"],
        labels: Int[Tensor, " all"],
        domains: Int[Tensor, " all"] | None = None,
        names: int | None = None,
    ) -> Asking:
        """Work out who is asked for what.

        Args:
            mask: True where a cell is forgotten.
            labels: `[all]` classes of the images.
            domains: `[all]` their domains, or None for a single one.
            names: How many names there are, the classes being the first of them; as many if None.

        Returns:
            The asking; of no class where there is no image of a forgotten cell.
        """
        mask, labels = mask.cpu(), labels.cpu()
        domains = torch.zeros_like(labels) if domains is None else domains.cpu()
        more = torch.ones(max(0, (names or 0) - len(mask)), dtype=torch.bool)
        gone = mask[labels, domains]
        classes, own, others, listed = [], [], [], []
        for c in mask.any(1).nonzero()[:, 0].tolist():
            there = mask[c][domains]
            stays = (~mask[:, mask[c]]).any(1)
            beside = (labels != c) & there & ~gone
            if not stays.any():
                stays, beside = torch.ones_like(stays), (labels != c) & there
            stays = torch.cat([stays, more])
            stays[c] = False
            mine = (labels == c) & gone
            if mine.any() and beside.any() and stays.any():
                classes.append(c)
                own.append(mine)
                others.append(beside)
                listed.append(stays)
        if not classes:
            nothing = torch.zeros(0, 0, dtype=torch.bool)
            rows = torch.zeros(0, len(mask) + len(more), dtype=torch.bool)
            return cls(torch.zeros(0).long(), torch.zeros(0).long(), nothing, nothing, rows)
        both = [torch.stack(some) for some in (own, others)]
        images = (both[0] | both[1]).any(0).nonzero()[:, 0]
        return cls(
            classes=torch.tensor(classes),
            images=images,
            own=both[0][:, images],
            others=both[1][:, images],
            listed=torch.stack(listed),
        )

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of asking that fit: lists no longer than the names there are; searching."""
        least = int(self.listed.sum(1).min()) if len(self.classes) else 0
        return (*(way_of(m) for m in LISTS if m <= least + 1), ALL, FOUND, RECALL)


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answers, or each of a batch.

    Attributes:
        asking: Who was asked for what.
        score: `[*edits, k, n]` cosine of each image with each forgotten name, float64.
        above: `[*edits, k, n]` names on the whole list that score above it, int32.
        ties: `[*edits, k, n]` names that score exactly the same, int32.
        deployed: The answers by the list that is deployed, if there is one.
    """

    asking: Asking
    score: Float[Tensor, "*edits k n"]
    above: Int[Tensor, "*edits k n"]
    ties: Int[Tensor, "*edits k n"]
    deployed: Answers | None = None

    @classmethod
    def of(
        cls,
        asking: Asking,
        embeddings: Float[Tensor, "*edits all dim"],
        classifier: Float[Tensor, "*texts names dim"],
    ) -> Answers:
        """Score the images that are asked with every name, some at a time, in float64.

        Args:
            asking: Who is asked for what.
            embeddings: `[*edits, all, dim]`, any positive scale of a row.
            classifier: `[*texts, names, dim]` a row a name, any positive scale of it; its leading
                dimensions are those of the embeddings, or none.

        Returns:
            The answers, on the CPU.

        Raises:
            ValueError: If the sizes differ, or something is NaN or infinite.
        """
        if classifier.shape[-2] != asking.listed.shape[1]:
            raise ValueError(
                f"{asking.listed.shape[1]} names need as many rows, got {classifier.shape[-2]}"
            )
        for what, rows in (("embeddings", embeddings), ("classifier", classifier)):
            if not torch.isfinite(rows).all():
                raise ValueError(f"{what} must be finite, got NaN or Inf")
        texts = unit(classifier.double())
        size = max(1, _TILE // max(1, texts.shape[-2] * embeddings[..., 0, 0].numel()))
        parts = []
        for some in asking.images.split(size):
            rows = unit(embeddings[..., some.to(embeddings.device), :].double())
            scores = rounded(rows @ texts.mT.to(rows.device))
            parts.append([part.cpu() for part in against(scores, asking)])
        if not parts:
            empty = torch.zeros(*embeddings.shape[:-2], 0, 0)
            return cls(asking, empty.double(), empty.int(), empty.int())
        score, above, ties = (torch.cat(some, -1) for some in zip(*parts, strict=True))
        return cls(asking, score, above, ties)

    def told(self, weight: Float[Tensor, "*draws n"] | None = None) -> Told:
        """What every way of asking finds.

        Args:
            weight: `[*draws, n]` how often each image is there, for the bootstrap; once if None.

        Returns:
            A number for each class and way.
        """
        asking = self.asking
        found = [self._class(j, weight) for j in range(len(asking.classes))]
        if not found:
            none = torch.zeros(*self.score.shape[:-2], 0, len(asking.ways), dtype=torch.float64)
            return Told(asking.ways, none, none)
        value, blind = (torch.stack(some, -2) for some in zip(*found, strict=True))
        told = Told(asking.ways, value, blind)
        if self.deployed is None:
            return told
        return told.joined(DEPLOYED, self.deployed.told(weight))

    def _class(self, j: int, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Value and blind value `[*edits or *draws, ways]` of one class."""
        asking = self.asking
        own, others = (some[j].nonzero()[:, 0] for some in (asking.own, asking.others))
        names = int(asking.listed[j].sum())
        lengths = [m for m in LISTS if way_of(m) in asking.ways] + [names + 1]
        tables = torch.stack([chances(names, m) for m in lengths], -1)
        means = []
        for some in (own, others):
            above, ties = (part[..., j, some].long() for part in (self.above, self.ties))
            wins = (tables[above] + tables[above + ties]) / 2
            means.append(_mean(wins, None if weight is None else weight[..., some]))
        both = torch.cat([own, others])
        sought = torch.arange(len(both)) < len(own)
        weighed = None if weight is None else weight[..., both]
        found = search(self.score[..., j, both], sought, weighed)
        ranked = torch.stack([found.precision, found.recall], -1)
        chance = torch.stack([found.precision_blind, found.recall_blind], -1)
        return torch.cat([means[0], ranked], -1), torch.cat([means[1], chance], -1)


@dataclass(frozen=True, eq=False)
class Told:
    """What each way of asking finds of each forgotten class, and what it finds blindly.

    Attributes:
        ways: Names of the ways of asking.
        value: `[*edits, k, ways]` for the class's images.
        blind: `[*edits, k, ways]` what a name that says nothing would score: the same of the
            others, and for searching the mean over all ways of saying which images are the class's.
    """

    ways: tuple[str, ...]
    value: Float[Tensor, "*edits k ways"]
    blind: Float[Tensor, "*edits k ways"]

    def of(self, way: str, blind: bool = False) -> Float[Tensor, "*edits"]:
        """One way's mean over the classes; NaN where the way does not fit.

        Args:
            way: Its name.
            blind: Whether its blind value is asked for.
        """
        values = self.blind if blind else self.value
        if way not in self.ways:
            return values.new_full(values.shape[:-2], torch.nan)
        return values[..., self.ways.index(way)].mean(-1)

    def averaged(self) -> Told:
        """The same with the classes' mean for the only class, which figures are computed from."""
        return replace(
            self, value=self.value.mean(-2, keepdim=True), blind=self.blind.mean(-2, keepdim=True)
        )

    @classmethod
    def together(cls, several: Sequence[Told]) -> Told:
        """Several of as many classes along a new last leading dimension.

        Args:
            several: What was told under each of several requests; a way that does not fit one of
                them is NaN there.
        """
        ways = max((one.ways for one in several), key=len)
        every = tuple(dict.fromkeys((*ways, *(way for one in several for way in one.ways))))
        both = []
        for part in ("value", "blind"):
            columns = [
                torch.stack(
                    [
                        getattr(one, part)[..., one.ways.index(way)]
                        if way in one.ways
                        else torch.full_like(getattr(one, part)[..., 0], torch.nan)
                        for way in every
                    ],
                    -1,
                )
                for one in several
            ]
            both.append(torch.stack(columns, -3))
        return cls(every, *both)

    def joined(self, way: str, other: Told) -> Told:
        """This and, as a further way, the whole list of another asking of the same classes.

        Args:
            way: What to call it.
            other: The other.
        """
        at = other.ways.index(ALL)
        value, blind = (
            torch.cat([mine, its[..., at : at + 1]], -1)
            for mine, its in ((self.value, other.value), (self.blind, other.blind))
        )
        return Told((*self.ways, way), value, blind)


def rounded(scores: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Scores that are equal but for rounding made equal.

    Args:
        scores: Cosines, or differences of them, float64.
    """
    return scores.round(decimals=_DECIMALS)


def against(
    scores: Float[Tensor, "*edits n names"], asking: Asking
) -> tuple[Float[Tensor, "*edits k n"], Int[Tensor, "*edits k n"], Int[Tensor, "*edits k n"]]:
    """Scores `[*edits, k, n]` of the forgotten names, and how many listed ones beat or meet them.

    Classes listed with the same names, their own aside, share one sorted list; to sort is dearer
    than to compare where they are few.

    Args:
        scores: `[*edits, n, names]` of the images that are asked, rounded.
        asking: Who is asked for what.

    Returns:
        The scores, the names that score above, and those that score the same.
    """
    own = scores[..., asking.classes].mT.contiguous()
    above, ties = (torch.zeros_like(own, dtype=torch.int32) for _ in range(2))
    # In whole domains each name is listed with the others: one list of all, less itself.
    listed = asking.listed.clone()
    among = asking.listed[:, asking.classes].any(0)
    listed[torch.arange(len(among)), asking.classes] = among
    rows, group = listed.unique(dim=0, return_inverse=True)
    for number, row in enumerate(rows):
        some = (group == number).nonzero()[:, 0]
        names = scores[..., row]
        itself = among[some, None].int()
        if len(some) <= _FEW:
            for j, less in zip(some.tolist(), itself, strict=True):
                asked = own[..., j, :, None]
                above[..., j, :] = (names > asked).sum(-1).int()
                ties[..., j, :] = (names == asked).sum(-1).int() - less
            continue
        rising = names.sort(-1).values.contiguous()
        asked = own[..., some, :].mT.contiguous()
        below, upto = (torch.searchsorted(rising, asked, right=right) for right in (False, True))
        above[..., some, :] = (rising.shape[-1] - upto).mT.int()
        ties[..., some, :] = (upto - below).mT.int() - itself
    return own, above, ties


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over the last but one dimension."""
    if weight is None:
        return values.mean(-2)
    total = torch.einsum("...n,...nw->...w", weight.double(), values)
    return total / weight.sum(-1, keepdim=True)
