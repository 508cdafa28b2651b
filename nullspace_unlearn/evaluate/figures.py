"""Every figure by which a request is judged, declared once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.evaluate.asking import ALL, DEPLOYED, FOUND, LISTS, RECALL, Told, way_of
from nullspace_unlearn.evaluate.kept_search import Searched
from nullspace_unlearn.evaluate.zeroshot import Grid
from nullspace_unlearn.forget import groups

TOLD = 0.02
"""A way of asking says something of a class where the untouched model's value exceeds the blind one
by at least this much; elsewhere there is nothing to forget in it."""


FORGOTTEN = 0.1
"""What counts as forgotten: `left` and `over` are at most this."""

Verdict = Literal["forgotten", "not forgotten", "over-forgotten", "unknown"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a model, or each of a batch, made of some images under a request.

    Attributes:
        mask: `[*edits, classes, domains]`, True where a cell is forgotten.
        count: `[*edits, classes, domains]` images of each cell.
        accuracy: `[*edits, classes, domains]` how many of them are named right; 0 where there are
            none.
        before: The same of the untouched model, or None.
        told: What the model tells of each forgotten class, or None.
        told_before: What the untouched model tells, or None.
        searched: What searches by names that stay find, or None.
        searched_before: What they find with the untouched model, or None.
        others: `[*edits, sets, 2]` accuracy before and after on other data sets.
        seconds: What the edit took.
    """

    mask: Bool[Tensor, "*#edits classes domains"]
    count: Int[Tensor, "*#edits classes domains"]
    accuracy: Float[Tensor, "*#edits classes domains"]
    before: Float[Tensor, "*#edits classes domains"] | None = None
    told: Told | None = None
    told_before: Told | None = None
    searched: Searched | None = None
    searched_before: Searched | None = None
    others: Float[Tensor, "*#edits sets 2"] | None = None
    seconds: float | None = None

    @property
    def shape(self) -> torch.Size:
        """The leading dimensions."""
        given = [self.mask, self.count, self.accuracy]
        given += [] if self.before is None else [self.before]
        shapes = [one.shape[:-2] for one in given]
        told = [one.value.shape[:-2] for one in (self.told, self.told_before) if one is not None]
        found = [] if self.searched is None else [self.searched.value.shape]
        return torch.broadcast_shapes(*shapes, *told, *found)

    def nothing(self) -> Float[Tensor, "*edits"]:
        """The value of a figure that cannot be told."""
        return torch.full(self.shape, torch.nan, dtype=torch.float64)

    def mean(self, cells: Tensor, accuracy: Tensor | None = None) -> Float[Tensor, "*edits"]:
        """Mean over some cells, those with images, each counting once; NaN where none are."""
        values = self.accuracy if accuracy is None else accuracy
        cells = (cells & (self.count > 0)).double()
        return (values * cells).sum((-2, -1)) / cells.sum((-2, -1))

    def over_images(self, cells: Tensor, accuracy: Tensor) -> Float[Tensor, "*edits"]:
        """Mean over the images of some cells; NaN where there are none."""
        count = self.count * cells.double()
        return (accuracy * count).sum((-2, -1)) / count.sum((-2, -1))

    def group(self, number: int) -> Float[Tensor, "*edits"]:
        """Mean accuracy of one of the four groups of `forget.groups`."""
        return self.mean(groups(self.mask)[number])

    @property
    def stays(self) -> Bool[Tensor, "*edits classes domains"]:
        """The cells with images that are not forgotten."""
        return ~self.mask & (self.count > 0)

    def loss(self) -> Float[Tensor, "*edits classes domains"]:
        """Accuracy lost in each cell that stays; minus infinity in all others."""
        assert self.before is not None  # callers check
        return (self.before - self.accuracy).masked_fill(~self.stays, -torch.inf)

    def remaining(self) -> Float[Tensor, "*edits ways"]:
        """How much of what the untouched model tells is left, by each of `judged_ways`.

        1 is all of it, 0 none, below 0 the name is got less often than on other images; NaN where
        the untouched model tells nothing in this way.
        """
        told, untouched = self.told, self.told_before
        if told is None or untouched is None or not told.value.shape[-2]:
            return self.nothing()[..., None]
        ways = [told.ways.index(way) for way in judged_ways(told)]
        now, was = ((one.value - one.blind)[..., ways].mean(-2) for one in (told, untouched))
        return (now / was).masked_fill(was < TOLD, torch.nan).expand(*self.shape, -1)


Formula = Callable[[Evidence], Float[Tensor, "*edits"]]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: Its key in tables, reports and options.
        title: What a table's head says.
        meaning: What it says, in a sentence without its end.
        good: Which way is good.
        unit: "share" of 1, "points" or "percent" of 100, or "seconds".
        formula: From evidence with leading dimensions; NaN where it cannot be told.
        images: Whose images it is computed from.
        blind: What a name that says nothing would score, where that is known.
    """

    name: str
    title: str
    meaning: str
    good: Literal["low", "high", "chance"]
    unit: Literal["share", "points", "percent", "seconds"]
    formula: Formula
    images: Literal["forgotten", "kept", "both"] = "both"
    blind: Formula | None = None

    def written(self, value: float | None) -> str:
        """A value as tables show it; a dash where there is none."""
        if value is None or math.isnan(value):
            return "-"
        digits = {"share": ".3f", "points": ".1f", "percent": ".1f", "seconds": ".2g"}[self.unit]
        text = format(value, digits)
        return text.removeprefix("-") if not float(text) else text


def judged_ways(told: Told) -> tuple[str, ...]:
    """The ways of asking that `left` and `over` are taken over.

    Args:
        told: What was told.
    """
    return tuple(way for way in told.ways if way != RECALL)


def figures(evidence: Evidence) -> dict[str, Float[Tensor, "*edits"]]:
    """Every figure of `FIGURES`.

    Args:
        evidence: What a model made of some images.

    Returns:
        Name -> `[*edits]` float64; NaN where it cannot be told.
    """
    return {name: figure.formula(evidence) for name, figure in FIGURES.items()}


def blind_figures(evidence: Evidence) -> dict[str, Float[Tensor, "*edits"]]:
    """What a name that says nothing would score in each figure; NaN where that is not known.

    Args:
        evidence: What a model made of some images.
    """
    return {
        name: evidence.nothing() if figure.blind is None else figure.blind(evidence)
        for name, figure in FIGURES.items()
    }


def plain_values(values: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Figures of one model as plain values, None where they cannot be told.

    Args:
        values: Name -> a single number.
    """
    numbers = {name: float(value) for name, value in values.items()}
    return {name: None if math.isnan(one) else one for name, one in numbers.items()}


def grid_figures(
    grid: Grid,
    mask: Bool[Tensor, "classes domains"],
    before: Grid | None = None,
    others: Sequence[tuple[float, float]] = (),
) -> dict[str, float | None]:
    """The figures that follow from a model's accuracy in each cell, as plain values.

    Args:
        grid: The accuracies.
        mask: True where a cell is forgotten, as from `Forget.mask`.
        before: Those of the untouched model.
        others: Accuracy before and after on every other data set.

    Returns:
        Every figure; None where the accuracies do not tell it.

    Raises:
        ValueError: If the shapes differ.
    """
    return plain_values(figures(evidence_of(grid, mask, before, others)))


def evidence_of(
    grid: Grid,
    mask: Bool[Tensor, "classes domains"],
    before: Grid | None = None,
    others: Sequence[tuple[float, float]] = (),
) -> Evidence:
    """Evidence from accuracies alone.

    Args:
        grid: The accuracies.
        mask: True where a cell is forgotten.
        before: Those of the untouched model.
        others: Accuracy before and after on every other data set.

    Raises:
        ValueError: If the shapes differ.
    """
    shapes = [mask.shape, *([] if before is None else [before.count.shape])]
    if any(shape != grid.count.shape for shape in shapes) or mask.dtype != torch.bool:
        given = f"{mask.dtype} {', '.join(str(list(shape)) for shape in shapes)}"
        raise ValueError(f"mask must be boolean {list(grid.count.shape)}, got {given}")
    return Evidence(
        mask=mask.cpu(),
        count=grid.count.cpu(),
        accuracy=grid.accuracy.cpu().double(),
        before=None if before is None else before.accuracy.cpu().double(),
        others=torch.tensor(others, dtype=torch.float64) if others else None,
    )


def verdict_of(values: Mapping[str, float | None]) -> Verdict:
    """Whether what was to be forgotten is.

    Args:
        values: The figures of a model.

    Returns:
        "unknown" where no image tells, or the untouched model did not know it.
    """
    left, over = values["left"], values["over"]
    if left is None or over is None:
        return "unknown"
    if left > FORGOTTEN:
        return "not forgotten"
    return "over-forgotten" if over > FORGOTTEN else "forgotten"


def most_found(evidence: Evidence) -> str | None:
    """The way of asking that finds most of what is left, of one model.

    Args:
        evidence: What the model made of some images.

    Returns:
        Its name among `FIGURES`; None where no way finds anything out.
    """
    remaining = evidence.remaining().nan_to_num(nan=-torch.inf)
    if evidence.told is None or not bool((remaining > -torch.inf).any()):
        return None
    return judged_ways(evidence.told)[int(remaining.argmax())]


def paid_most(evidence: Evidence) -> tuple[int, int] | None:
    """The cell that lost most of those that stay, of one model.

    Args:
        evidence: What the model made of some images.

    Returns:
        Its class and domain; None where nothing stays, or there is no untouched model.
    """
    if evidence.before is None or not bool(evidence.stays.any()):
        return None
    place = int(evidence.loss().argmax())
    return place // evidence.mask.shape[-1], place % evidence.mask.shape[-1]


def harmonic(parts: Float[Tensor, n * edits]) -> Float[Tensor, "*edits"]:
    """Harmonic mean over the first dimension of those that are not NaN; 0 where one is 0.

    Args:
        parts: `[n, *edits]`, none below 0.
    """
    there = ~parts.isnan()
    # A part that is 0 divides to infinity, and the mean is 0, as it should be.
    return there.sum(0) / (1 / parts.masked_fill(~there, 1) * there).sum(0)


def _told(way: str, blind: bool = False) -> Formula:
    def formula(e: Evidence) -> Tensor:
        if e.told is None or not e.told.value.shape[-2]:
            return e.nothing()
        return e.told.of(way, blind).expand(e.shape)

    return formula


def _named(way: str, title: str, list_: str) -> Figure:
    return Figure(
        way, title, f"how often an image of what was to be forgotten gets its name from {list_}",
        "chance", "share", _told(way), "forgotten", _told(way, blind=True),
    )  # fmt: skip


def _left(e: Evidence) -> Tensor:
    found = e.remaining()
    most = found.nan_to_num(nan=-torch.inf).amax(-1).clamp(min=0)
    return most.masked_fill(found.isnan().all(-1), torch.nan)


def _over(e: Evidence) -> Tensor:
    found = e.remaining()
    least = found.nan_to_num(nan=torch.inf).amin(-1).clamp(max=0)
    return (0 - least).masked_fill(found.isnan().all(-1), torch.nan)


def _kept(e: Evidence) -> Tensor:
    return e.mean(~e.mask)


def _cost(e: Evidence) -> Tensor:
    return e.nothing() if e.before is None else 100 * (e.mean(~e.mask, e.before) - _kept(e))


def _paid(e: Evidence) -> Tensor:
    if e.before is None:
        return e.nothing()
    most = e.loss().amax((-2, -1))
    return 100 * most.masked_fill(most == -torch.inf, torch.nan)


def _balance(e: Evidence) -> Tensor:
    if e.before is None:
        return e.nothing()
    done = (1 - torch.maximum(_left(e), _over(e))).clamp(min=0)
    both = torch.stack(torch.broadcast_tensors(done, _kept(e) / e.mean(~e.mask, e.before)))
    return harmonic(both).masked_fill(both.isnan().any(0), torch.nan)


def _worst_kept(e: Evidence) -> Tensor:
    worst = e.accuracy.masked_fill(~e.stays, torch.inf).amin((-2, -1))
    return worst.masked_fill(worst == torch.inf, torch.nan)


def _kept_search(e: Evidence) -> Tensor:
    return e.nothing() if e.searched is None else e.searched.value.expand(e.shape)


def _kept_search_blind(e: Evidence) -> Tensor:
    return e.nothing() if e.searched is None else e.searched.blind.expand(e.shape)


def _h4(e: Evidence) -> Tensor:
    parts = torch.stack([1 - e.group(0), *(e.group(i) for i in (1, 2, 3))])
    return harmonic(parts).masked_fill(parts[0].isnan() | parts[1:].isnan().all(0), torch.nan)


def _h(e: Evidence) -> Tensor:
    both = torch.stack([1 - e.group(0), _kept(e)])
    return harmonic(both).masked_fill(both.isnan().any(0), torch.nan)


def _subgroup(e: Evidence) -> Tensor:
    if e.before is None:
        return e.nothing()
    known = (e.count > 0) & (e.before > 0)
    ratio = e.accuracy / e.before.masked_fill(~known, 1)
    score = torch.where(e.mask, 1 - ratio, ratio.clamp(max=1)).masked_fill(~known, 0)
    mean = 100 * score.sum((-2, -1)) / known.sum((-2, -1))
    return mean.masked_fill(~(known & e.mask).any(-1).any(-1), torch.nan)


def _kravets(e: Evidence) -> Tensor:
    if e.before is None:
        return e.nothing()
    was, now = (e.over_images(e.mask, one) for one in (e.before, e.accuracy))
    pairs = [[e.over_images(~e.mask, one) for one in (e.before, e.accuracy)]]
    pairs += [] if e.others is None else [[*pair.unbind(-1)] for pair in e.others.unbind(-2)]
    lost = [(1 - b / a.masked_fill(a == 0, torch.inf)).clamp(min=0).masked_fill(a == 0, 0)
            for a, b in pairs]  # fmt: skip
    score = (now / was + sum(lost)) / (1 + len(lost))
    return score.masked_fill(was == 0, torch.nan)


def _spread(e: Evidence) -> Tensor:
    stays = e.stays.double()
    number = stays.sum(-1)
    means = (e.accuracy * stays).sum(-1) / number.clamp(min=1)
    rows = (number > 0).double()
    many = rows.sum(-1, keepdim=True)
    off = (means - (means * rows).sum(-1, keepdim=True) / many) ** 2
    return ((off * rows).sum(-1) / many[..., 0]).sqrt()


def _seconds(e: Evidence) -> Tensor:
    return e.nothing() if e.seconds is None else torch.full_like(e.nothing(), e.seconds)


FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure(
            "left", "left",
            "how much of what the untouched model's name says of an image is still said, in the "
            "way of asking that finds most: 1 is all of it, 0 nothing",
            "low", "share", _left,
            blind=lambda e: 0 * _left(e),
        ),
        Figure(
            "over", "over",
            "how far the name is got less often than on other images, in the way of asking where "
            "this is worst: the model still knows them, and tells",
            "low", "share", _over,
            blind=lambda e: 0 * _over(e),
        ),
        Figure(
            "cost", "cost", "accuracy lost on what stays, each cell counting once", "low", "points",
            _cost, "kept",
        ),
        Figure(
            "paid", "paid most", "the largest loss of a cell that stays", "low", "points", _paid,
            "kept",
        ),
        Figure(
            "balance", "balance",
            "harmonic mean of 1 - max(left, over) and of kept, after by before; for choosing "
            "settings",
            "high", "share", _balance,
        ),
        *(_named(way_of(m), f"named({m})", f"lists of {m} names, drawn from those that stay")
          for m in LISTS),
        _named(ALL, "named(all)", "the list of all names that stay"),
        _named(DEPLOYED, "named(deployed)", "the list that is deployed"),
        Figure(
            FOUND, "found", "average precision of a search by the name among images of others",
            "chance", "share", _told(FOUND), "both", _told(FOUND, blind=True),
        ),
        Figure(
            RECALL, "recall@n",
            "share of a class's n images among the n that a search by its name puts first",
            "chance", "share", _told(RECALL), "both", _told(RECALL, blind=True),
        ),
        Figure(
            "forgotten", "forgotten", "accuracy on what was to be forgotten", "low", "share",
            lambda e: e.group(0), "forgotten",
        ),
        Figure(
            "same_class", "same class", "accuracy on the forgotten classes in domains where they "
            "stay", "high", "share", lambda e: e.group(1), "kept",
        ),
        Figure(
            "same_domain", "same domain", "accuracy on other classes in domains where something is "
            "forgotten", "high", "share", lambda e: e.group(2), "kept",
        ),
        Figure("rest", "rest", "accuracy on all other cells", "high", "share",
               lambda e: e.group(3), "kept"),
        Figure("kept", "kept", "accuracy on all that stays, each cell counting once", "high",
               "share", _kept, "kept"),
        Figure("worst_kept", "worst kept", "the lowest accuracy of a cell that stays", "high",
               "share", _worst_kept, "kept"),
        Figure(
            "kept_search", "kept search",
            "average precision of searches by the names that stay, each counting once, among all "
            "images but those it was forgotten in: accuracy does not see what they lose",
            "high", "share", _kept_search, "kept", _kept_search_blind,
        ),
        Figure(
            "h4", "H4",
            "harmonic mean of 1 - forgotten, same class, same domain and rest, where they are",
            "high", "share", _h4,
        ),
        Figure("mem", "Mem", "kept, as ADU calls it", "high", "share", _kept, "kept"),
        Figure("for", "For", "1 - forgotten, as ADU calls it", "high", "share",
               lambda e: 1 - e.group(0), "forgotten"),
        Figure("h", "H", "harmonic mean of Mem and For", "high", "share", _h),
        Figure(
            "subgroup", "subgroup",
            "score of arXiv 2506.03117: mean over cells of 1 - a / a0 where forgotten and "
            "min(1, a / a0) elsewhere",
            "high", "percent", _subgroup,
        ),
        Figure(
            "kravets", "Kravets",
            "score of arXiv 2407.07485: mean of the share left of what is forgotten and the shares "
            "lost of the rest and of every other data set",
            "low", "share", _kravets,
        ),
        Figure("spread", "spread", "standard deviation over classes of the accuracy on what stays",
               "low", "share", _spread, "kept"),
        Figure("seconds", "seconds", "what the edit took", "low", "seconds", _seconds),
    )
}  # fmt: skip
"""Name -> figure; every table, plot, option and page reads it."""
