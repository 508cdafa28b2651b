"""What was forgotten against what was kept: one point a setting, and the front of the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.report.picture import COLOURS, MARKS, picture

_MEANS = ("forgotten", "kept", "worst_kept", "h4")

_KINDS = {
    "global": "classes everywhere",
    "cell": "classes in some domains",
    "domain": "whole domains",
}

_Key = tuple[str, float, "int | None", "str | None"]


@dataclass(frozen=True)
class Means:
    """Figures, each the mean over requests."""

    forgotten: float
    kept: float
    worst_kept: float
    h4: float


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
        on_front: Whether no setting forgets more and keeps as much, or keeps more and forgets as
            much.
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
    totals: dict[str, dict[_Key, list[float]]] = {}
    refused: Counter[tuple[str, _Key]] = Counter()
    models: dict[str, list[float]] = {}
    for row in rows:
        kind = row["kind"]
        setting = (row["method"], row["strength"], row["rank"], row["numbers"])
        sums = totals.setdefault(kind, {}).setdefault(setting, [0.0] * (1 + len(_MEANS)))
        both = models.setdefault(kind, [0.0] * (1 + 2 * len(_MEANS)))
        named = [f"{model}_{name}" for model in ("before", "ideal") for name in _MEANS]
        _add(both, [row[name] for name in named])
        if row["refused"] is None:
            _add(sums, [row[name] for name in _MEANS])
        else:
            refused[kind, setting] += 1
    kinds = []
    for kind, sums_of in totals.items():
        means = {key: _means(sums) if sums[0] else None for key, sums in sums_of.items()}
        front = pareto_front([(m.forgotten, m.kept) for m in means.values() if m is not None])
        best = {key for i, key in enumerate(k for k, m in means.items() if m) if i in front}
        settings = tuple(
            Setting(
                method,
                strength,
                rank,
                numbers,
                measured=int(sums_of[key][0]),
                refused=refused[kind, key],
                means=mean,
                on_front=key in best,
            )
            for key, mean in means.items()
            for method, strength, rank, numbers in [key]
        )
        both = models[kind]
        half = 1 + len(_MEANS)
        kinds.append(Kind(kind, _means(both[:half]), _means([both[0], *both[half:]]), settings))
    return tuple(kinds)


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Which of some points (forgotten, kept) no other one beats.

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
    """Draw every setting by what it forgot (across) and kept (up), a panel for each kind.

    Settings that differ in strength alone are joined by a line, the stronger drawn larger; what no
    setting beats is ringed and joined by steps. The untouched model and the ideal are marked.

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
        names = [name for name in (*methods, "front", "untouched", "ideal") if name in handles]
        figure.legend(
            [handles[name] for name in names], names, loc="outside right upper", frameon=False,
            title="larger: stronger", title_fontsize=8,
        )  # fmt: skip


def _draw(ax: Any, kind: Kind, methods: Sequence[str], handles: dict[str, Any]) -> None:
    drawn = [(o, o.means) for o in kind.settings if o.means is not None]
    lines: dict[tuple[Any, ...], list[tuple[float, float, float]]] = {}
    for o, means in drawn:
        line = lines.setdefault((o.method, o.rank, o.numbers), [])
        line.append((o.strength, means.forgotten, means.kept))
    for (method, _, _), points in lines.items():
        number = methods.index(method)
        colour = COLOURS[number % len(COLOURS)]
        strength, across, up = zip(*sorted(points), strict=True)
        ax.plot(across, up, color=colour, linewidth=0.8, alpha=0.7)
        handles[method] = ax.scatter(
            across, up, s=[12 + 24 * one for one in strength], color=colour,
            marker=MARKS[number % len(MARKS)], edgecolors="w", linewidths=0.4, zorder=3,
        )  # fmt: skip
    front = sorted({(m.forgotten, m.kept) for o, m in drawn if o.on_front})
    if front:
        across, up = zip(*front, strict=True)
        handles["front"] = ax.step(across, up, where="post", color="0.3", linewidth=1.2, zorder=1)[
            0
        ]
        ax.scatter(across, up, s=80, facecolors="none", edgecolors="0.3", linewidths=1.2, zorder=4)
    marks = (("untouched", kind.untouched, "X", 200), ("ideal", kind.ideal, "*", 450))
    for name, means, mark, size in marks:
        handles[name] = ax.scatter(
            means.forgotten, means.kept, marker=mark, s=size, color="k", edgecolors="w", zorder=2
        )  # beneath the settings, which may lie upon it
    many = max(o.measured + o.refused for o in kind.settings)
    over = "1 request" if many == 1 else f"mean of {many} requests"
    ax.set_title(f"{_KINDS.get(kind.kind, kind.kind)} ({over})", fontsize=10)
    ax.set_xlabel("accuracy on what is forgotten (less is better)")
    ax.set_ylabel("accuracy on what is kept")
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)


def _add(sums: list[float], values: Sequence[float]) -> None:
    """Count one more, and add its values behind the count."""
    for place, value in enumerate((1, *values)):
        sums[place] += value


def _means(sums: Sequence[float]) -> Means:
    return Means(*(total / sums[0] for total in sums[1:]))
