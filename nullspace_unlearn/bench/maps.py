"""Cell by cell: what the trials of a benchmark did where they forgot, and where they did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.bench.table import group_of
from nullspace_unlearn.evaluate.zeroshot import grid_of


def maps(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Accuracy of every cell, a mean over the trials that forgot it, and over the others.

    Args:
        runs: The JSON of the trials.

    Returns:
        Group (see `table.group_of`) -> one entry a method and data set: "method", "dataset",
        "classes", "domains", and for "forgotten" and "kept" `[classes][domains]` "before", "after"
        (null where no trial has such a cell) and "count", the images of the cell.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for key in dict.fromkeys((group_of(run), run["label"], run["dataset"]) for run in runs):
        some = [run for run in runs if (group_of(run), run["label"], run["dataset"]) == key]
        grids = [[grid_of(run["grids"][which]) for run in some] for which in ("before", "after")]
        before, after = (torch.stack([one.accuracy for one in several]) for several in grids)
        count = torch.stack([one.count for one in grids[0]])
        mask = torch.tensor([run["forgotten"] for run in some])
        group, label, dataset = key
        found.setdefault(group, []).append(
            {
                "method": label,
                "dataset": dataset,
                "classes": some[0]["grids"]["before"]["classes"],
                "domains": some[0]["grids"]["before"]["domains"],
                "forgotten": _means(before, after, count, mask),
                "kept": _means(before, after, count, ~mask),
            }
        )
    return found


def _means(
    before: Float[Tensor, "trials classes domains"],
    after: Float[Tensor, "trials classes domains"],
    count: Int[Tensor, "trials classes domains"],
    chosen: Bool[Tensor, "trials classes domains"],
) -> dict[str, list[list[Any]]]:
    there = chosen & (count > 0)
    many = there.sum(0)
    said: dict[str, list[list[Any]]] = {}
    for name, rows in (("before", before), ("after", after)):
        mean = (rows * there).sum(0) / many.clamp(min=1)
        said[name] = [
            [value if n else None for value, n in zip(*row, strict=True)]
            for row in zip(mean.tolist(), many.tolist(), strict=True)
        ]
    said["count"] = (count * there).amax(0).tolist()
    return said
