"""Probes: what labelled images let somebody learn about others, from a model's features alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.audit.question import Unmeasurable
from nullspace_unlearn.evaluate.asking import Asking
from nullspace_unlearn.evaluate.bootstrap import ends, resampled
from nullspace_unlearn.linalg import unit

MOST_CLASSES = 50
"""Classes that a probe tells apart at most: the forgotten ones, then others, evenly spaced."""

RECOVERED = 0.5
"""What counts as recovered: at least this share of what the untouched model's name told."""

AS_RETRAINED = 0.1
"""A model tells no more than one that never saw the class where it tells at most this much more."""

Probe = Callable[[Tensor, Tensor, Tensor], Tensor]


def logistic(
    shots: Float[Tensor, "k dim"], labels: Int[Tensor, " k"], tests: Float[Tensor, "n dim"]
) -> Int[Tensor, " n"]:
    """Name images by logistic regression over all classes, on standardised features.

    Standardised, since an edit may have left little of a direction, and little is enough.

    Args:
        shots: `[k, dim]` features of labelled images.
        labels: `[k]` their classes, at least two different ones.
        tests: `[n, dim]` features of the images to name.

    Returns:
        `[n]` classes, out of those of the shots.

    Raises:
        ValueError: If scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ValueError(
            "probes need scikit-learn: pip install 'nullspace-unlearn[audit]'"
        ) from None

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One image of each class is what a shot is: no regression problem in disguise.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit(shots.double().numpy(), labels.numpy())
    return torch.from_numpy(model.predict(tests.double().numpy()))


def nearest_mean(
    shots: Float[Tensor, "k dim"], labels: Int[Tensor, " k"], tests: Float[Tensor, "n dim"]
) -> Int[Tensor, " n"]:
    """Name images by the class whose mean is nearest, as prototypical networks do (1703.05175).

    Directions count, not lengths, about the mean of the classes' means.

    Args:
        shots: As for `logistic`.
        labels: As for `logistic`.
        tests: As for `logistic`.

    Returns:
        As `logistic`.
    """
    classes, place = labels.unique(return_inverse=True)
    rows, asked = unit(shots.double()), unit(tests.double())
    member = torch.nn.functional.one_hot(place, len(classes)).double()
    means = (member.mT @ rows) / member.sum(0)[:, None]
    middle = means.mean(0)
    return classes[(unit(asked - middle) @ unit(means - middle).mT).argmax(-1)]


PROBES: Mapping[str, Probe] = {"logistic regression": logistic, "nearest mean": nearest_mean}


@dataclass(frozen=True, eq=False)
class Named:
    """How often images of forgotten classes get their names, and how often other images do.

    Attributes:
        value: `[*draws]` share of the forgotten images that get their class, each class counting
            once.
        chance: `[*draws]` share of the others that get it.
    """

    value: Float[Tensor, "*draws"]
    chance: Float[Tensor, "*draws"]

    @property
    def told(self) -> Float[Tensor, "*draws"]:
        """How much more often than by chance."""
        return self.value - self.chance

    @classmethod
    def of(
        cls,
        predicted: Int[Tensor, " all"],
        asking: Asking,
        weight: Float[Tensor, "*draws n"] | None = None,
    ) -> Named:
        """Count.

        Args:
            predicted: `[all]` the class that each image was given.
            asking: Who is asked for what.
            weight: How often each image of the asking is there; once if None.
        """
        given = predicted[asking.images]
        hits = (given == asking.classes[:, None]).double()
        weight = torch.ones(len(given), dtype=torch.float64) if weight is None else weight
        shares = [
            ((weight @ (hits * some).mT) / (weight @ some.double().mT)).mean(-1)
            for some in (asking.own, asking.others)
        ]
        return cls(*shares)


def interval(
    predicted: Int[Tensor, " all"], asking: Asking, draws: int, seed: int
) -> tuple[float, float] | None:
    """A 95 % interval of `Named.value`, over samples of the images that are named.

    Args:
        predicted: `[all]` the class that each image was given.
        asking: Who is asked for what.
        draws: How many samples; without any there is none.
        seed: Of the samples.
    """
    if not draws:
        return None
    _, strata = torch.cat([asking.own, asking.others]).int().unique(dim=1, return_inverse=True)
    samples = [Named.of(predicted, asking, w).value for w in resampled(strata, draws, seed)]
    low, high = ends(torch.cat(samples)).tolist()
    return low, high


@dataclass(frozen=True, eq=False)
class Split:
    """Images to learn from and images to test on, none in both.

    They are of the domains in which something was forgotten, and of all classes there.

    Attributes:
        shots: `[k]` the first, the forgotten classes' and the others'.
        tests: `[n]` the second.
        asking: Who is asked for what among the tests; its images index `tests`.
    """

    shots: Int[Tensor, " k"]
    tests: Int[Tensor, " n"]
    asking: Asking

    def few(self, labels: Int[Tensor, " all"], each: int, draw: int) -> Int[Tensor, " k"]:
        """Draw as many of the shots of each class.

        Args:
            labels: `[all]` classes of all images.
            each: Shots a class; a class with fewer gives them all.
            draw: Which draw.

        Returns:
            `[k]` which images, ascending.
        """
        there = torch.zeros(len(labels), dtype=torch.bool)
        there[self.shots] = True
        return of_each(there, labels, each, draw)

    def thinned(self, most: int) -> Split:
        """The same with fewer tests, evenly spaced over those of forgotten cells and of others.

        Args:
            most: How many stay, about; half of them at most are of forgotten cells.
        """
        own = self.asking.own.any(0)
        kept = torch.zeros(len(self.tests), dtype=torch.bool)
        for some in (self.asking.images[own], self.asking.images[~own]):
            spaced = torch.linspace(0, len(some) - 1, min(len(some), most // 2)).round().long()
            kept[some[spaced]] = True
        if kept.all():
            return self
        place = kept.cumsum(0) - 1
        there = kept[self.asking.images]
        asking = replace(
            self.asking,
            images=place[self.asking.images[there]],
            own=self.asking.own[:, there],
            others=self.asking.others[:, there],
        )
        return replace(self, tests=self.tests[kept], asking=asking)


def of_each(
    there: Bool[Tensor, " n"], labels: Int[Tensor, " n"], each: int, draw: int = 0
) -> Int[Tensor, " k"]:
    """Draw as many images of each class.

    Args:
        there: `[n]` which images may be drawn.
        labels: `[n]` their classes.
        each: Images of a class; one with fewer gives them all.
        draw: Which draw.

    Returns:
        `[k]` which images, ascending.
    """
    some = there.nonzero()[:, 0]
    random = torch.Generator().manual_seed(draw)
    shuffled = some[torch.randperm(len(some), generator=random)]
    member = torch.nn.functional.one_hot(labels[shuffled])
    rank = (member.cumsum(0) * member).sum(1)
    return shuffled[rank <= each].sort().values


def split(
    mask: Bool[Tensor, "classes domains"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    generator: torch.Generator,
    each: int = 2,
) -> Split:
    """Halve every cell of the domains in which something was forgotten.

    Args:
        mask: True where a cell is forgotten.
        labels: `[n]` classes of the images.
        domains: `[n]` their domains.
        generator: Of the draw.
        each: Images that each forgotten cell must have, at least.

    Returns:
        The halves.

    Raises:
        Unmeasurable: If a forgotten cell has fewer images, or there is no other class to tell it
            from.
    """
    rows = mask.any(1)
    others = (~rows).nonzero()[:, 0]
    room = max(2, MOST_CLASSES - int(rows.sum()))
    if len(others) > room:
        others = others[torch.linspace(0, len(others) - 1, room).round().long()]
    listed = rows.clone()
    listed[others] = True
    there = mask.any(0)[domains] & listed[labels]
    if len(labels[there].unique()) < 2:
        raise Unmeasurable("a probe tells classes apart, and there are not images of two of them")
    cells = labels * mask.shape[1] + domains
    count = torch.bincount(cells, minlength=mask.numel()).reshape(mask.shape)
    thin = mask & (count > 0) & (count < each)
    if thin.any():
        raise Unmeasurable(
            f"to learn from some images and be tested on others takes at least {each} of each "
            f"forgotten cell, and there are {int(count[thin].min())}: give more images"
        )
    shots, tests = [], []
    for cell in cells[there].unique().tolist():
        some = (there & (cells == cell)).nonzero()[:, 0]
        some = some[torch.randperm(len(some), generator=generator)]
        half = (len(some) + 1) // 2
        shots.append(some[:half])
        tests.append(some[half:])
    tested = torch.cat(tests).sort().values
    asking = Asking.of(mask, labels[tested], domains[tested])
    if not len(asking.classes):
        raise Unmeasurable("no image of a forgotten cell is left beside images of other classes")
    return Split(torch.cat(shots).sort().values, tested, asking)
