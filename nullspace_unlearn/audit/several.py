"""Of several edits made one after another, is what was forgotten first still forgotten?"""

from __future__ import annotations

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.question import NOT_MEASURED, Answer, Finding, Question, Row, severity
from nullspace_unlearn.audit.yardstick import VERDICTS
from nullspace_unlearn.evaluate.compare import cells_of
from nullspace_unlearn.forget import Forget


def ask(case: Case) -> Answer:
    """Answer by the yardstick of each request, on its own images and those that stay.

    Args:
        case: What is audited.
    """
    if len(case.requests) < 2:
        return Answer.unmeasured("One request was met, and this asks about several.")
    made, rows, verdicts = [], [], []
    for number, request in enumerate(case.requests, 1):
        try:
            mask = cells_of(request, case.class_names, case.original.features.domain_names)
        except ValueError:  # the images do not show it
            continue
        # Images that another request concerns are neither its own nor what stays.
        chosen = mask[case.labels, case.domains] | ~case.gone
        some = case.subset(chosen.nonzero()[:, 0])
        one = some.against(some.edited, mask)
        verdict = VERDICTS[one.verdict]
        verdicts.append(verdict)
        for name in ("left", "over"):
            values = {r: some.against(v, mask).figures["after"][name] for r, v in some.views()}
            ends = one.measured.intervals(case.draws).get(name) if case.draws else None
            title = f"{name}, request {number}"
            made.append(
                Finding(f"{name}_{number}", title, "low", values, ends, one.images["forgotten"])
            )
        left = one.figures["after"]["left"]
        rows.append(Row(f"{number}. {_words(request)}", verdict, left, 1.0, 0.0))
    told = [one for one in verdicts if one != NOT_MEASURED]
    if len(told) < 2:
        return Answer.unmeasured("The images show fewer than two of the requests.")
    verdict = max(told, key=severity)
    said = "; ".join(f"{row.text}: {row.kind}" for row in rows)
    return Answer(verdict, f"First to last: {said}.", tuple(made), (), tuple(rows))


def _words(request: Forget) -> str:
    names = ", ".join(request.classes) or "every class"
    return f"{names} in {', '.join(request.domains)}" if request.domains else f"{names} everywhere"


SEVERAL = Question(
    name="several-edits",
    title="Several edits",
    asks="Is what an earlier edit forgot still forgotten after those that followed?",
    paper="",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
