"""What an audit asks, and the form that every answer has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from nullspace_unlearn.audit.case import Case

Good = Literal["low", "high", "chance"]
Need = Literal["features", "hidden", "images", "models", "names"]

FORGOTTEN = "forgotten"
KEPT = "kept"
OVER_FORGOTTEN = "over-forgotten"
NAME_ONLY = "forgotten by name only"
NOT_KEPT = "not kept"
NOT_FORGOTTEN = "not forgotten"
NOT_MEASURED = "not measured"

MODELS = ("edited", "original", "random", "retrained")
"""What an answer may be told of, the audited one first."""

COLUMNS = (*MODELS, "chance")
"""What a finding may have values of."""


class Unmeasurable(ValueError):
    """What is at hand does not let a question be answered; says why, without a full stop."""


SHOWN = 20
"""Rows of an answer that are kept, those that tell most."""


def recoverable(images: int) -> str:
    """The verdict where so many images bring back what was forgotten.

    Args:
        images: How many, of each class that was forgotten.
    """
    return f"recoverable with {images} image{'s' * (images != 1)}"


def severity(verdict: str) -> int:
    """How bad a verdict is, 0 the best; what was not measured is no better than that.

    Args:
        verdict: One of this module's.

    Raises:
        ValueError: If it is none of them.
    """
    order = (FORGOTTEN, KEPT, OVER_FORGOTTEN, NOT_KEPT, NAME_ONLY, "recoverable", NOT_FORGOTTEN)
    if verdict == NOT_MEASURED:
        return 0
    known = "recoverable" if verdict.startswith("recoverable with ") else verdict
    if known not in order:
        raise ValueError(f"{verdict!r} is no verdict; allowed: {', '.join(order)}")
    return order.index(known)


@dataclass(frozen=True)
class Finding:
    """One figure of an answer, beside its controls.

    Attributes:
        name: Its key.
        title: What a table's head says.
        good: Which way is good; "chance": it should be what it is by chance.
        values: The figure of each model that has it: "edited"; "original"; "random", the original
            with a random change of the same ranks and sizes at the same places; "retrained", a
            model that never saw what was to be forgotten; and "chance". None where it cannot be
            told.
        interval: 95 % interval of the edited model's, by bootstrap over images, where there is one.
        images: How many images it is computed from.
    """

    name: str
    title: str
    good: Good
    values: Mapping[str, float | None]
    interval: tuple[float, float] | None = None
    images: int = 0

    def __post_init__(self) -> None:
        if not set(self.values) <= set(COLUMNS):
            given = ", ".join(self.values)
            raise ValueError(f"values are of {given}; allowed: {', '.join(COLUMNS)}")
        told = {k: None if v is None or math.isnan(v) else float(v) for k, v in self.values.items()}
        object.__setattr__(self, "values", told)
        if self.interval is not None:
            ends = tuple(float(end) for end in self.interval)
            object.__setattr__(self, "interval", None if any(map(math.isnan, ends)) else ends)


@dataclass(frozen=True)
class Curve:
    """Some lines over one axis.

    Attributes:
        name: Its key.
        title: What stands above it.
        x_title: What stands at the axis.
        y_title: What stands at the other.
        x: `[points]` where the lines are told.
        lines: Model, as in `Finding.values` -> `[points]`; None where it cannot be told.
    """

    name: str
    title: str
    x_title: str
    y_title: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", tuple(self.x))
        lines = {
            name: tuple(None if y is None or math.isnan(y) else float(y) for y in line)
            for name, line in self.lines.items()
        }
        if any(len(line) != len(self.x) for line in lines.values()):
            raise ValueError(f"{self.name} has {len(self.x)} points and lines of other lengths")
        object.__setattr__(self, "lines", lines)


@dataclass(frozen=True)
class Row:
    """One of many things tried: a phrasing, a class, a rounding.

    Attributes:
        text: What was tried.
        kind: What it is one of, such as "synonym".
        value: What the edited model tells.
        original: What the untouched model tells.
        chance: What is told by chance; None where that says nothing.
    """

    text: str
    kind: str
    value: float | None
    original: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Answer:
    """What was found out.

    Attributes:
        verdict: One of this module's.
        sentence: What it rests on, for a reader.
        findings: The figures.
        curves: Lines to draw.
        rows: Things tried, the worst first.
    """

    verdict: str
    sentence: str
    findings: tuple[Finding, ...] = ()
    curves: tuple[Curve, ...] = ()
    rows: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        severity(self.verdict)
        for name in ("findings", "curves", "rows"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def unmeasured(cls, why: str) -> Answer:
        """No answer.

        Args:
            why: What is missing, a sentence.
        """
        return cls(NOT_MEASURED, why)

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Answer:
        """Read an answer back.

        Args:
            said: What `to_json` gave.

        Raises:
            ValueError: If it is not one.
        """
        try:
            findings = [
                Finding(**{**one, "interval": one["interval"] and tuple(one["interval"])})
                for one in said["findings"]
            ]
            curves = [Curve(**one) for one in said["curves"]]
            rows = [Row(**one) for one in said["rows"]]
            return cls(
                str(said["verdict"]), str(said["sentence"]), tuple(findings), tuple(curves),
                tuple(rows),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no answer: {error}") from None


@dataclass(frozen=True)
class Question:
    """One question of an audit: an attack, or what it cost.

    Attributes:
        name: Its key, as --only takes it.
        title: What stands above the answer.
        asks: The question in plain words.
        paper: Where the attack is from; empty: from nowhere in particular.
        needs: What must be at hand: "features" of the images, their "hidden" features, the
            "images" themselves, the "models", "names" that the text tower reads.
        quick: Whether it is asked with --quick.
        ask: Answers it.
    """

    name: str
    title: str
    asks: str
    paper: str
    needs: frozenset[Need]
    quick: bool
    ask: Callable[[Case], Answer]

    def answer(self, case: Case) -> Answer:
        """Answer the question, or say what it takes.

        Args:
            case: What is audited.
        """
        if missing := sorted(self.needs - case.has):
            return Answer.unmeasured(f"It needs {' and '.join(missing)}, which are not at hand.")
        try:
            found = self.ask(case)
        except Unmeasurable as error:
            return Answer.unmeasured(f"{error}.")
        return replace(found, rows=found.rows[:SHOWN])
