"""A comparison in words: whether it is forgotten, what that cost, and conditions on figures."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nullspace_unlearn.evaluate.compare import EVERYWHERE, Comparison
from nullspace_unlearn.evaluate.figures import FIGURES
from nullspace_unlearn.spelling import instead

COSTLY = 1.0
"""Points of kept accuracy from which a cost is called high, and what would lower it is said."""

SEARCH_COSTLY = 0.02
"""Average precision that searches by names that stay lose before the sentence says so."""

_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\S+)\s*")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
# For comparison with papers and in benchmarks; the rest says it here.
_NOT_SHOWN = ("mem", "for", "h", "subgroup", "kravets", "spread", "balance")
# What of each method lowers its cost, at the price of forgetting less.
_LOWER = {
    "hull": "a --depth nearer 0",
    "level": "a --strength below this one",
    "two_sided": "its names alone, without --images-too",
    "nullspace": "--method hull",
    "ccup": "--method hull",
    "leace": "--method hull",
}


@dataclass(frozen=True)
class Condition:
    """A condition on a figure, such as `left>0.1`.

    Attributes:
        name: The figure.
        sign: "<", "<=", ">" or ">=".
        limit: What it is compared with.
    """

    name: str
    sign: str
    limit: float

    @classmethod
    def read(cls, text: str) -> Condition:
        """Read a condition.

        Args:
            text: A figure, a sign and a number.

        Raises:
            ValueError: If it is none; names the figures.
        """
        match = _CONDITION.fullmatch(text)
        try:
            limit = float(match[3]) if match else None
        except ValueError:
            limit = None
        if match is None or limit is None or limit != limit:
            raise ValueError(
                f"condition {text!r} must be a figure, one of < <= > >= and a number, as "
                f"left>0.1; figures: {', '.join(FIGURES)}"
            )
        if match[1] not in FIGURES:
            raise ValueError(f"unknown figure {match[1]!r}; {instead(match[1], FIGURES)}")
        return cls(match[1], match[2], limit)

    def holds(self, values: Mapping[str, float | None]) -> bool:
        """Whether it holds; of a figure that cannot be told it does.

        Args:
            values: The figures of a model.
        """
        value = values[self.name]
        return value is None or _COMPARE[self.sign](value, self.limit)

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.limit:g}"


def sentence(found: Comparison) -> str:
    """Whether what was to be forgotten is, and what that cost, in a line.

    Args:
        found: What was measured.
    """
    after, way = found.figures["after"], found.found_by
    left, over = (_short(after[name]) for name in ("left", "over"))
    by = FIGURES[way].title if way else ""
    match found.verdict:
        case "forgotten":
            said = f"Forgotten: yes (left {left})."
        case "not forgotten":
            said = f"NOT FORGOTTEN: {left} of what the name tells is left, by {by}."
        case "over-forgotten":
            said = (
                f"Over-forgotten: its images get the name less often than others do (over {over}), "
                "so the model still tells them."
            )
        case _:
            said = _unknown(found)
    return f"{said} {cost_sentence(found)}".strip()


def cost_sentence(found: Comparison) -> str:
    """What was lost, and who paid most.

    Args:
        found: What was measured.
    """
    cost, paid = found.figures["after"]["cost"], found.paid
    if cost is None:
        return ""
    said = f"Cost: {FIGURES['cost'].written(cost)} points"
    if paid is None or paid["before"] <= paid["after"]:
        said = f"{said}; no cell lost."
    else:
        where = "" if found.domains == EVERYWHERE else f" in {paid['domain']}"
        said = (
            f"{said}; worst: {paid['class']}{where}, {_short(paid['before'])} -> "
            f"{_short(paid['after'])}."
        )
    was, now = (found.figures[which]["kept_search"] for which in ("before", "after"))
    if was is None or now is None or was - now < SEARCH_COSTLY:
        return said
    return f"{said} Searches by names that stay: {_short(was)} -> {_short(now)}."


def advice(found: Comparison, method: str) -> str | None:
    """What would lower a high cost; None where the cost is not high.

    Args:
        found: What was measured.
        method: The method's name.
    """
    cost = found.figures["after"]["cost"]
    if cost is None or cost <= COSTLY:
        return None
    lower = _LOWER.get(method, "a --strength below this one")
    return f"The cost is high: {lower} would lower it."


def table(found: Comparison) -> list[dict[str, Any]]:
    """Every figure that can be told, for a reader.

    Args:
        found: What was measured.

    Returns:
        For each figure its "name", "title", "meaning", which way is "good", how many "images" it is
        of, and "before", "after" and "chance" as text.
    """
    of = {"forgotten": "forgotten", "kept": "kept"}
    counts = found.images | {"both": found.images["forgotten"] + found.images["others"]}
    rows = []
    for name, figure in FIGURES.items():
        values = {which: found.figures[which][name] for which in ("before", "after", "chance")}
        if values["after"] is None or name in _NOT_SHOWN:
            continue
        written = {which: figure.written(value) for which, value in values.items()}
        rows.append(
            {
                "name": name, "title": figure.title, "meaning": figure.meaning,
                "good": figure.good, "images": counts[of.get(figure.images, "both")], **written,
            }
        )  # fmt: skip
    return rows


def in_words(found: Comparison) -> dict[str, Any]:
    """What reports and cards say of a comparison, as plain JSON values.

    Args:
        found: What was measured.

    Returns:
        "sentence" and "table".
    """
    return {"sentence": sentence(found), "table": table(found)}


def _unknown(found: Comparison) -> str:
    if not found.images["forgotten"]:
        return "Not measured: no image is of what was to be forgotten."
    if not found.images["others"]:
        return "Not measured: no image is of anything else."
    return "Not measured: the untouched model does not tell these images from others."


def _short(value: float | None) -> str:
    """Two decimals, as .02."""
    text = format(0.0 if value is None else value, ".2f")
    return text.removeprefix("0") if text.startswith("0.") else text
