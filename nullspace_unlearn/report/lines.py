"""Some lines over one axis, as any curve of a report is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nullspace_unlearn.report.picture import COLOURS, MARKS, picture
from nullspace_unlearn.report.text import shortened

_MOST_LABELS = 12
"""Up to so many points stand evenly apart, each with its own label."""

_GREY = {"chance": ":", "original": "--", "untouched": "--"}
"""Lines that others are compared with: grey, and broken each in its own way."""


def line_plot(
    x: Sequence[float | str],
    lines: Mapping[str, Sequence[float | None]],
    x_title: str,
    y_title: str,
    path: str | Path,
    share: bool = True,
    overwrite: bool = False,
) -> None:
    """Draw lines, a mark at each point.

    Args:
        x: Where the lines are told, in order.
        lines: Name -> as many heights, None where it cannot be told.
        x_title: What the axis is.
        y_title: What the heights are.
        path: The picture to write; its ending, one of `picture.FORMATS`, says the format.
        share: Whether the heights lie from 0 to 1.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If matplotlib is not installed, the ending is another, or there is nothing to
            draw.
    """
    if not x or not lines:
        raise ValueError("there is nothing to draw: no line has a point")
    even = len(x) <= _MOST_LABELS or any(isinstance(one, str) for one in x)
    places = list(range(len(x))) if even else [float(one) for one in x]
    with picture(path, (6.4, 3.4), overwrite) as figure:
        axes = figure.subplots()
        number = 0
        for name, heights in lines.items():
            grey = _GREY.get(name)
            colour, mark = "0.35", "x"
            if grey is None:
                colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
                number += 1
            shown = [float("nan") if y is None else y for y in heights]
            axes.plot(
                places, shown, color=colour, marker=mark, markersize=5, linestyle=grey or "-",
                label=shortened(name, 32).replace("$", r"\$"),
            )  # fmt: skip
        if even:
            labels = [one if isinstance(one, str) else f"{one:g}" for one in x]
            axes.set_xticks(places, [shortened(one, 16) for one in labels], parse_math=False)
        if share:
            axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(shortened(x_title, 80), parse_math=False)
        axes.set_ylabel(shortened(y_title, 60), parse_math=False)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
