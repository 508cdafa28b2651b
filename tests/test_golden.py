"""What was computed before is computed still: constants, defaults, edits, pictures.

`python tests/golden.py` writes the table anew, where a change is meant; see what it changed.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import golden
import pytest
from golden import FILE, table


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two tables differ: numbers by more than rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{where} > {k}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where} > {i}")]
    if isinstance(one, float) and isinstance(other, float):
        return (
            [] if one == pytest.approx(other, rel=1e-5, abs=1e-7) else [f"{where}: {one}, {other}"]
        )
    return [] if one == other else [f"{where}: {one}, now {other}"]


def test_nothing_has_changed_that_was_not_meant_to() -> None:
    found = differences(json.loads(FILE.read_text(encoding="utf-8")), table())
    assert not found, "python tests/golden.py, if that was meant:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "constant", "value", "part"),
    [
        ("erasers.hull", "_SAME_NAME", 2e-3, "constants"),
        ("erasers.hull", "_INSIDE", 0.0, "constants"),
        ("erasers.hull", "_METRIC_RIDGE", 0.2, "constants"),
        ("erasers.gated", "_DECOYS", 1, "constants"),
        ("linalg.ridge", "_PIVOT", 1e-7, "constants"),
        ("prototypes.vocabulary", "_CLOSE", 0.26, "constants"),
        ("data.mini", "_SUPERSAMPLE", 1, "pictures"),
    ],
)
def test_a_mutant_shows(module: str, constant: str, value: float, part: str, monkeypatch) -> None:
    """The control: one changed constant of each kind, in the table or in what comes of it."""
    changed = importlib.import_module(f"nullspace_unlearn.{module}")
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    monkeypatch.setattr(changed, constant, value)
    assert differences(kept[part], getattr(golden, part)())


def test_another_edit_shows(monkeypatch) -> None:
    """The control: the table of edits would notice, were the constants not in it."""
    kept = json.loads(FILE.read_text(encoding="utf-8"))["edits"]
    hulls = {case: made for case, made in kept.items() if case.startswith("hull, ")}
    assert not differences(hulls, golden.edits("hull"))
    module = importlib.import_module("nullspace_unlearn.erasers.hull")
    solve = module.solve_moment_of_kept
    monkeypatch.setattr(
        module, "solve_moment_of_kept", lambda r, k, ridge, *rest: solve(r, k, 2 * ridge, *rest)
    )
    assert differences(hulls, golden.edits("hull"))
