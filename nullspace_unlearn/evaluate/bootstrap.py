"""How far figures would move with other images of the same cells: the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.evaluate.asking import Answers
from nullspace_unlearn.evaluate.figures import FIGURES, Evidence, figures
from nullspace_unlearn.evaluate.kept_search import Searched

# Numbers held at once for draws x images.
_TILE = 1 << 22
LEVEL = 0.95
"""Of every interval."""


def resampled(
    strata: Int[Tensor, " n"], draws: int, seed: int = 0
) -> Iterator[Float[Tensor, "some n"]]:
    """How often each image is in each sample drawn with replacement, stratum by stratum.

    Args:
        strata: `[n]`, a number for what each image is one of; every sample has as many of each.
        draws: How many samples.
        seed: Of the draws.

    Yields:
        `[some, n]`, some samples at a time.
    """
    random = torch.Generator().manual_seed(seed)
    order = strata.argsort(stable=True)
    _, size = strata[order].unique_consecutive(return_counts=True)
    start = (size.cumsum(0) - size).repeat_interleave(size)
    wide = size.repeat_interleave(size)
    for some in torch.arange(draws).split(max(1, _TILE // max(1, len(strata)))):
        part = torch.rand(len(some), len(strata), generator=random, dtype=torch.float64)
        drawn = order[start + (part * wide).long().clamp(max=wide - 1)]
        count = torch.zeros(len(some), len(strata), dtype=torch.float64)
        yield count.scatter_add_(1, drawn, torch.ones_like(count))


def ends(samples: Float[Tensor, "draws ..."]) -> Float[Tensor, "2 ..."]:
    """The lower and the upper end of an interval: percentiles (Efron and Tibshirani 1993, 13.3).

    They lie where the figure can lie, as other bootstrap intervals need not.

    Args:
        samples: `[draws, ...]` float64, figures of each sample; NaN where there is none.
    """
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    return torch.nanquantile(samples, edges, dim=0)


def intervals(
    evidence: Evidence,
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"] | None,
    right: tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]],
    answers: tuple[Answers, Answers],
    search: Callable[[Float[Tensor, "some n"]], tuple[Searched, Searched]] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Intervals (95 %) of every figure over samples of the images.

    Both models are measured on the same samples. A class's images in forgotten cells and its other
    images are drawn apart, so each sample has as many of both. `left` and `over` are the largest
    of several ways of asking: their ends are the largest of the ways' ends.

    Args:
        evidence: What the model made of all images, the untouched one beside it.
        labels: `[n]` classes of the images.
        domains: `[n]` their domains, or None for a single one.
        right: Which images the untouched model and the edited one name right.
        answers: What the two answer.
        search: Weights of the images -> what searches by names that stay find with the two; absent:
            that is too much to do so often, and their figure has no interval.
        draws: How many samples.
        seed: Of the draws.

    Returns:
        Name of a figure -> its lower and upper end; those that cannot be told are left out.
    """
    domains = torch.zeros_like(labels) if domains is None else domains
    shape = evidence.mask.shape
    cell = labels * shape[1] + domains
    strata = labels * 2 + evidence.mask[labels, domains]
    values: dict[str, list[Tensor]] = {}
    for weight in resampled(strata, draws, seed):
        count, *hits = (
            torch.zeros(len(weight), shape.numel(), dtype=torch.float64)
            .index_add_(1, cell, weight * hit)
            .reshape(len(weight), *shape)
            for hit in (torch.ones_like(labels), *right)
        )
        before, after = (hit / count.clamp(min=1) for hit in hits)
        told = [one.told(weight[:, one.asking.images]) for one in answers]
        found = (None, None) if search is None else search(weight)
        sample = replace(
            evidence, count=count.long(), accuracy=after, before=before, told_before=told[0],
            told=told[1], searched_before=found[0], searched=found[1],
        )  # fmt: skip
        for name, value in _several(sample).items():
            values.setdefault(name, []).append(value.expand(len(weight), -1))
    said = {}
    for name, several in values.items():
        low, high = ends(torch.cat(several))
        told = ~(low + high).isnan()
        if told.any():
            least = 0.0 if FIGURES[name].unit == "share" else -math.inf
            said[name] = (max(float(low[told].max()), least), max(float(high[told].max()), least))
    return said


def _several(evidence: Evidence) -> dict[str, Float[Tensor, "*edits ways"]]:
    """Each figure, and what it is the largest of where it is that."""
    remaining = evidence.remaining()
    plain = {name: value[..., None] for name, value in figures(evidence).items()}
    return plain | {"left": remaining, "over": -remaining}
