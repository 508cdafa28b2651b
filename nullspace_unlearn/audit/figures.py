"""Evaluate's figures as findings: the edited model's, its interval, and the controls'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.question import Finding
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
    found = []
    for name in names:
        figure = FIGURES[name]
        values = {role: one.figures["after"][name] for role, one in models.items()}
        if values["edited"] is None:
            continue
        if (blind := edited.figures["chance"][name]) is not None:
            values["chance"] = blind
        number = {
            "forgotten": images["forgotten"],
            "kept": images["kept"],
            "both": images["forgotten"] + images["others"],
        }[figure.images]
        found.append(
            Finding(name, figure.title, figure.good, values, ends.get(name), number)  # fmt: skip
        )
    return tuple(found)
