"""A benchmark: its tables, and every method in the plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from nullspace_unlearn.clip.source import RECIPE_NAME
from nullspace_unlearn.evaluate.figures import FIGURES, FORGOTTEN
from nullspace_unlearn.report.bench_plots import Point, left_against_cost
from nullspace_unlearn.report.page.blocks import (
    Block,
    Cell,
    Drawing,
    HeatMap,
    Listing,
    Part,
    Section,
    Table,
    Words,
    number,
)
from nullspace_unlearn.report.page.runs import Run
from nullspace_unlearn.strict import yaml_text

_BOUNDS = ("untouched", "ideal")


def part(run: Run) -> Part:
    """What `nsu bench` wrote.

    Args:
        run: Its folder.

    Raises:
        ValueError: If it is malformed; also KeyError, TypeError and AttributeError.
    """
    said = run.said["table.json"]
    about = [Words(str(said["about"]))] if said.get("about") else []
    recipe = Listing("The recipe", yaml_text(run.said[RECIPE_NAME]))
    sections = [Section(said["recipe"], (*about, recipe))]
    points = []
    for group, parts in said["groups"].items():
        rows = parts["all"]
        own = [point for label, row in rows.items() if (point := _point(label, row))]
        points += [
            (group, replace(one, label=f"{one.label} ({run.name})")) for one in own if not one.bound
        ]
        title = said.get("titles", {}).get(group, group)
        blocks = _blocks(group, rows, own, said["metrics"])
        maps = [map_ for one in said.get("cells", {}).get(group, ()) for map_ in _maps(group, one)]
        sections.append(Section(title, (*blocks, *maps)))
    return Part(run.name, "a benchmark", tuple(sections), points=tuple(points))


def _blocks(
    group: str, rows: Mapping[str, Any], points: list[Point], metrics: list[str]
) -> list[Block]:
    shown = [name for name in metrics if any(row.get(name) for row in rows.values())]
    lines: list[tuple[Cell, ...]] = []
    for label, row in rows.items():
        cells: list[Cell] = []
        for name in shown:
            cell: Mapping[str, Any] = row.get(name) or {"mean": None, "std": None}
            cells += [number(cell["mean"], name), number(cell["std"], name)]
        runs = max((each["n"] for each in row.values() if each), default=0)
        lines.append((label, *cells, number(runs)))
    heads = [part for name in shown for part in (_title(name), "±")]
    table = Table(
        group, "Means over requests, and standard deviations over all runs",
        ("method", *heads, "runs"), tuple(lines),
    )  # fmt: skip
    if not points:
        return [table]
    says = "Each method as a point, with its standard deviations; the best lie at the lower left."
    title = "What is left, against what it cost"
    draw = partial(left_against_cost, points, "")
    return [Drawing(f"{group}-plane", title, says, draw), table]


_OF = {
    "forgotten": "accuracy of each cell where it was to be forgotten",
    "kept": "accuracy of each cell where it was to stay",
}


def _maps(group: str, said: Mapping[str, Any]) -> list[HeatMap]:
    """One method, cell by cell: means over the trials that forgot a cell, and over the others."""
    method = ", ".join(filter(None, (said["method"], said["dataset"])))
    domains = tuple(said["domains"])
    found = []
    for which, words in _OF.items():
        grids = [said[which][name] for name in ("before", "after", "count")]
        if any(len(g) != len(said["classes"]) or {len(r) for r in g} != {len(domains)}
               for g in grids):  # fmt: skip
            raise ValueError("its grids and names are not of one shape")
        there = [c for c, row in enumerate(grids[2]) if any(row)]
        before, after, count = ([grid[c] for c in there] for grid in grids)
        gone = [[which == "forgotten" and n > 0 for n in row] for row in count]
        heat = HeatMap(
            f"{group}-{method}-{which}", f"{method}: {words}",
            tuple(said["classes"][c] for c in there), domains, before, after, count, gone,
            folded=True,
        )  # fmt: skip
        if there:
            found.append(heat.led())
    return found


def _title(name: str) -> str:
    return FIGURES[name].title if name in FIGURES else name


def _point(label: str, row: Mapping[str, Any]) -> Point | None:
    left, cost, over = row.get("left"), row.get("cost"), row.get("over")
    if not left or not cost:
        return None
    hollow = over is not None and over["mean"] > FORGOTTEN
    return Point(
        label, left["mean"], cost["mean"], _around(left), _around(cost), hollow, label in _BOUNDS
    )


def _around(of: Mapping[str, Any]) -> tuple[float, float]:
    return of["mean"] - of["std"], of["mean"] + of["std"]
