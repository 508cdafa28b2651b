"""A comparison for a reader: the grid, the figures, and whether it was forgotten at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nullspace_unlearn.evaluate.compare import Comparison

_ROWS = {
    "forgotten": "forgotten (lower is better)",
    "same_class": "same class, kept domains",
    "same_domain": "other classes, same domain",
    "rest": "the rest",
    "worst_kept": "worst cell that stays",
    "h4": "H4 (harmonic mean)",
}


def comparison_lines(comparison: Comparison) -> list[str]:
    """Lines for a terminal.

    Args:
        comparison: What was measured.
    """
    from nullspace_unlearn.report.plots import grid_table

    c = comparison
    lines = [
        grid_table(c.before, c.after, c.mask, c.classes, c.domains),
        "",
        *_figures(c.figures),
    ]
    if not _forgotten_enough(c.figures):
        lines.append("Not forgotten: the accuracy on forgotten cells is still high.")
    return lines


def _figures(figures: dict[str, Any]) -> list[str]:
    lines = [f"{'':30}{'before':>9}{'after':>9}{'ideal':>9}"]
    for key, label in _ROWS.items():
        values = [figures[model][key] for model in ("before", "after", "ideal")]
        if any(value is not None for value in values):
            cells = "".join(f"{'-' if v is None else format(v, '.3f'):>9}" for v in values)
            lines.append(f"{label:30}{cells}")
    return lines


def _forgotten_enough(figures: dict[str, Any]) -> bool:
    before, after = figures["before"]["forgotten"], figures["after"]["forgotten"]
    return bool(after <= max(0.1, before / 4))
