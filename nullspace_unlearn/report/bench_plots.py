"""Methods of a benchmark as points: what is kept against what is forgotten."""

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
        forgotten: `1 - accuracy` on what was to be forgotten: mean and standard deviation.
        kept: Accuracy on all that stays: mean and standard deviation.
        bound: Whether it is the untouched model or the ideal.
    """

    label: str
    forgotten: tuple[float, float]
    kept: tuple[float, float]
    bound: bool = False


def kept_against_forgotten(
    points: Sequence[Point], title: str, path: str | Path, overwrite: bool = False
) -> None:
    """Draw each method as a point with its standard deviations; the best are at the top right.

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
                point.forgotten[0],
                point.kept[0],
                xerr=point.forgotten[1],
                yerr=point.kept[1],
                fmt=mark,
                color=colour,
                markersize=10 if point.bound else 6,
                elinewidth=0.8,
                capsize=2,
                label=point.label.replace("$", r"\$"),
            )
        axes.set_xlabel("1 - accuracy on what was to be forgotten")
        axes.set_ylabel("accuracy on what stays")
        axes.set_title(title)
        axes.set_xlim(-0.05, 1.05)
        axes.set_ylim(-0.05, 1.05)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
