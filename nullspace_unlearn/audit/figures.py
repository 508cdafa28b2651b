"""Evaluate's figures as findings: the edited model's, its interval, and the controls'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.question import Finding
from nullspace_unlearn.evaluate.bootstrap import resampled
from nullspace_unlearn.evaluate.compare import Comparison
from nullspace_unlearn.evaluate.figures import FIGURES


def compared(case: Case) -> dict[str, Comparison]:
    """Each model beside the original one, by what `Finding.values` calls it.

    Args:
        case: What is audited.
    """
    return {role: case.against(view) for role, view in case.views()}


def findings(
    names: Sequence[str], models: Mapping[str, Comparison], draws: int = 200
) -> tuple[Finding, ...]:
    """Some of evaluate's figures.

    Args:
        names: Which, by their keys in `evaluate.figures.FIGURES`.
        models: From `compared`.
        draws: Samples of the bootstrap; 0: no intervals.

    Returns:
        One a name, in this order; those that the edited model does not tell are left out.
    """
    edited = models["edited"]
    ends = edited.measured.intervals(draws) if draws else {}
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
        ended = ends.get(name)
        found.append(Finding(name, figure.title, figure.good, values, ended, counts[figure.images]))
    return tuple(found)


def interval_of_mean(
    values: Float[Tensor, " n"], draws: int, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap interval (95 %) of a mean over images, by percentiles as `evaluate.bootstrap`.

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
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
