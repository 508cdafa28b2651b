"""`nsu.audit(...)`, which is also the package that holds its modules."""

from __future__ import annotations

import inspect

import planted
import pytest

import nullspace_unlearn as nsu
from nullspace_unlearn.audit.door import audit
from nullspace_unlearn.audit.question import NOT_FORGOTTEN

CAR = nsu.Forget(["car"])


def test_features_are_audited_in_memory():
    one, asked = planted.original(), ["yardstick", "search"]
    found = nsu.audit(planted.zero(), one, forget=CAR, only=asked, draws=0).measured
    assert [question.name for question, _ in found.answers] == asked
    assert found["yardstick"].verdict == "forgotten" and found.about["request"]["classes"] == [
        "car"
    ]
    untouched = nsu.audit(one, one, forget=CAR, only=asked, draws=0).measured  # control
    assert untouched["yardstick"].verdict == untouched.verdict == NOT_FORGOTTEN
    with pytest.raises(KeyError):
        found["names"]


def test_the_package_is_the_function_and_still_a_package():
    assert inspect.signature(nsu.audit) == inspect.signature(audit)
    from nullspace_unlearn.audit import run

    assert nsu.audit.run is run


@pytest.mark.parametrize(
    ("arguments", "choices", "message"),
    [
        (("nsu-mini", "nsu-mini"), {}, "give data"),
        (("nsu-mini", planted.original()), {}, "both be features, or both be models"),
        ((planted.zero(), planted.original()), {}, "give forget, and no data"),
        ((planted.zero(), planted.original(), "nsu-mini"), {"forget": CAR}, "and no data"),
        ((planted.zero(), planted.original()), {"forget": CAR, "retrained": "nsu-mini"}, "must be"),
        ((planted.zero(), planted.original()), {"forget": CAR, "others": ["nsu-mini"]}, "one set"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, choices, message):
    with pytest.raises(ValueError, match=message):
        nsu.audit(*arguments, **choices)
