"""Methods of a benchmark as points: what is left against what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nullspace_unlearn.report.picture import COLOURS, MARKS, picture


@dataclass(frozen=True)
class Point:
    """One method.

    Attributes:
        label: Its name.
        left: Mean and standard deviation.
        cost: In points: mean and standard deviation.
        over: Whether it is over-forgotten, and drawn hollow.
        bound: Whether it is the untouched model.
    """

    label: str
    left: tuple[float, float]
    cost: tuple[float, float]
    over: bool = False
    bound: bool = False


def left_against_cost(
    points: Sequence[Point], title: str, path: str | Path, overwrite: bool = False
) -> None:
    """Draw each method as a point with its standard deviations; the best are at the lower left.

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
        number = 0
        for point in points:
            mark, colour = "*", "0.35"
            if not point.bound:
                mark, colour = MARKS[number % len(MARKS)], COLOURS[number % len(COLOURS)]
                number += 1
            axes.errorbar(
                point.left[0],
                point.cost[0],
                xerr=point.left[1],
                yerr=point.cost[1],
                fmt=mark,
                color=colour,
                markerfacecolor="none" if point.over else colour,
                markersize=10 if point.bound else 6,
                elinewidth=0.8,
                capsize=2,
                label=point.label.replace("$", r"\$"),
            )
        axes.set_xlabel("left: told of what is forgotten, in the worst way of asking")
        axes.set_ylabel("cost: points of accuracy on what stays")
        axes.set_title(title)
        axes.set_xlim(left=-0.05)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
