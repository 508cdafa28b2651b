"""Asked by its name, from lists of every length and in other words, what does the model tell?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.audit.figures import findings
from nullspace_unlearn.audit.lexicon import EXTRA, misspelt, related
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NAME_ONLY,
    NOT_FORGOTTEN,
    OVER_FORGOTTEN,
    Answer,
    Curve,
    Question,
    Row,
)
from nullspace_unlearn.evaluate.asking import (
    ALL,
    FOUND,
    LISTS,
    RECALL,
    Answers,
    Asking,
    named,
    way_of,
)
from nullspace_unlearn.evaluate.figures import FORGOTTEN as LEAST
from nullspace_unlearn.evaluate.figures import TOLD
from nullspace_unlearn.prototypes import standard_templates, templates_that_fit, wordings
from nullspace_unlearn.prototypes.text import class_prototypes, names_that_fit

# Names that stay which a phrasing is listed with, the nearest ones; and classes that are asked for
# in other words. Quick and not.
_LISTED = (50, 200)
_ASKED = (6, 24)
_POINTS = 48  # of the curve over lengths of lists

_ROUNDABOUT = (
    ("paraphrase", "this is a {class}"),
    ("paraphrase", "there is a {class} here"),
    ("paraphrase", "the thing in the picture is called {class}"),
    ("paraphrase", "{class}, as everyone knows it"),
    ("paraphrase", "what you see is a {class}"),
    ("capitals", "A PHOTO OF A {class}"),
    ("negation", "not a {class}"),
    ("negation", "a photo of anything but a {class}"),
    ("negation", "there is no {class} in this picture"),
)


@dataclass(frozen=True, eq=False)
class Phrasing:
    """A way of putting a name.

    Attributes:
        kind: What it is one of.
        text: The phrasing.
        template: A template that every name of the list is put in, or None: the case's own.
        place: Which of the forgotten classes is asked for by `text`; None: all, by their names.
    """

    kind: str
    text: str
    template: str | None = None
    place: int | None = None


def ask(case: Case) -> Answer:
    """Answer by lists of every length; where there are models, by every phrasing too.

    Args:
        case: What is audited.
    """
    models = case.comparisons
    evidence = models["edited"].measured.evidence
    told = evidence.told
    if told is None or not told.value.shape[-2]:
        return Answer.unmeasured("There is no image of what was to be forgotten, or of others.")
    judged = [way for way in told.ways if way != RECALL]
    shares = {
        way: float(share)
        for way, share in zip(judged, evidence.remaining(), strict=True)
        if way != FOUND and not bool(share.isnan())
    }
    if not shares:
        return Answer.unmeasured("The untouched model does not know what was to be forgotten.")
    left, over = max(shares.values()), -min(shares.values())
    worst = max(shares, key=lambda way: shares[way])
    rows, notes = _phrased(case) if "names" in case.has else ((), "")
    # A wider word covers what stays as well: that it fits is no secret.
    worded = next((row for row in rows if row.kind != "wider"), None)
    by_words = 0.0 if worded is None else worded.value or 0.0
    if left > LEAST:
        verdict = NOT_FORGOTTEN
    elif by_words > LEAST:
        verdict = NAME_ONLY
    else:
        verdict = OVER_FORGOTTEN if over > LEAST else FORGOTTEN
    length = worst.removeprefix("named_")
    sentence = f"Lists of {length} names leave most: {max(left, 0.0):.2f} of what they told."
    if worded is not None:
        sentence += (
            f" Of all phrasings {worded.text!r} ({worded.kind}) leaves most: {by_words:.2f}."
        )
    ways = (*(way_of(m) for m in LISTS), ALL)
    return Answer(
        verdict,
        sentence + notes,
        findings(ways, case),
        (_by_length(case),),
        rows,
    )


def _by_length(case: Case) -> Curve:
    """How often the name is got, from the shortest list to that of all names."""
    least = 0
    lines: dict[str, list[float]] = {}
    lengths: list[int] = []
    for role, view in case.views():
        asking = _asking(case, len(case.names))
        answers = Answers.of(asking, view.embeddings, view.text)
        least = int(asking.listed.sum(1).min())
        lengths = sorted(
            {round(m) for m in torch.logspace(0, 1, _POINTS, base=float(least + 1)).tolist()}
            | set(range(2, min(least + 1, _POINTS) + 1))
        )
        lengths = [m for m in lengths if 2 <= m <= least + 1]
        lines[role] = [_named(answers, asking.own, m) for m in lengths]
        if role == "edited":
            lines["chance"] = [_named(answers, asking.others, m) for m in lengths]
    return Curve(
        "lengths", "By the length of the list", "names on the list", "share of images that get it",
        lengths, lines,
    )  # fmt: skip


def _named(answers: Answers, whose: Tensor, length: int) -> float:
    """`named(length)`, a class counting once."""
    means = []
    for j, some in enumerate(whose):
        names = int(answers.asking.listed[j].sum())
        wins = named(answers.above[j, some], answers.ties[j, some], names, length)
        means.append(float(wins.mean()))
    return sum(means) / len(means)


def _asking(case: Case, names: int) -> Asking:
    return Asking.of(case.mask, case.labels, case.domains, names)


def _phrased(case: Case) -> tuple[tuple[Row, ...], str]:
    """What every phrasing leaves, that which leaves most first; and what was not tried."""
    case = _short(case)
    asking = _asking(case, len(case.names))
    classes = asking.classes.tolist()
    usual = Answers.of(asking, case.original.embeddings, case.original.text).told()
    ways = [i for i, way in enumerate(usual.ways) if way not in (FOUND, RECALL)]
    was = (usual.value - usual.blind)[:, ways]
    phrasings, without = _phrasings(case, [case.names[c] for c in classes])
    rows = []
    for one in phrasings:
        shares = []
        for view in (case.edited, case.original):
            text = _text(case, view, one, classes)
            answers = Answers.of(_of_class(asking, one.place), view.embeddings, text)
            told = answers.told()
            now, before = (told.value - told.blind)[:, ways], was
            before = before if one.place is None else before[one.place : one.place + 1]
            now, before = now.mean(0), before.mean(0)
            share = (now / before)[before >= TOLD]
            shares.append(float(share.max()) if len(share) else 0.0)
        rows.append(Row(one.text, one.kind, shares[0], shares[1], 0.0))
    rows.sort(key=lambda row: -(row.value or 0.0))  # stable: as tried where equal
    some = "" if without == 0 else f" {without} further classes were not asked for in other words."
    lacking = {"synonym", "plural"} - {one.kind for one in phrasings}
    some += f" No {' or '.join(sorted(lacking))} was known ({EXTRA})." if lacking else ""
    return tuple(rows), some


def _short(case: Case) -> Case:
    """The case with the names nearest to what was to be forgotten, where there are very many."""
    most = _LISTED[not case.quick]
    number = len(case.class_names)
    if len(case.names) <= max(most, number):
        return case
    text = torch.nn.functional.normalize(case.original.text.double(), dim=-1)
    rows = case.mask.any(1).nonzero()[:, 0]
    near = (text[number:] @ text[rows].mT).amax(-1)
    nearest = near.topk(min(max(0, most - number), len(near))).indices.sort().values
    kept = torch.cat([torch.arange(number), number + nearest])
    views = {r: replace(v, text=v.text[kept]) for r, v in case.views()}
    names = tuple(case.names[i] for i in kept.tolist())
    return replace(
        case, names=names, original=views["original"], edited=views["edited"],
        random=views.get("random"), retrained=views.get("retrained"),
    )  # fmt: skip


def _phrasings(case: Case, names: Sequence[str]) -> tuple[list[Phrasing], int]:
    """Everything that is tried, and how many classes are not asked for in other words."""
    clip = case.edited.clip
    assert clip is not None  # the caller checks
    kept = [case.names[i] for i in (~case.mask.any(1)).nonzero()[:, 0].tolist()]
    composed = [(f"a photo of a {_plain(name)}, a {{class}}", name) for name in kept[:3]]
    composed += [(f"a {{class}} beside a {_plain(name)}", name) for name in kept[:2]]
    given = [
        *(
            ("template", template)
            for template in dict.fromkeys((*wordings(), *standard_templates()))
        ),
        *_ROUNDABOUT,
        *(("composed", template) for template, _ in composed),
    ]
    fit = set(templates_that_fit(clip, case.names, [template for _, template in given]))
    found = [Phrasing(kind, text, template=text) for kind, text in given if text in fit]
    most = _ASKED[not case.quick]
    aliases = {name: others for one in case.requests for name, others in one.aliases.items()}
    for place, name in list(enumerate(names))[:most]:
        words = {**related(name), "alias": aliases.get(name, ())}
        words["misspelling"] = misspelt(name, case.generator("names", name))
        listed = {other.casefold() for other in case.names}
        for kind, texts in words.items():
            for text in names_that_fit(clip, texts, case.templates):
                if text.casefold() not in listed:
                    found.append(Phrasing(kind, text, place=place))
    return found, max(0, len(names) - most)


def _text(
    case: Case, view: View, one: Phrasing, classes: Sequence[int]
) -> Float[Tensor, "names dim"]:
    """The classifier of a model in a phrasing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a phrasing that is cut behind the name
        if one.template is not None:
            return view.prompts(case.names, [one.template])[:, 0]
        assert view.clip is not None and one.place is not None
        text = view.text.clone()
        text[classes[one.place]] = class_prototypes(view.clip, [one.text], case.templates)[0].to(
            text
        )
    return text


def _of_class(asking: Asking, place: int | None) -> Asking:
    if place is None:
        return asking
    some = slice(place, place + 1)
    return replace(
        asking, classes=asking.classes[some], own=asking.own[some], others=asking.others[some],
        listed=asking.listed[some],
    )  # fmt: skip


def _plain(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


NAMES = Question(
    name="names",
    title="Asked by name",
    asks=(
        "Does any list of names, however short, or any way of putting the name, still get it for "
        "its images?"
    ),
    paper="arXiv 2103.00020 (the 80 templates)",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
