"""What the tables share: the spread of a figure over choices, Markdown, the files written."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """A figure over many choices of what to forget.

    Attributes:
        mean: Mean over the choices.
        sd: Standard deviation over the choices; 0 for a single one.
        worst: The least good choice.
    """

    mean: float
    sd: float
    worst: float


def spread(values: Sequence[float], high_is_good: bool = True) -> Spread:
    """Mean, standard deviation and worst of a figure over the choices."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), sd, min(values) if high_is_good else max(values))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def target(what: str, value: float, limit: float, most: bool = True) -> str:
    """One line that says whether a figure is what was asked for."""
    met = value <= limit if most else value >= limit
    sign = "at most" if most else "at least"
    return f"- {what}: {value:.3f}, asked {sign} {limit:g}: **{'met' if met else 'not met'}**."


def write(name: str, title: str, parts: Sequence[str], result: dict[str, Any]) -> None:
    """Write `results/<name>.md` and `results/<name>.json`, figures rounded to 5 digits."""
    RESULTS.mkdir(exist_ok=True)
    text = "\n\n".join([f"# {title}", f"Made by `python benchmarks/figures.py {name}`.", *parts])
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(
        json.dumps(rounded(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float) and value:
        return round(value, 4 - math.floor(math.log10(abs(value))))
    return value
