"""Relearning: how many images of a class bring it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.probes import (
    AS_RETRAINED,
    PROBES,
    RECOVERED,
    Named,
    Split,
    split,
)
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    Answer,
    Curve,
    Finding,
    Question,
    recoverable,
)
from nullspace_unlearn.evaluate import figures
from nullspace_unlearn.evaluate.zeroshot import predict

SHOTS = (1, 2, 4, 8, 16)
"""Images of each class that are shown."""

DRAWS, QUICK_DRAWS = 10, 3
"""Draws of these that are averaged."""


def relearned(
    rows: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    parts: Split,
    each: int,
    draws: int,
) -> Named:
    """What the better of the probes names right after a few images of each class.

    Args:
        rows: `[n, dim]` embeddings of all images.
        labels: `[n]` their classes.
        parts: Where the few are drawn from, and which images are named.
        each: Images of each class.
        draws: How often they are drawn; the mean is returned.

    Returns:
        The shares of the probe that tells most.
    """
    found = []
    for probe in PROBES.values():
        several = []
        for draw in range(draws):
            few = parts.few(labels, each, draw)
            several.append(Named.of(probe(rows[few], labels[few], rows[parts.tests]), parts.asking))
        value, chance = (
            torch.stack([getattr(one, name) for one in several]).mean()
            for name in ("value", "chance")
        )
        found.append(Named(value, chance))
    return max(found, key=lambda one: float(one.told))


def recovered_by(
    x: Sequence[int],
    told: Sequence[float],
    named: float,
    retrained: Sequence[float] | None = None,
) -> int | None:
    """The least effort that brings back half of what the untouched model's name told.

    What a model that never saw the class learns as soon is not brought back, but learned.

    Args:
        x: Efforts, rising.
        told: How much more than by chance the edited model then tells.
        named: How much more than by chance the untouched model's name told.
        retrained: What a model that never saw the class tells after the same efforts.

    Returns:
        The effort, or None where none of them does.
    """
    for i, effort in enumerate(x):
        as_new = retrained is not None and told[i] <= retrained[i] + AS_RETRAINED
        if told[i] >= RECOVERED * named and not as_new:
            return effort
    return None


def by_name(case: Case, parts: Split) -> Named:
    """How often the untouched model gives the test images their names, out of all.

    Args:
        case: What is audited.
        parts: Its `tests` are asked.
    """
    before = case.original
    return Named.of(predict(before.embeddings[parts.tests], before.text), parts.asking)


def ask(case: Case) -> Answer:
    """Show every model a few images.

    Args:
        case: What is audited.
    """
    parts = split(case.mask, case.labels, case.domains, case.generator("relearning"))
    pool = torch.bincount(case.labels[parts.shots])[parts.asking.classes].min()
    shots = tuple(k for k in SHOTS if k <= int(pool))
    draws = QUICK_DRAWS if case.quick else DRAWS
    found = {
        name: [relearned(view.embeddings, case.labels, parts, k, draws) for k in shots]
        for name, view in case.views()
    }
    named = float(by_name(case, parts).told)
    if named < figures.TOLD:
        return Answer.unmeasured("The untouched model's name does not tell these images.")
    values = {name: [float(one.value) for one in line] for name, line in found.items()}
    told = {name: [float(one.told) for one in line] for name, line in found.items()}
    chance = [float(one.chance) for one in found["edited"]]
    curve = Curve(
        "relearned", "Relearned from a few images", "images of each class",
        "share of the forgotten images that get their name", shots,
        {**values, "chance": chance},
    )  # fmt: skip
    findings = [
        Finding(
            f"shots_{k}", f"named after {k} image{'s' * (k > 1)} of each class", "chance",
            {**_at(values, i), "chance": chance[i]}, None, len(parts.asking.images),
        )
        for i, k in enumerate(shots)
    ]  # fmt: skip
    enough = recovered_by(shots, told["edited"], named, told.get("retrained"))
    if enough is None:
        most = max(told["edited"]) / named
        said = f"{shots[-1]} images of each class bring back {most:.2f} of what its name told."
        if "retrained" in told:
            said = f"{said[:-1]}, no more than in the model that never saw it."
        return Answer(FORGOTTEN, said, tuple(findings), (curve,))
    share = told["edited"][shots.index(enough)] / named
    said = (
        f"A probe fitted on {enough} image{'s' * (enough > 1)} of each class finds {share:.2f} of "
        "what the name told."
    )
    return Answer(recoverable(enough), said, tuple(findings), (curve,))


def _at(lines: Mapping[str, Sequence[float]], i: int) -> dict[str, float | None]:
    return {name: line[i] for name, line in lines.items()}


RELEARNING = Question(
    name="relearning",
    title="Relearning from a few images",
    asks="How many images of the class bring it back, without any training?",
    paper="arXiv 1703.05175",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
