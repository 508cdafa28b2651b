"""A sweep: what each setting left and cost, over the requests of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from nullspace_unlearn.clip.source import RECIPE_NAME
from nullspace_unlearn.evaluate.figures import FIGURES, FORGOTTEN
from nullspace_unlearn.report.bench_plots import Point
from nullspace_unlearn.report.page.blocks import (
    Block,
    Drawing,
    Facts,
    Listing,
    Part,
    Section,
    Table,
    number,
)
from nullspace_unlearn.report.page.runs import Run
from nullspace_unlearn.report.pareto import (
    KINDS,
    Kind,
    Means,
    Setting,
    best_settings,
    named_plot,
    pareto_plot,
)
from nullspace_unlearn.report.sweep import SUMMARY
from nullspace_unlearn.strict import yaml_text

_SHOWN = ("left", "over", "cost", "balance", "worst_kept", "named_2", "named_all", "found")


def part(run: Run) -> Part:
    """What `nsu sweep` wrote.

    Args:
        run: Its folder.

    Raises:
        ValueError: If it is malformed; also KeyError, TypeError and AttributeError.
    """
    said, recipe = run.said[SUMMARY], run.said[RECIPE_NAME]
    kinds = [_kind(one) for one in said["kinds"]]
    items = (
        ("model", str(recipe.get("model") or "features"), False),
        ("measured on", f"{recipe.get('data') or 'images'}, {said['images']:,} images", False),
        ("version", str(recipe.get("version", "")), False),
    )
    blocks: tuple[Block, ...] = (Facts(items), Listing(f"What {RECIPE_NAME} holds",
                                                       yaml_text(dict(recipe))))  # fmt: skip
    sections = [Section("What was swept", blocks), *map(_section, kinds)]
    return Part(run.name, "a sweep", tuple(sections), points=_points(run.name, kinds))


def _kind(said: dict[str, object]) -> Kind:
    rows = said["settings"]
    if not isinstance(rows, list):
        raise TypeError("settings must be a list")
    settings = tuple(Setting(**row) for row in rows)
    return Kind(**{**said, "settings": settings})  # type: ignore[arg-type]


def _section(kind: Kind) -> Section:
    title = KINDS.get(kind.kind, kind.kind).capitalize()
    bounds: list[tuple[str, Means]] = [("untouched", kind.untouched), ("ideal", kind.ideal)]
    rows: list[tuple[Any, ...]] = [
        (name, "", *(number(means[f], f) for f in _SHOWN), number(0), "") for name, means in bounds
    ]
    for one in kind.settings:
        numbers = one.numbers or ""
        rank = "" if one.rank is None else f"rank {one.rank}"
        how = ", ".join(filter(None, (f"strength {one.strength:g}", rank, numbers)))
        values = [number(None if one.means is None else one.means[f], f) for f in _SHOWN]
        rows.append((one.method, how, *values, number(one.measured), _word(one)))
    heads = ("method", "setting", *(FIGURES[f].title for f in _SHOWN), "requests", "front")
    table = Table(kind.kind, "Every setting, means over requests", heads, tuple(rows))
    drawings = (
        Drawing(
            f"{kind.kind}-plane",
            "What is left, against what it cost",
            "Every setting as a point; the best lie at the lower left, joined by steps. Larger: "
            "stronger. Hollow: over-forgotten.",
            partial(pareto_plot, [kind]),
        ),
        Drawing(
            f"{kind.kind}-lists",
            "By lists of every length",
            "How often images get the forgotten name, over the length of the list: of each method "
            "the setting of best balance, and the untouched model.",
            partial(named_plot, [kind]),
        ),
    )
    return Section(title, (*drawings, table))


def _word(one: Setting) -> str:
    if one.means is None:
        return "refused"
    return "on it" if one.on_front else ""


def _points(name: str, kinds: Sequence[Kind]) -> tuple[tuple[str, Point], ...]:
    """Of each method the setting of best balance."""
    found = []
    for kind in kinds:
        for method, one in best_settings(kind).items():
            means = one.means
            if means is None or means["left"] is None or means["cost"] is None:
                continue
            over = (means["over"] or 0.0) > FORGOTTEN
            point = Point(f"{method} ({name})", means["left"], means["cost"], over=over)
            found.append((kind.kind, point))
    return tuple(found)
