"""Methods, or models, as points: what is left against what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nullspace_unlearn.report.picture import COLOURS, MARKS, picture
from nullspace_unlearn.report.text import shortened


@dataclass(frozen=True)
class Point:
    """One method, or one model.

    Attributes:
        label: Its name.
        left: What is left.
        cost: What it cost, in points.
        left_ends: Between which it lies: a standard deviation off, or an interval; None where that
            is not known.
        cost_ends: The same of the cost.
        over: Whether it is over-forgotten, and drawn hollow.
        bound: Whether it is the untouched model.
    """

    label: str
    left: float
    cost: float
    left_ends: tuple[float, float] | None = None
    cost_ends: tuple[float, float] | None = None
    over: bool = False
    bound: bool = False


def left_against_cost(
    points: Sequence[Point], title: str, path: str | Path, overwrite: bool = False
) -> None:
    """Draw each as a point, with what it lies between; the best are at the lower left.

    Args:
        points: The methods.
        title: What was forgotten.
        path: The picture to write; its ending, one of `picture.FORMATS`, says the format.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If matplotlib is not installed, the ending is another, or there is no point.
    """
    if not points:
        raise ValueError("there is no method to draw")
    with picture(path, (7.2, 4.2), overwrite) as figure:
        axes = figure.subplots()
        number, marks = 0, []
        for point in points:
            mark, colour = "*", "0.35"
            if not point.bound:
                mark, colour = MARKS[number % len(MARKS)], COLOURS[number % len(COLOURS)]
                number += 1
            drawn = axes.errorbar(
                point.left,
                point.cost,
                xerr=_off(point.left, point.left_ends),
                yerr=_off(point.cost, point.cost_ends),
                fmt=mark,
                color=colour,
                markerfacecolor="none" if point.over else colour,
                markersize=10 if point.bound else 6,
                elinewidth=0.8,
                capsize=2,
            )
            marks.append(drawn[0])  # without its bars, which would hide it in the legend
        axes.set_xlabel("left: told of what is forgotten, in the worst way of asking")
        axes.set_ylabel("cost: points of accuracy on what stays")
        axes.set_title(shortened(title, 80), parse_math=False)
        axes.set_xlim(left=-0.05)
        names = [shortened(point.label, 32).replace("$", r"\$") for point in points]
        axes.legend(marks, names, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _off(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    """How far the ends lie below and above a value, as matplotlib takes it."""
    if ends is None:
        return None
    return [[max(value - ends[0], 0.0)], [max(ends[1] - value, 0.0)]]
