"""The figures that a request is judged by everywhere in this package, with their controls."""

from __future__ import annotations

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.figures import findings
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NOT_FORGOTTEN,
    NOT_MEASURED,
    OVER_FORGOTTEN,
    Answer,
    Question,
)
from nullspace_unlearn.evaluate.figures import FIGURES

VERDICTS = {
    "forgotten": FORGOTTEN,
    "not forgotten": NOT_FORGOTTEN,
    "over-forgotten": OVER_FORGOTTEN,
    "unknown": NOT_MEASURED,
}
"""What evaluate says -> the verdict of an audit."""


def ask(case: Case) -> Answer:
    """Answer by `left`, `over` and `cost`.

    Args:
        case: What is audited.
    """
    models = case.comparisons
    edited = models["edited"]
    verdict = VERDICTS[edited.verdict]
    if verdict == NOT_MEASURED:
        return Answer.unmeasured("The untouched model does not know what was to be forgotten.")
    told = {name: FIGURES[name].written(edited.figures["after"][name]) for name in FIGURES}
    by = "" if edited.found_by is None else f" (by {FIGURES[edited.found_by].title})"
    sentence = f"Of what the name tells, {told['left']} is left{by}; over {told['over']}"
    if edited.figures["after"]["cost"] is not None:
        sentence += f"; cost {told['cost']} points"
    figures = findings(("left", "over", "cost", "kept", "worst_kept"), case)
    return Answer(verdict, f"{sentence}.", figures)


YARDSTICK = Question(
    name="yardstick",
    title="The yardstick",
    asks="Does the name say anything about the image any more, and what did that cost?",
    paper="",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
