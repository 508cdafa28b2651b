"""What the trials of a benchmark come to: figures over requests and draws, as tables."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nullspace_unlearn.bench.recipe import Recipe
from nullspace_unlearn.evaluate.figures import FIGURES, grid_figures
from nullspace_unlearn.evaluate.zeroshot import grid_of
from nullspace_unlearn.report.tidy import no_formula

BOUNDS = {"untouched": "before", "ideal": "ideal"}
"""The rows that are always there, and the grid each is read from."""

_KIND_KIND_TITLES = {
    "global": "Classes everywhere",
    "cell": "Classes in one domain",
    "domain": "Whole domains",
}
_MOST_NAMES = 60  # in a table for a reader; table.csv has them all
_KIND_TITLES = {
    "global": "Classes everywhere",
    "cell": "Classes in one domain",
    "domain": "Whole domains",
}
_MOST_NAMES = 60  # in a table for a reader; table.csv has them all
_LEGEND = (
    "Mean ± standard deviation over requests and draws; in brackets the worst of them. The ideal: "
    "names struck off the one list, so nothing is named and a search finds all of it."
)


@dataclass(frozen=True)
class Spread:
    """A figure over requests and draws.

    Attributes:
        mean: Mean over requests of the mean over draws.
        std: Standard deviation over all runs; 0 for a single one.
        min: The lowest.
        max: The highest.
        n: Runs.
    """

    mean: float
    std: float
    min: float
    max: float
    n: int


Spreads = Mapping[str, Spread | None]


def scores(run: Mapping[str, Any], which: str) -> dict[str, float | None]:
    """The figures of one model in one trial, from its grids.

    Args:
        run: The trial's JSON.
        which: "before", "after" or "ideal".

    Returns:
        Every figure of `figures.FIGURES`; None where it cannot be told.
    """
    mask = torch.tensor(run["forgotten"])
    before, grid = grid_of(run["grids"]["before"]), grid_of(run["grids"][which])
    others = [(was, now if which == "after" else was) for was, now in run["others"].values()]
    told = grid_figures(grid, mask, before, others)
    seconds = run["seconds"] if which == "after" else None
    return {
        **dict.fromkeys(FIGURES),
        **run["figures"][which],
        **{name: value for name, value in told.items() if value is not None},
        "seconds": seconds,
    }


def summary(recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of a benchmark.

    Args:
        recipe: The recipe.
        runs: The JSON of its trials.

    Returns:
        Group (see `group_of`) -> "all" and "by" -> method -> metric -> `Spread`; "by" first names
        what was forgotten, one name at a time.
    """
    told = [_Told.of(run) for run in runs]
    found: dict[str, Any] = {}
    for group in dict.fromkeys(group_of(run) for run in runs):
        some = [one for one in told if one.group == group]
        by: dict[str, list[_Told]] = {}
        for one in some:
            for name in one.names:
                by.setdefault(name, []).append(one)
        found[group] = {
            "all": _rows(recipe, some),
            "by": {name: _rows(recipe, some) for name, some in by.items()},
        }
    return found


def group_of(run: Mapping[str, Any]) -> str:
    """The table that a trial belongs to: its kind of request, and how much goes at once.

    Args:
        run: The trial's JSON.
    """
    size = len(_names(run))
    return run["kind"] if size == 1 else f"{run['kind']}-{size}"


def title_of(group: str) -> str:
    """A group in words.

    Args:
        group: As `group_of` gives it.
    """
    kind, _, size = group.partition("-")
    return _KIND_TITLES[kind] + (f", {size} at once" if size else "")


def to_json(recipe: Recipe, found: Mapping[str, Any]) -> dict[str, Any]:
    """A summary as plain values.

    Args:
        recipe: The recipe.
        found: What `summary` gave.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return asdict(value) if isinstance(value, Spread) else value

    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "metrics": list(recipe.metrics),
        "titles": {group: title_of(group) for group in found},
        "groups": plain(found),
    }


def to_csv(found: Mapping[str, Any]) -> str:
    """A summary as lines: group, of (a forgotten name; empty for all), method, metric, figures.

    Args:
        found: What `summary` gave.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["group", "of", "method", "metric", "mean", "std", "min", "max", "n"])
    for group, parts in found.items():
        for of, rows in {"": parts["all"], **parts["by"]}.items():
            for label, row in rows.items():
                for metric, value in row.items():
                    if value is not None:
                        told = map(no_formula, (group, of, label, metric))
                        lines.writerow([*told, *asdict(value).values()])
    return text.getvalue()


def to_markdown(recipe: Recipe, found: Mapping[str, Any], failed: int = 0) -> str:
    """A summary for a reader: one table a kind of request, then how it spreads over names.

    Args:
        recipe: The recipe.
        found: What `summary` gave.
        failed: How many trials have no result.
    """
    parts = [f"# {recipe.name}", recipe.about] if recipe.about else [f"# {recipe.name}"]
    parts += [_LEGEND, _meanings(recipe)]
    if failed:
        parts.append(f"**{failed} trials failed and are missing here.**")
    for group, rows in found.items():
        parts += [f"## {title_of(group)}", _table(recipe, rows["all"])]
        if "spread" in recipe.metrics and 1 < len(rows["by"]) <= _MOST_NAMES:
            h = "h4" if group.startswith("cell") else "h"
            parts += [f"### {FIGURES[h].title} by what was forgotten", _by_name(rows["by"], h)]
    return "\n\n".join(parts) + "\n"


def dump(value: Mapping[str, Any]) -> str:
    """JSON as it is written to a file."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class _Told:
    """A trial with its figures worked out."""

    group: str
    label: str
    request: tuple[str, str]
    names: tuple[str, ...]
    scores: Mapping[str, Mapping[str, float | None]]

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> _Told:
        grids = ("before", "after", "ideal")
        return cls(
            group=group_of(run),
            label=run["label"],
            request=(run["what"], run["dataset"]),
            names=tuple(_names(run)),
            scores={which: scores(run, which) for which in grids},
        )


def _rows(recipe: Recipe, told: Sequence[_Told]) -> dict[str, Spreads]:
    """Untouched, ideal, then the methods that have results."""
    requests = list({one.request: one for one in told}.values())
    rows = {label: _row(requests, which) for label, which in BOUNDS.items()}
    for entry in recipe.methods:
        if some := [one for one in told if one.label == entry.label]:
            rows[entry.label] = _row(some, "after")
    return rows


def _row(told: Sequence[_Told], which: str) -> Spreads:
    row: dict[str, Spread | None] = {}
    for metric in FIGURES:
        by_request: dict[tuple[str, str], list[float]] = {}
        for one in told:
            if (value := one.scores[which][metric]) is not None:
                by_request.setdefault(one.request, []).append(value)
        row[metric] = _spread(list(by_request.values()))
    return row


def _spread(by_request: Sequence[Sequence[float]]) -> Spread | None:
    values = [value for some in by_request for value in some]
    if not values:
        return None
    mean = statistics.fmean(statistics.fmean(some) for some in by_request)
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean, std, min(values), max(values), len(values))


def _names(run: Mapping[str, Any]) -> list[str]:
    request = run["request"]
    return request["classes"] or request["domains"]


def _meanings(recipe: Recipe) -> str:
    shown = [FIGURES[metric] for metric in recipe.metrics]
    return "\n".join(f"- *{_safe(one.title)}*: {_safe(one.meaning)}." for one in shown)


def _title(metric: str) -> str:
    return FIGURES[metric].title + " ↓" * (FIGURES[metric].good == "low")


def _table(recipe: Recipe, rows: Mapping[str, Spreads]) -> str:
    shown = [m for m in recipe.metrics if any(row[m] is not None for row in rows.values())]
    lines = [["method", *map(_title, shown), "runs"]]
    for label, row in rows.items():
        runs = max(value.n for value in row.values() if value is not None)
        lines.append([label, *(_cell(metric, row[metric]) for metric in shown), str(runs)])
    return _markdown(lines)


def _by_name(by: Mapping[str, Mapping[str, Spreads]], metric: str) -> str:
    labels = dict.fromkeys(label for rows in by.values() for label in rows)
    lines = [["forgotten", *labels]]
    for name, rows in by.items():
        values = [rows[label][metric] if label in rows else None for label in labels]
        lines.append([name, *(_cell(metric, value) for value in values)])
    return _markdown(lines)


def _cell(metric: str, value: Spread | None) -> str:
    if value is None:
        return ""
    figure = FIGURES[metric]
    if value.n == 1 or metric == "seconds":
        return figure.written(value.mean)
    worst = value.min if figure.good == "high" else value.max
    return " ".join(
        (figure.written(value.mean), "±", figure.written(value.std), f"({figure.written(worst)})")
    )


def _safe(text: str) -> str:
    """A name that neither ends a cell nor begins HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = [[_safe(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))
