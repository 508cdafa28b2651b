"""Searched for, by the name and by an example image, are the forgotten images found?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.audit.figures import findings, interval_of_mean
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NAME_ONLY,
    NOT_FORGOTTEN,
    Answer,
    Curve,
    Finding,
    Question,
    recoverable,
)
from nullspace_unlearn.evaluate.asking import FOUND, Answers, Asking, rounded
from nullspace_unlearn.evaluate.asking import search as look_for
from nullspace_unlearn.evaluate.figures import FORGOTTEN as LEAST
from nullspace_unlearn.evaluate.figures import TOLD
from nullspace_unlearn.linalg import unit

_FIRST = (1, 5, 10, 20, 50, 100, 200)  # images that are looked at
_EXAMPLES = (50, 400)  # of a class, quick and not
_SAME = 0.05  # what a model that never saw it may be exceeded by, of all that the original finds


def ask(case: Case) -> Answer:
    """Answer by average precision and recall.

    Args:
        case: What is audited.
    """
    asking = Asking.of(case.mask, case.labels, case.domains, len(case.names))
    if not len(asking.classes):
        return Answer.unmeasured("There is no image of what was to be forgotten, or of others.")
    models = case.comparisons
    edited = models["edited"]
    evidence = edited.measured.evidence
    assert evidence.told is not None
    shares = dict(
        zip([w for w in evidence.told.ways if w != "recall"], evidence.remaining(), strict=True)
    )
    by_name = float(shares[FOUND])
    by_list = max(
        (float(v) for k, v in shares.items() if k != FOUND and not v.isnan()), default=0.0
    )
    example, image_share, seen = _by_example(case, asking)
    values = example.values
    told = values["original"] is not None and values["chance"] is not None
    known = told and (values["original"] or 0.0) - (values["chance"] or 0.0) >= TOLD
    sentence = f"A search by the name finds {max(by_name, 0.0):.2f} of what it found"
    if by_name != by_name:
        sentence = "The untouched model finds nothing by the name"
    if known:
        sentence += f"; by one example image, {image_share:.2f}"
        sentence += "" if seen is None else f" (a model that never saw it: {seen:.2f})"
    if by_name > LEAST:
        verdict = NOT_FORGOTTEN if by_list > LEAST else NAME_ONLY
    elif known and image_share > (LEAST if seen is None else max(LEAST, seen + _SAME)):
        verdict = recoverable(1)
    elif by_name != by_name and not known:
        return Answer.unmeasured("The untouched model does not find it, by name or by image.")
    else:
        verdict = FORGOTTEN
    return Answer(
        verdict,
        f"{sentence}.",
        (*findings((FOUND, "recall"), case), example),
        (_recall(case, asking),),
    )


def _by_example(case: Case, asking: Asking) -> tuple[Finding, float, float | None]:
    """Average precision by one image; the share that is left of it, and that unseen models have."""
    values: dict[str, float | None] = {}
    interval, number = None, 0
    for role, view in case.views():
        found, blind = _examples(case, asking, view)
        values[role] = float(found.mean())
        if role == "edited":
            values["chance"] = float(blind.mean())
            interval = interval_of_mean(found, case.draws, case.seed)
            number = len(found)
    chance, whole = values["chance"] or 0.0, values["original"] or 0.0

    def share(role: str) -> float:
        return max(0.0, ((values[role] or 0.0) - chance) / max(whole - chance, TOLD))

    finding = Finding("found_by_image", "found by an image", "chance", values, interval, number)
    return finding, share("edited"), share("retrained") if "retrained" in values else None


def _examples(
    case: Case, asking: Asking, view: View
) -> tuple[Float[Tensor, " queries"], Float[Tensor, " queries"]]:
    """Average precision of every example, and by chance: its class among it and the others."""
    rows = unit(view.embeddings.double())[asking.images]
    most = _EXAMPLES[not case.quick]
    found, blind = [], []
    for j in range(len(asking.classes)):
        own, others = (some[j].nonzero()[:, 0] for some in (asking.own, asking.others))
        if len(own) < 2:
            continue
        order = torch.randperm(len(own), generator=case.generator("search", str(j)))[:most]
        both = torch.cat([own, others])
        positive = torch.arange(len(both) - 1) < len(own) - 1
        scores = rounded(rows[own] @ rows[both].mT)
        for query in order.sort().values.tolist():
            beside = torch.arange(len(both)) != query
            one = look_for(scores[query, beside], positive)
            found.append(one.precision)
            blind.append(one.precision_blind)
    none = torch.zeros(1, dtype=torch.float64)
    return (torch.stack(found), torch.stack(blind)) if found else (none, none)


def _recall(case: Case, asking: Asking) -> Curve:
    """Share of the class's images among the first k of a search by the name."""
    most = int((asking.own | asking.others).sum(1).min())
    first = [k for k in _FIRST if k <= most] or [most]
    lines: dict[str, list[float]] = {}
    for role, view in case.views():
        answers = Answers.of(asking, view.embeddings, view.text)
        lines[role] = []
        for k in first:
            hits, blind = [], []
            for j in range(len(asking.classes)):
                both = asking.own[j] | asking.others[j]
                one = look_for(answers.score[j, both], asking.own[j, both], k=k)
                hits.append(float(one.recall))
                blind.append(float(one.recall_blind))
            lines[role].append(sum(hits) / len(hits))
            if role == "edited":
                lines.setdefault("chance", []).append(sum(blind) / len(blind))
    return Curve("recall", "Search by the name", "images looked at", "share of its images found",
                 first, lines)  # fmt: skip


SEARCH = Question(
    name="search",
    title="Searched for",
    asks=(
        "In a gallery that also holds what stays, does a search by the name, or by one example "
        "image, find the images that were to be forgotten?"
    ),
    paper="",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
