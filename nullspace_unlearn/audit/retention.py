"""Knowledge retention: whether a probe on the features still finds what was forgotten by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.audit.probes import AS_RETRAINED, PROBES, Named, Split, interval, split
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NAME_ONLY,
    NOT_FORGOTTEN,
    Answer,
    Finding,
    Question,
)
from nullspace_unlearn.evaluate import figures

SPACES: Mapping[str, str] = {"embedding": "the embedding", "hidden": "the hidden feature"}


def features_of(view: View, space: str) -> Float[Tensor, "n width"] | None:
    """What a model makes of the images in a space; None where it is not at hand.

    Args:
        view: The model.
        space: "embedding", or "hidden": what enters the final projection.
    """
    return view.embeddings if space == "embedding" else view.features.hidden


def retained(
    rows: Float[Tensor, "n width"], labels: Int[Tensor, " n"], parts: Split, probe: str
) -> Int[Tensor, " tests"]:
    """Name the test images by a probe that was fitted on the others.

    Args:
        rows: `[n, width]` features of all images.
        labels: `[n]` classes, as the probe is told them.
        parts: Which images it learns from, and which it names.
        probe: One of `PROBES`.
    """
    return PROBES[probe](rows[parts.shots], labels[parts.shots], rows[parts.tests])


def left(told: Mapping[str, float]) -> float | None:
    """How much of what the untouched model tells is still told.

    Args:
        told: Model -> how much more than by chance it tells.

    Returns:
        1 for all; None where the untouched model tells nothing.
    """
    if told["original"] < figures.TOLD:
        return None
    return told["edited"] / told["original"]


def ask(case: Case) -> Answer:
    """Fit every probe in every space of every model.

    Args:
        case: What is audited.
    """
    parts = split(case.mask, case.labels, case.domains, case.generator("retention"))
    shuffled = case.labels.clone()
    order = torch.randperm(len(parts.shots), generator=case.generator("retention", "shuffled"))
    shuffled[parts.shots] = shuffled[parts.shots][order]
    findings, remains, fresh = [], {}, True
    for space, words in SPACES.items():
        for probe in PROBES:
            values: dict[str, float | None] = {}
            told = {}
            ends = None
            for name, view in case.views():
                rows = features_of(view, space)
                if rows is None:
                    continue
                named = retained(rows, case.labels, parts, probe)
                found = Named.of(named, parts.asking)
                values[name], told[name] = float(found.value), float(found.told)
                if name == "edited":
                    values["chance"] = float(found.chance)
                    ends = interval(named, parts.asking, case.draws, case.seed)
            if "edited" not in told or "original" not in told:
                continue
            findings.append(
                Finding(
                    f"{space}_{probe.split()[0]}", f"named by {probe} on {words}", "chance",
                    values, ends, len(parts.asking.images),
                )
            )  # fmt: skip
            if (share := left(told)) is not None:
                remains[f"{probe} on {words}"] = share
            if "retrained" not in told or told["edited"] > told["retrained"] + AS_RETRAINED:
                fresh = False
    named = retained(case.edited.embeddings, shuffled, parts, "logistic regression")
    control = Named.of(named, parts.asking)
    findings.append(
        Finding(
            "shuffled", "the same, fitted on shuffled labels (control)", "chance",
            {"edited": float(control.value), "chance": float(control.chance)},
            interval(named, parts.asking, case.draws, case.seed), len(parts.asking.images),
        )
    )  # fmt: skip
    if not remains:
        return Answer.unmeasured("No probe finds these classes in the untouched model either.")
    best = max(remains, key=lambda name: remains[name])
    most = f"{remains[best]:.2f} of what a probe finds in the untouched model, by {best}"
    if remains[best] <= figures.FORGOTTEN:
        return Answer(FORGOTTEN, f"Labelled images find at most {most}.", tuple(findings))
    if fresh:
        said = f"Labelled images find {most}, as they do in the model that never saw it."
        return Answer(FORGOTTEN, said, tuple(findings))
    said = f"Labelled images still find {most}."
    by_name = case.against(case.edited).verdict in ("forgotten", "over-forgotten")
    return Answer(NAME_ONLY if by_name else NOT_FORGOTTEN, said, tuple(findings))


RETENTION = Question(
    name="retention",
    title="Knowledge in the features",
    asks="Does somebody who has labelled images find the class in the model's features again, "
    "whatever it is called?",
    paper="arXiv 2604.08271; arXiv 2504.02199",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
