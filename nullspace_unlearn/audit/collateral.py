"""What was never to be forgotten: does the model know it as well as before?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.audit.figures import findings, interval_of_mean
from nullspace_unlearn.audit.question import (
    KEPT,
    NOT_KEPT,
    Answer,
    Finding,
    Good,
    Question,
    Row,
)
from nullspace_unlearn.evaluate.asking import rounded
from nullspace_unlearn.evaluate.compare import Comparison
from nullspace_unlearn.evaluate.kept_search import Searching
from nullspace_unlearn.evaluate.verdict import COSTLY
from nullspace_unlearn.evaluate.zeroshot import predict
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.words import same_name

_FIGURES = ("cost", "paid", "same_class", "same_domain", "rest", "kept_search")
_NEAREST = 5  # names whose own figure is told
_BINS = 15
_FIRST = (1, 5, 10)
_LEAST = 3  # images that a class must lose before it is called lost
_MUCH = 0.1  # share of a class's accuracy

Figure = Callable[[View], Float[Tensor, " k"]]


def ask(case: Case) -> Answer:
    """Answer by every class that stays, searches, retrieval and calibration.

    Args:
        case: What is audited.
    """
    stays = ~case.gone
    if not stays.any():
        return Answer.unmeasured("There is no image of what stays.")
    models = case.comparisons
    rows = _classes(case, models["edited"])
    made: list[Finding] = [
        *findings(_FIGURES, case),
        *_groups(case, stays),
        _calibration(case, stays),
    ]
    if "names" in case.has:
        made += _retrieval(case, stays)
    others, said = _elsewhere(case)
    made += others
    cost = models["edited"].figures["after"]["cost"] or 0.0
    lost = [row for row in rows if row.kind.startswith("lost")]
    searches = [one.figures["after"]["kept_search"] or 0.0 for one in models.values()]
    found = dict(zip(models, searches, strict=True))
    missed = found["original"] - found["edited"]
    paid = models["edited"].paid
    falls = f"falls by {cost:.1f}" if cost >= 0 else f"rises by {-cost:.1f}"
    sentence = f"Accuracy on what stays {falls} points"
    sentence += f", searches by names that stay find {max(missed, 0.0):.3f} less"
    if paid is not None and paid["after"] < paid["before"]:
        sentence += (
            f"; most is lost of {paid['class']} in {paid['domain']}, {paid['before']:.2f} -> "
            f"{paid['after']:.2f}"
        )
    bad = cost > COSTLY or missed > _MUCH or bool(lost)
    for name, was, now, worse in said:
        sentence += f"; on {name} {was:.3f} -> {now:.3f} are right"
        bad |= worse
    return Answer(NOT_KEPT if bad else KEPT, f"{sentence}.", tuple(made), (), rows)


def _classes(case: Case, edited: Comparison) -> tuple[Row, ...]:
    """Every class that stays somewhere, that which lost most first; the nearest names told."""
    near = _nearness(case)
    order = {c: place for place, c in enumerate(near)}
    rows = []
    for c, name in enumerate(case.class_names):
        cells = ~case.mask[c] & (edited.before.count[c] > 0)
        if not cells.any():
            continue
        count = edited.before.count[c][cells]
        was, now = (
            float((grid.accuracy[c][cells] * count).sum() / count.sum())
            for grid in (edited.before, edited.after)
        )
        many = (was - now) * int(count.sum()) >= _LEAST - 1e-9 and was - now > _MUCH
        place = f"nearest name {order[c] + 1}" if c in order and order[c] < _NEAREST else "kept"
        rows.append(Row(name, f"lost, {place}" if many else place, now, was))
    return tuple(sorted(rows, key=lambda row: (row.value or 0.0) - (row.original or 0.0)))


def _nearness(case: Case) -> list[int]:
    """The classes of which nothing was to be forgotten, those whose names are nearest first."""
    text = unit(case.original.text.double())[: len(case.class_names)]
    gone = case.mask.any(1)
    kept = (~gone).nonzero()[:, 0]
    if not gone.any() or not len(kept):
        return []
    near = (text[kept] @ text[gone].mT).amax(-1)
    return [int(c) for c in kept[near.argsort(descending=True, stable=True)]]


def _groups(case: Case, stays: Bool[Tensor, " n"]) -> list[Finding]:
    """Accuracy on siblings nobody asked about, and on classes and domains never named."""
    nearest = _nearness(case)[:_NEAREST]
    named = {same_name(name) for one in case.requests for name in (*one.classes, *one.keep)}
    history = case.edited.clip.history if case.edited.clip is not None else None
    named |= {same_name(name) for name in (history.kept if history else ())}
    strange = [c for c, name in enumerate(case.class_names) if same_name(name) not in named]
    strange = [c for c in strange if not case.mask[c].any()]
    asked = {name for one in case.requests for name in one.domains}
    other = [d for d, name in enumerate(case.domain_names) if asked and name not in asked]
    other = [d for d in other if not case.mask[:, d].any()]
    some: list[tuple[str, str, list[int], Tensor]] = [
        ("nearest", f"the {len(nearest)} nearest names", nearest, case.labels),
        ("never_named", "classes never named", strange, case.labels),
        ("other_domains", "domains never named", other, case.domains),
    ]
    made = []
    for name, title, which, index in some:
        chosen = stays & torch.isin(index, torch.tensor(which, dtype=torch.int64))
        if chosen.any():
            made.append(_mean(case, name, title, "high", partial(_right, case, chosen)))
    return made


def _right(case: Case, some: Bool[Tensor, " n"], view: View) -> Float[Tensor, " k"]:
    return (predict(view.embeddings[some], view.text) == case.labels[some]).double()


def _calibration(case: Case, stays: Bool[Tensor, " n"]) -> Finding:
    """Expected calibration error of the softmax over all names, on what stays."""
    values: dict[str, float | None] = {}
    for role, view in case.views():
        scores = unit(view.embeddings[stays].double()) @ unit(view.text.double()).mT
        sure, guess = (view.scale * scores).softmax(-1).max(-1)
        right = (guess == case.labels[stays]).double()
        place = (sure * _BINS).long().clamp(max=_BINS - 1)
        off = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, place, right - sure)
        values[role] = float(off.abs().sum() / len(right))
    return Finding("calibration", "calibration error", "low", values, None, int(stays.sum()))


def _retrieval(case: Case, stays: Bool[Tensor, " n"]) -> list[Finding]:
    """Recall at 1, 5 and 10 between images and captions that name class and domain."""
    cells = case.labels[stays] * len(case.domain_names) + case.domains[stays]
    there, caption = cells.unique(return_inverse=True)
    words = case.source.words if case.source is not None else {}
    said = [
        _caption(case.class_names[c], case.domain_names[d], words, len(case.domain_names) > 1)
        for c, d in (divmod(cell, len(case.domain_names)) for cell in there.tolist())
    ]
    ranks: dict[str, tuple[Tensor, Tensor]] = {}
    for role, view in case.views():
        assert view.clip is not None  # "names" says so
        text = unit(view.clip.encode_text(said).double().cpu())
        scores = rounded(unit(view.embeddings[stays].double()) @ text.mT)
        own = scores.gather(1, caption[:, None])
        to_text = (scores > own).sum(1)
        best = scores.masked_fill(caption[:, None] != torch.arange(len(said)), -torch.inf).amax(0)
        ranks[role] = to_text, (scores > best).sum(0)
    made = []
    for way, title in enumerate(("image to text", "text to image")):
        for k in _FIRST:
            if k < (len(said), len(cells))[way]:
                hits = {role: (both[way] < k).double() for role, both in ranks.items()}
                values: dict[str, float | None] = {r: float(h.mean()) for r, h in hits.items()}
                ends = interval_of_mean(hits["edited"], case.draws, case.seed)
                name = f"{('image_to_text', 'text_to_image')[way]}_{k}"
                made.append(
                    Finding(name, f"{title} R@{k}", "high", values, ends, len(hits["edited"]))
                )
    return made


def _elsewhere(case: Case) -> tuple[list[Finding], list[tuple[str, float, float, bool]]]:
    """Other data sets: accuracy, and searches by each of their names.

    Returns:
        The findings; and of each data set its name, accuracy before and after, and whether it lost
        more than what counts as kept.
    """
    made, said = [], []
    for number, one in enumerate(case.elsewhere, 1):
        right, found = {}, {}
        everyone = Searching.of(torch.zeros(int(one.labels.max()) + 1, 1).bool(), one.labels)
        for role, view in one.views.items():
            right[role] = (predict(view.embeddings, view.text) == one.labels).double()
            found[role] = everyone.find(view.embeddings, view.text)
        accuracy: dict[str, float | None] = {r: float(v.mean()) for r, v in right.items()}
        searches: dict[str, float | None] = {r: float(v.value) for r, v in found.items()}
        blind = float(found["edited"].blind)
        ends = interval_of_mean(right["edited"], case.draws, case.seed)
        many = len(one.labels)
        made += [
            Finding(f"other_{number}_accuracy", f"accuracy on {one.name}", "high", accuracy, ends,
                    many),
            Finding(f"other_{number}_search", f"found by its name on {one.name}", "high",
                    {**searches, "chance": blind}, None, many),
        ]  # fmt: skip
        was, now = (float(right[role].mean()) for role in ("original", "edited"))
        missed = float(found["original"].value - found["edited"].value)
        said.append((one.name, was, now, 100 * (was - now) > COSTLY or missed > _MUCH))
    return made, said


def _caption(name: str, domain: str, words: dict[str, str], several: bool) -> str:
    return f"a {words.get(domain, domain)} of a {name}." if several else f"a photo of a {name}."


def _mean(case: Case, name: str, title: str, good: Good, figure: Figure) -> Finding:
    """A finding that is a mean over images."""
    found = {role: figure(view) for role, view in case.views()}
    values: dict[str, float | None] = {role: float(one.mean()) for role, one in found.items()}
    ends = interval_of_mean(found["edited"], case.draws, case.seed)
    return Finding(name, title, good, values, ends, len(found["edited"]))


COLLATERAL = Question(
    name="collateral",
    title="What else was lost",
    asks=(
        "Are classes and domains that were to stay, named or not, still recognised, found and "
        "described as well as before?"
    ),
    paper="arXiv 1706.04599 (calibration)",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
