"""What someone meets who types `import nullspace_unlearn as nsu`."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import nullspace_unlearn as nsu

CAR = nsu.Forget(["car"])


def test_dir_lists_the_public_face() -> None:
    assert set(nsu.__all__) == {name for name in dir(nsu) if name[:2] != "__"} | {"__version__"}
    for name in nsu.__all__:
        assert getattr(nsu, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'eras'"):
        nsu.eras  # noqa: B018


def test_choices_stand_in_the_signatures() -> None:
    for function in (nsu.erase, nsu.plan):
        parameters = inspect.signature(function).parameters
        assert not any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        assert {"classes", "domains", "templates", "method", "side"} <= set(parameters)
    assert {"space", "strength", "numbers", "visual"} <= set(
        inspect.signature(nsu.erase).parameters
    )


def test_what_is_shown_fits_three_lines() -> None:
    clip = nsu.load("nsu-mini")
    plan, edit = nsu.plan(clip, CAR), nsu.erase(clip, CAR)
    edited = edit.fold(clip)
    for shown in map(repr, (clip, edited, plan, edit)):
        lines = shown.splitlines()
        assert len(lines) <= 3 and all(len(line) <= 100 for line in lines)
    assert (
        "nsu-mini" in repr(clip) and "edited 1 time)" in repr(edited) and "edited" not in repr(clip)
    )
    assert "car" in repr(plan) and "hull" in repr(plan) and "everywhere" in repr(plan)
    assert f"rank {edit.rank}" in repr(edit) and "hull" in repr(edit)


@pytest.mark.parametrize(
    ("request_", "choices", "message"),
    [
        ("car", {}, r"no string: write Forget\(classes=\['car'\]\)"),
        (CAR, {"classes": "car"}, r"write classes=\['car'\]"),
        (CAR, {"templates": "a {}"}, r"write templates=\['a \{\}'\]"),
        (CAR, {"domains": "sketch"}, r"write domains=\{'sketch': 'sketch'\}"),
        (CAR, {"domains": ["sketch", "art"]}, r"write domains=\{'sketch': 'sketch', 'art': 'art'"),
    ],
)
def test_a_string_for_a_list_gets_the_right_call(
    request_: Any, choices: dict[str, Any], message: str, unchecked: Any
) -> None:
    clip = nsu.load("nsu-mini")
    for function in (nsu.erase, nsu.plan):
        with unchecked(), pytest.raises(ValueError, match=message):
            function(clip, request_, **choices)
        assert function(clip, CAR) is not None  # the control
    with unchecked(), pytest.raises(ValueError, match=r"write classes=\['car'\]"):
        nsu.Forget("car")  # type: ignore[arg-type]


def test_packages_that_are_functions_are_still_packages() -> None:
    from nullspace_unlearn.evaluate.figures import FIGURES

    assert nsu.evaluate.figures.FIGURES is FIGURES  # type: ignore[attr-defined]
    for name in ("evaluate", "sweep", "audit"):
        assert getattr(nsu, name).__doc__
        assert "quiet" in inspect.signature(getattr(nsu, name)).parameters
