"""A comparison for a reader: in a sentence, the grid, and the figures beside chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nullspace_unlearn.evaluate.compare import Comparison


def comparison_lines(comparison: Comparison, method: str | None = None) -> list[str]:
    """Lines for a terminal.

    Args:
        comparison: What was measured.
        method: What was done, for what would lower a high cost; absent: nothing is said of it.
    """
    from nullspace_unlearn.evaluate.verdict import advice, sentence
    from nullspace_unlearn.report.plots import grid_table

    c = comparison
    lower = None if method is None else advice(c, method)
    return [
        grid_table(c.before, c.after, c.mask, c.classes, c.domains),
        "",
        *figure_lines(c),
        "",
        sentence(c),
        *([] if lower is None else [lower]),
    ]


def prediction_lines(prediction: Comparison, method: str) -> list[str]:
    """What prototypes predict, where no image was seen.

    Args:
        prediction: From `evaluate.compare.predicted`.
        method: What was done.
    """
    from nullspace_unlearn.evaluate.verdict import advice, sentence

    lower = advice(prediction, method)
    return [
        "Predicted, no image seen: what the edit makes of the prototypes that it was made from.\n"
        "Of images more is left, and they cost more: give --data to see it.",
        "",
        *figure_lines(prediction),
        "",
        f"Predicted: {sentence(prediction)}",
        *([] if lower is None else [lower]),
    ]


def figure_lines(comparison: Comparison) -> list[str]:
    """The figures before, after and by chance, with how many images they are of.

    Args:
        comparison: What was measured.
    """
    from nullspace_unlearn.evaluate.verdict import table

    lines = [f"{'':24}{'before':>9}{'after':>9}{'chance':>9}{'images':>9}"]
    for row in table(comparison):
        way = " (low is good)" if row["good"] == "low" else ""
        cells = "".join(f"{row[which]:>9}" for which in ("before", "after", "chance"))
        lines.append(f"{row['title'] + way:24}{cells}{row['images']:>9}")
    return lines
