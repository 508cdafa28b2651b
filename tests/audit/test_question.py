"""Answers: their order, their way through JSON, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nullspace_unlearn.audit.attacks import QUESTIONS, chosen
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    KEPT,
    NAME_ONLY,
    NOT_FORGOTTEN,
    NOT_KEPT,
    OVER_FORGOTTEN,
    Answer,
    Curve,
    Finding,
    Row,
    recoverable,
    severity,
)

ANSWER = Answer(
    NAME_ONLY,
    "Found by search.",
    (Finding("left", "left", "low", {"edited": 0.5, "chance": math.nan}, (0.1, 0.9), 12),),
    (Curve("lists", "Lists", "names", "share", (2, 5), {"edited": (0.5, math.nan)}),),
    (Row("a photo of a car", "template", 0.5, 1.0, 0.1),),
)


def test_an_answer_comes_back_from_json_as_it_was():
    text = json.dumps(ANSWER.to_json(), allow_nan=False)
    assert Answer.from_json(json.loads(text)) == ANSWER
    assert ANSWER.findings[0].values["chance"] is ANSWER.curves[0].lines["edited"][1] is None
    other = Answer.from_json({**json.loads(text), "verdict": FORGOTTEN})  # control
    assert other != ANSWER


@pytest.mark.parametrize(
    "damage",
    [
        {"verdict": "fine"},
        {"findings": [{"name": "left"}]},
        {"rows": None},
        {"curves": [{**ANSWER.to_json()["curves"][0], "x": [1]}]},
        {"findings": [{**ANSWER.to_json()["findings"][0], "values": {"someone": 1.0}}]},
    ],
)
def test_what_is_no_answer_is_refused(damage):
    Answer.from_json(ANSWER.to_json())  # control
    with pytest.raises(ValueError):
        Answer.from_json({**ANSWER.to_json(), **damage})


def test_verdicts_are_ordered():
    order = [FORGOTTEN, NAME_ONLY, recoverable(4), NOT_FORGOTTEN]
    assert sorted(order[::-1], key=severity) == order
    assert recoverable(1) == "recoverable with 1 image"


def test_questions_are_chosen_by_name():
    assert chosen() == QUESTIONS
    assert [one.name for one in chosen(("names",))] == ["names"]
    with pytest.raises(ValueError, match="no question 'name'; allowed: .*names"):
        chosen(("name",))
    assert len({one.name for one in QUESTIONS}) == len(QUESTIONS)


def test_the_page_lists_every_question_and_verdict():
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    for one in QUESTIONS:
        quick = "yes" if one.quick else "no"
        assert f"| `{one.name}` | {one.asks} | {quick} | {one.paper or '-'} |" in page
    for verdict in (FORGOTTEN, NAME_ONLY, NOT_FORGOTTEN, OVER_FORGOTTEN, KEPT, NOT_KEPT):
        assert f"\n| {verdict} | " in page
    assert page.count("\n| `") == 1 + len(QUESTIONS)  # and the head
