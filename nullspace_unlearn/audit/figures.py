"""Evaluate's figures as findings: the edited model's, its interval, and the controls'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.question import Finding
from nullspace_unlearn.evaluate.bootstrap import ends, resampled
from nullspace_unlearn.evaluate.figures import FIGURES


def findings(names: Sequence[str], case: Case) -> tuple[Finding, ...]:
    """Some of evaluate's figures.

    Args:
        names: Which, by their keys in `evaluate.figures.FIGURES`.
        case: What is audited.

    Returns:
        One a name, in this order; those that the edited model does not tell are left out.
    """
    models = case.comparisons
    edited = models["edited"]
    images = edited.images
    counts = {**images, "both": images["forgotten"] + images["others"]}
    found = []
    for name in names:
        figure = FIGURES[name]
        values = {role: one.figures["after"][name] for role, one in models.items()}
        if values["edited"] is None:
            continue
        if (blind := edited.figures["chance"][name]) is not None:
            values["chance"] = blind
        between, number = case.intervals.get(name), counts[figure.images]
        found.append(Finding(name, figure.title, figure.good, values, between, number))
    return tuple(found)


def interval_of_mean(
    values: Float[Tensor, " n"], draws: int, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap interval (95 %) of a mean over images.

    Args:
        values: `[n]`, one an image.
        draws: How many samples.
        seed: Of the draws.

    Returns:
        Its ends; None without draws, or of fewer than 2 images.
    """
    if not draws or len(values) < 2:
        return None
    rows = values.double()
    strata = torch.zeros(len(rows), dtype=torch.int64)
    means = torch.cat([some @ rows / len(rows) for some in resampled(strata, draws, seed)])
    low, high = ends(means).tolist()
    return low, high
