"""Asked by its name, from lists of every length, what does the model still tell?"""

from __future__ import annotations

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.figures import compared, findings
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NOT_FORGOTTEN,
    NOT_MEASURED,
    OVER_FORGOTTEN,
    Answer,
    Question,
)
from nullspace_unlearn.evaluate.asking import ALL, LISTS, way_of


def ask(case: Case) -> Answer:
    """Answer by lists of every length.

    Args:
        case: What is audited.
    """
    models = compared(case)
    verdict = {
        "forgotten": FORGOTTEN,
        "not forgotten": NOT_FORGOTTEN,
        "over-forgotten": OVER_FORGOTTEN,
        "unknown": NOT_MEASURED,
    }[models["edited"].verdict]
    ways = ("left", "over", *(way_of(length) for length in LISTS), ALL)
    return Answer(verdict, f"By {models['edited'].found_by}.", findings(ways, models, case.draws))


NAMES = Question(
    name="names",
    title="Asked by name",
    asks="Does any list of names, or any way of putting the name, still get it for its images?",
    paper="",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
