"""Tables and pictures of a benchmark, written beside its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nullspace_unlearn.bench import table
from nullspace_unlearn.bench.maps import maps
from nullspace_unlearn.bench.recipe import Recipe
from nullspace_unlearn.evaluate.figures import FORGOTTEN
from nullspace_unlearn.evaluate.zeroshot import grid_of
from nullspace_unlearn.files import new_file
from nullspace_unlearn.report.bench_plots import Point, left_against_cost
from nullspace_unlearn.report.picture import check_picture
from nullspace_unlearn.report.plots import grid_heatmap


def write_report(
    recipe: Recipe, runs: Sequence[Mapping[str, Any]], output: Path, failed: int = 0
) -> tuple[str, dict[str, Any]]:
    """Write table.md, table.csv, table.json and, where matplotlib is there, pictures.

    Pictures are left-GROUP.png, every method as a point, and grid-GROUP.png, the cells before and
    after the first method on the first request. All follow from the trials, so they are written
    anew each time.

    Args:
        recipe: The recipe.
        runs: The JSON of its trials.
        output: The folder of the benchmark.
        failed: How many trials have no result.

    Returns:
        The Markdown and the JSON.
    """
    found = table.summary(recipe, runs)
    text = table.to_markdown(recipe, found, failed)
    said = {**table.to_json(recipe, found), "cells": maps(runs)}
    for name, content in (
        ("table.md", text),
        ("table.csv", table.to_csv(found)),
        ("table.json", table.dump(said)),
    ):
        with new_file(output / name, overwrite=True) as temporary:
            temporary.write_text(content, encoding="utf-8")
    if _can_draw():
        for group, parts in found.items():
            title = table.title_of(group)
            points = [
                _point(label, row)
                for label, row in parts["all"].items()
                if row["left"] is not None and row["cost"] is not None
            ]
            if points:
                left_against_cost(points, title, output / f"left-{group}.png", overwrite=True)
            first = next(run for run in runs if table.group_of(run) == group)
            _draw_grid(first, output / f"grid-{group}.png")
    return text, said


def _can_draw() -> bool:
    try:
        check_picture("left.png")
    except ValueError:  # no matplotlib
        return False
    return True


def _point(label: str, row: Any) -> Point:
    return Point(
        label=label,
        left=row["left"].mean,
        cost=row["cost"].mean,
        left_ends=_around(row["left"]),
        cost_ends=_around(row["cost"]),
        over=row["over"] is not None and row["over"].mean > FORGOTTEN,
        bound=label in table.BOUNDS,
    )


def _around(of: table.Spread) -> tuple[float, float]:
    return of.mean - of.std, of.mean + of.std


def _draw_grid(run: Mapping[str, Any], path: Path) -> None:
    grids = run["grids"]
    grid_heatmap(
        grid_of(grids["before"]),
        grid_of(grids["after"]),
        torch.tensor(run["forgotten"]),
        grids["before"]["classes"],
        grids["before"]["domains"],
        path,
        overwrite=True,
    )
