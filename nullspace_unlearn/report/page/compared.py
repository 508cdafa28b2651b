"""Several runs side by side: one plane for each kind of request, and their figures in a row."""

from __future__ import annotations

from collections.abc import Sequence

from nullspace_unlearn.clip.source import REPORT_NAME
from nullspace_unlearn.evaluate.figures import FIGURES
from nullspace_unlearn.report.page.blocks import Block, Part, Section, Table, Words, number
from nullspace_unlearn.report.page.edited import plane
from nullspace_unlearn.report.page.runs import Run
from nullspace_unlearn.report.pareto import KINDS


def section(runs: Sequence[Run], parts: Sequence[Part]) -> Section | None:
    """What the runs of a page say beside one another.

    Args:
        runs: The runs.
        parts: What each of them says by itself.

    Returns:
        None where there is nothing to compare.
    """
    blocks: list[Block] = []
    if (table := _figures(runs)) is not None:
        blocks.append(table)
    kinds: dict[str, list[Part]] = {}
    for part in parts:
        for kind in dict.fromkeys(kind for kind, _ in part.points):
            kinds.setdefault(kind, []).append(part)
    for kind, some in kinds.items():
        if len(some) > 1:
            points = [point for part in some for other, point in part.points if other == kind]
            name = f"plane-{kind or 'all'}"
            blocks += [Words(f"Of {KINDS.get(kind, kind or 'several requests')}:"),
                       plane(points, name)]  # fmt: skip
    if not blocks:
        return None
    asked = {part.headline for part in parts if part.points}
    data = {str(run.said[REPORT_NAME].get("data")) for run in runs if REPORT_NAME in run.said}
    if len(asked) > 1 or len(data) > 1:
        blocks.insert(
            0,
            Words(
                "Not all of these were asked for the same thing, or measured on the same images; "
                "what stands side by side is comparable only as far as that allows."
            ),
        )
    return Section("Side by side", tuple(blocks))


def _figures(runs: Sequence[Run]) -> Table | None:
    """Figures of edited models in columns."""
    told = {
        run.name: run.said[REPORT_NAME]
        for run in runs
        if "figures" in run.said.get(REPORT_NAME, {})
    }
    if len(told) < 2:
        return None
    rows = tuple(
        (figure.title, *(number(one["figures"]["after"].get(name), name) for one in told.values()),
         figure.good)
        for name, figure in FIGURES.items()
        if any(one["figures"]["after"].get(name) is not None for one in told.values())
    )  # fmt: skip
    return Table("side-by-side", "Figures after the edit", ("figure", *told, "good"), rows)
