"""Of several edits made one after another, is what was forgotten first still forgotten?"""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.question import NOT_MEASURED, Answer, Finding, Question, Row, severity
from nullspace_unlearn.audit.yardstick import VERDICTS
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.history import History


def ask(case: Case) -> Answer:
    """Answer by the yardstick of each request, on its own images and those that stay.

    Args:
        case: What is audited.
    """
    if len(case.requests) < 2:
        return Answer.unmeasured("One request was met, and this asks about several.")
    made, rows, verdicts = [], [], []
    for number, request in enumerate(case.requests, 1):
        mask = _cells(case, request)
        if not mask[case.labels, case.domains].any():  # the images do not show it
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


def _cells(case: Case, request: Forget) -> Bool[Tensor, "classes domains"]:
    """The cells of the images that a request concerned, whatever it names beside."""
    alone = History("", edits=({"request": request.to_json()},))
    return alone.forgotten(case.class_names, case.domain_names) & case.mask


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
