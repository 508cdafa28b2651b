"""What is left against what it cost: one point a setting, and the front of the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.evaluate.asking import ALL, LISTS, way_of
from nullspace_unlearn.evaluate.figures import FIGURES, FORGOTTEN
from nullspace_unlearn.report.picture import COLOURS, MARKS, picture

Means = Mapping[str, "float | None"]
"""Name of a figure -> its mean over the requests that tell it; None where none does."""

# All is left and nothing is paid: what doing nothing beats is on no front.
_UNTOUCHED = (1.0, 0.0)

KINDS = {
    "global": "classes everywhere",
    "cell": "classes in some domains",
    "domain": "whole domains",
}
"""Kinds of requests in words."""

_Key = tuple[str, float, "int | None", "str | None"]


@dataclass(frozen=True)
class Setting:
    """What a setting did, over the requests of one kind.

    Attributes:
        method: The eraser.
        strength: Share of the edit as derived.
        rank: Highest rank allowed; None for all of it.
        numbers: The numbers asked for, on one line; None for the method's own.
        measured: Requests that the means are over.
        refused: Requests that the method refused.
        means: The figures; None where every request was refused.
        on_front: Whether no setting has less left at the same cost, or costs less with as little
            left; none that is over-forgotten is on it.
    """

    method: str
    strength: float
    rank: int | None
    numbers: str | None
    measured: int
    refused: int
    means: Means | None
    on_front: bool = False


@dataclass(frozen=True)
class Kind:
    """The requests of one kind ("global", "cell" or "domain"), and what each setting did."""

    kind: str
    untouched: Means
    ideal: Means
    settings: tuple[Setting, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def summarise(rows: Iterable[Mapping[str, Any]]) -> tuple[Kind, ...]:
    """Average the rows of a sweep over requests, each request counting once.

    Settings are only compared on requests of one kind, which every method that takes the kind has
    been given all of.

    Args:
        rows: Rows with the columns of `evaluate.sweep.COLUMNS`; read once and not kept.

    Returns:
        The kinds that there are rows of, each with its settings in the order they came.
    """
    totals: dict[str, dict[_Key, _Sums]] = {}
    refused: Counter[tuple[str, _Key]] = Counter()
    models: dict[str, dict[str, _Sums]] = {}
    for row in rows:
        kind = row["kind"]
        setting = (row["method"], row["strength"], row["rank"], row["numbers"])
        sums = totals.setdefault(kind, {}).setdefault(setting, _Sums())
        both = models.setdefault(kind, {"before": _Sums(), "ideal": _Sums()})
        for model, one in both.items():
            one.add({name: row[f"{model}_{name}"] for name in FIGURES})
        if row["refused"] is None:
            sums.add({name: row[name] for name in FIGURES})
        else:
            refused[kind, setting] += 1
    kinds = []
    for kind, sums_of in totals.items():
        means = {key: sums.means() if sums.rows else None for key, sums in sums_of.items()}
        able = [key for key, m in means.items() if m is not None and _drawn(m) and not _is_over(m)]
        points = [_point(means[key]) for key in able]
        front = pareto_front([*((left, -cost) for left, cost in points), _UNTOUCHED])
        best = {able[i] for i in front if i < len(able)}
        settings = tuple(
            Setting(
                method,
                strength,
                rank,
                numbers,
                measured=sums_of[key].rows,
                refused=refused[kind, key],
                means=mean,
                on_front=key in best,
            )
            for key, mean in means.items()
            for method, strength, rank, numbers in [key]
        )
        both = models[kind]
        kinds.append(Kind(kind, both["before"].means(), both["ideal"].means(), settings))
    return tuple(kinds)


def best_settings(kind: Kind) -> dict[str, Setting]:
    """Of each method the setting of best balance, of those that were not refused.

    Args:
        kind: From `summarise`.
    """

    def balance(one: Setting) -> float:
        return (one.means or {}).get("balance") or 0.0

    best: dict[str, Setting] = {}
    for one in kind.settings:
        if one.means is not None and balance(one) > balance(best.setdefault(one.method, one)):
            best[one.method] = one
    return best


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Which of some points no other one beats.

    Args:
        points: Less of the first and more of the second is better.

    Returns:
        The places of the points that none is at least as good as in both and better in one; equal
        points are all on the front or all off it.
    """
    best = float("-inf")
    front: set[int] = set()
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    for place, i in enumerate(order):
        equal = place > 0 and points[order[place - 1]] == points[i]
        if points[i][1] > best or (equal and order[place - 1] in front):
            front.add(i)
        best = max(best, points[i][1])
    return front


def pareto_plot(kinds: Sequence[Kind], path: str | Path, overwrite: bool = False) -> None:
    """Draw every setting by what is left (across) and what it cost (up), a panel for each kind.

    The best are at the lower left. Settings that differ in strength alone are joined by a line, the
    stronger drawn larger; those that are over-forgotten are hollow; what no other setting beats is
    ringed and joined by steps. The untouched model is marked.

    Args:
        kinds: From `summarise`.
        path: The picture to write; its ending, one of `picture.FORMATS`, says the format.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If matplotlib is not installed, the ending is another, or there is nothing to
            draw.
    """
    if not kinds:
        raise ValueError("there is nothing to draw: no rows were measured")
    methods = list(dict.fromkeys(o.method for kind in kinds for o in kind.settings))
    handles: dict[str, Any] = {}
    with picture(path, (5.2 * len(kinds) + 1.6, 4.4), overwrite) as figure:
        for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            _draw(ax, kind, methods, handles)
        names = [
            name for name in (*methods, "front", "over-forgotten", "untouched") if name in handles
        ]
        figure.legend(
            [handles[name] for name in names], names, loc="outside right upper", frameon=False,
            title="larger: stronger", title_fontsize=8,
        )  # fmt: skip


def named_plot(kinds: Sequence[Kind], path: str | Path, overwrite: bool = False) -> None:
    """Draw how often the name is got by the length of the list, a panel for each kind.

    Of each method the setting of best balance is drawn, and the untouched model.

    Args:
        kinds: From `summarise`.
        path: The picture to write; its ending, one of `picture.FORMATS`, says the format.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If matplotlib is not installed, the ending is another, or there is nothing to
            draw.
    """
    if not kinds:
        raise ValueError("there is nothing to draw: no rows were measured")
    ways = {way_of(length): str(length) for length in LISTS} | {ALL: "all"}
    with picture(path, (4.6 * len(kinds) + 1.6, 3.8), overwrite) as figure:
        for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            best = {method: one.means or {} for method, one in best_settings(kind).items()}
            shown = [way for way in ways if kind.untouched[way] is not None]
            for number, (name, means) in enumerate({"untouched": kind.untouched, **best}.items()):
                values = [means[way] for way in shown]
                heights = [float("nan") if value is None else value for value in values]
                ax.plot(
                    [ways[way] for way in shown], heights, label=name, markersize=5,
                    marker=MARKS[(number - 1) % len(MARKS)] if number else "X",
                    color=COLOURS[(number - 1) % len(COLOURS)] if number else "k",
                )  # fmt: skip
            ax.set_title(KINDS.get(kind.kind, kind.kind), fontsize=10)
            ax.set_xlabel("names on the list")
            ax.set_ylabel("images that get the forgotten name")
            ax.set_ylim(-0.03, 1.03)
            ax.legend(fontsize=8, frameon=False)


def _draw(ax: Any, kind: Kind, methods: Sequence[str], handles: dict[str, Any]) -> None:
    drawn = [(o, o.means) for o in kind.settings if o.means is not None and _drawn(o.means)]
    lines: dict[tuple[Any, ...], list[tuple[float, float, float, bool]]] = {}
    for o, means in drawn:
        line = lines.setdefault((o.method, o.rank, o.numbers), [])
        line.append((o.strength, *_point(means), _is_over(means)))
    for (method, _, _), points in lines.items():
        number = methods.index(method)
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        strength, across, up, over = zip(*sorted(points), strict=True)
        ax.plot(across, up, color=colour, linewidth=0.8, alpha=0.7)
        for hollow in (False, True):
            some = [i for i, one in enumerate(over) if one == hollow]
            if not some and (hollow or method in handles):
                continue
            found = ax.scatter(
                [across[i] for i in some], [up[i] for i in some],
                s=[12 + 24 * strength[i] for i in some], marker=mark, zorder=3,
                facecolors="none" if hollow else colour, edgecolors=colour if hollow else "w",
                linewidths=1.2 if hollow else 0.4,
            )  # fmt: skip
            handles["over-forgotten" if hollow else method] = found
    front = sorted({_point(m) for o, m in drawn if o.on_front})
    if front:
        across, up = zip(*front, strict=True)
        handles["front"] = ax.step(across, up, where="post", color="0.3", linewidth=1.2, zorder=1)[
            0
        ]
        ax.scatter(across, up, s=80, facecolors="none", edgecolors="0.3", linewidths=1.2, zorder=4)
    handles["untouched"] = ax.scatter(1, 0, marker="X", s=200, color="k", edgecolors="w", zorder=2)
    many = max(o.measured + o.refused for o in kind.settings)
    over_ = "1 request" if many == 1 else f"mean of {many} requests"
    ax.set_title(f"{KINDS.get(kind.kind, kind.kind)} ({over_})", fontsize=10)
    ax.set_xlabel("left: told of what is forgotten, in the worst way of asking")
    ax.set_ylabel("cost: points of accuracy on what is kept")
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)


def _drawn(means: Means) -> bool:
    """Whether a setting has a place in the plane."""
    return means["left"] is not None and means["cost"] is not None


def _point(means: Means | None) -> tuple[float, float]:
    assert means is not None and means["left"] is not None and means["cost"] is not None
    return means["left"], means["cost"]


def _is_over(means: Means) -> bool:
    return (means["over"] or 0) > FORGOTTEN


class _Sums:
    """Sums over rows, each figure over those that tell it."""

    def __init__(self) -> None:
        self.rows = 0
        self.of: dict[str, tuple[int, float]] = {}

    def add(self, values: Means) -> None:
        """Count one more row."""
        self.rows += 1
        for name, value in values.items():
            count, total = self.of.get(name, (0, 0.0))
            self.of[name] = (count, total) if value is None else (count + 1, total + value)

    def means(self) -> Means:
        """The means so far."""
        return {name: total / count if count else None for name, (count, total) in self.of.items()}
