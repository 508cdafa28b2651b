"""Is less told than a model would tell that never saw what was to be forgotten?"""

from __future__ import annotations

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.figures import findings
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NOT_FORGOTTEN,
    OVER_FORGOTTEN,
    Answer,
    Question,
    Row,
)
from nullspace_unlearn.evaluate.asking import RECALL
from nullspace_unlearn.evaluate.figures import FIGURES, TOLD
from nullspace_unlearn.evaluate.figures import FORGOTTEN as LEAST

_WAYS = ("named_2", "named_5", "named_10", "named_50", "named_all", "found")


def ask(case: Case) -> Answer:
    """Answer by each way of asking, beside chance and, where there is one, a retrained model.

    Args:
        case: What is audited.
    """
    models = case.comparisons
    evidence = models["edited"].measured.evidence
    told, untouched = evidence.told, evidence.told_before
    if told is None or untouched is None or not told.value.shape[-2]:
        return Answer.unmeasured("There is no image of what was to be forgotten, or of others.")
    never = models["retrained"].measured.evidence.told if "retrained" in models else None
    whole = {w: untouched.of(w) - untouched.of(w, blind=True) for w in untouched.ways}
    rows, below = [], {}
    for way in told.ways:
        if way == RECALL or float(whole[way]) < TOLD:
            continue
        now = float(told.of(way) - told.of(way, blind=True))
        # Chance is what a name scores that says nothing, which a model that saw other domains of
        # the class need not be at.
        level = 0.0 if never is None else float(never.of(way) - never.of(way, blind=True))
        below[way] = (level - now) / float(whole[way])
        title = FIGURES[way].title if way in FIGURES else way
        chance = float(told.of(way, blind=True))
        rows.append(Row(title, "way of asking", float(told.of(way)), float(untouched.of(way)),
                        chance + level))  # fmt: skip
    if not below:
        return Answer.unmeasured("The untouched model does not know what was to be forgotten.")
    worst = max(below, key=lambda way: below[way])
    least = min(below.values())
    if below[worst] > LEAST:
        verdict = OVER_FORGOTTEN
    else:
        verdict = NOT_FORGOTTEN if least < -LEAST else FORGOTTEN
    beside = "chance" if never is None else "a model that never saw it"
    where = FIGURES[worst].title if worst in FIGURES else worst
    sentence = f"It lies at most {max(below[worst], 0.0):.2f} below {beside} (by {where})"
    sentence += f" and at most {max(0.0, -least):.2f} above"
    sentence += (
        ". Give --retrained to compare with one that never saw it." if never is None else "."
    )
    made = findings(("over", "forgotten", *_WAYS), case)
    return Answer(verdict, sentence, made, (), tuple(rows))


OVER_FORGETTING = Question(
    name="over-forgetting",
    title="Over-forgetting",
    asks=(
        "Is the name got less often than by a model that never saw the images, which would tell "
        "that something was forgotten?"
    ),
    paper="arXiv 1911.04933 (the Streisand effect)",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
