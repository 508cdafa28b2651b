"""Tables and the picture of what benchmarks/trained.py has run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _tables
from _peers import CLOSED
from _tables import markdown

from nullspace_unlearn.report.picture import COLOURS, picture

Run = dict[str, Any]

TITLES = {
    "domain": "One whole domain, every domain in turn",
    "cell": "One class in one domain, two cells",
    "global": "One class everywhere, two classes",
}
WORLDS = {
    "bundled": "nsu-mini on its bundled pictures: 12 classes, 4 domains.",
    "pacs": "clip-vit-pacs on PACS: 7 classes, 4 domains; images of its test.txt alone.",
}
DOMAINS = {
    "bundled": ("photo", "sketch", "painting", "cartoon"),
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
}
SAW = (
    "Trained rows saw 8 images a cell and 4 for validation (the epoch that is kept, and the "
    "strength of the soup), with labels, drawn three times; none is reported on. Their numbers "
    "were chosen on further images (last table). Closed forms use their defaults. Mem: accuracy on "
    "cells that stay, For: 1 - accuracy on forgotten ones, each cell counting once; H: their "
    "harmonic mean (H4 where a class goes in one domain); ± is the standard deviation over draws "
    "of the mean over requests. Seconds of one thread on a machine shared with other runs."
)
RETRAINED = (
    "nsu-mini trained from scratch on all pictures but those of the request, with the same seed "
    "and numbers (`train_mini.py --class car`, `--domain sketch` or both, `trained.py "
    "retrained`): what it is to have truly never seen a thing. Each entry is Mem, For, H of that "
    "one request, the mean over draws."
)
ABLATION = {
    "adu, neither": "neither",
    "adu, generator only": "generator only",
    "adu, disentangling only": "disentangling only",
    "adu": "both",
    "adu, CE only": "generator and CE",
    "adu, MMD only": "generator and MMD",
}
PAPER = {
    "neither": 52.59, "generator only": 56.41, "disentangling only": 60.82, "both": 69.96,
    "generator and CE": 64.01, "generator and MMD": 68.62,
}  # fmt: skip


def one_line(numbers: Iterable[tuple[str, str]], found: Sequence[Run]) -> str:
    """What some numbers of a method give on the images that numbers are chosen on."""
    said = ",".join(f"{key}={value}" for key, value in numbers)
    return (
        f"{said or 'defaults'}: H {_mean(found, 'h4'):.3f} Mem {_mean(found, 'kept'):.3f} "
        f"For {1 - _mean(found, 'forgotten'):.3f} {_mean(found, 'seconds'):.0f} s, "
        f"{_mean(found, 'epochs'):.0f} epochs"
    )


def write_all(world: str, work: Path, order: Iterable[str]) -> None:
    """Write results/trained-<world>.md and .json and draw docs/images/trained-<world>.png."""
    runs = [json.loads(path.read_text()) for path in sorted((work / world).glob("*/*.json"))]
    held = work / world / "memory.json"
    memory = json.loads(held.read_text()) if held.exists() else {}
    parts = [WORLDS[world], SAW]
    order = ["untouched", "ideal", *CLOSED, *order]
    for kind, title in TITLES.items():
        rows = {
            label: some
            for label in order
            if (some := [run for run in runs if run["label"] == label and run["kind"] == kind])
        }
        if len(rows) > 2:
            parts += [f"## {title}", _table(kind, rows, memory)]
            if kind == "domain":
                parts += ["### H of each forgotten domain", _by_request(rows, DOMAINS[world])]
                parts += ["### What the parts of ADU are worth", _ablation(rows)]
                draw(rows, Path(__file__).parents[1] / "docs" / "images" / f"trained-{world}.png")
                parts += [f"![kept and forgotten](../../docs/images/trained-{world}.png)"]
    if again := [run for run in runs if run["label"] == "retrained"]:
        parts += ["## Beside a model that never saw it", RETRAINED, _beside(again, runs, order)]
    parts += ["## How the numbers were chosen", _chosen(work / f"{world}-chosen")]
    name = f"trained-{world}"
    made = f"Made by `python benchmarks/trained.py run {world}`, `memory` and `table`."
    text = "\n\n".join([f"# Trained methods, {world}", made, *parts])
    (_tables.RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    result = {"runs": runs, "memory_mib": memory}
    (_tables.RESULTS / f"{name}.json").write_text(
        json.dumps(_tables.rounded(result), ensure_ascii=False) + "\n", encoding="utf-8"
    )


def draw(rows: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Every method as a point: what is kept against what is forgotten."""
    with picture(path, (6.4, 4.2), overwrite=True) as figure:
        axes = figure.subplots()
        for label, some in rows.items():
            if label in ABLATION and label != "adu":
                continue  # their table says more, and here they would lie on one another
            x, y = 1 - _mean(some, "forgotten"), _mean(some, "kept")
            mark, colour = "s", COLOURS[-1]
            if label in ("untouched", "ideal"):
                mark, colour = "*", "black"
            elif label in CLOSED:
                mark, colour = "o", COLOURS[0]
            axes.plot(x, y, mark, color=colour, markersize=6)
            axes.annotate(label, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7)
        handles = [
            axes.plot([], [], mark, color=colour, label=name)[0]
            for mark, colour, name in (("o", COLOURS[0], "closed"), ("s", COLOURS[-1], "trained"))
        ]
        axes.legend(handles=handles, fontsize=8)
        axes.set(
            xlabel="forgotten: 1 - accuracy on forgotten cells", ylabel="accuracy on kept cells"
        )
        axes.margins(0.12)


def _table(kind: str, rows: Mapping[str, Sequence[Run]], memory: Mapping[str, float]) -> str:
    ideal = _mean(rows["ideal"], "h4") if "ideal" in rows else float("nan")
    h = "H4" if kind == "cell" else "H"
    header = ["method", "Mem", "For", f"{h} ± sd (worst request)", "of the ideal",
              "worst kept cell", "seconds", "MiB", "images"]  # fmt: skip
    lines = []
    for label, some in rows.items():
        bound = label in ("untouched", "ideal")
        worst = min(_mean(one, "h4") for one in _grouped(some, "number").values())
        lines.append(
            [
                label,
                f"{_mean(some, 'kept'):.3f}",
                f"{1 - _mean(some, 'forgotten'):.3f}",
                f"{_mean(some, 'h4'):.3f} ± {_sd(some):.3f} ({worst:.3f})",
                f"{_mean(some, 'h4') / ideal:.0%}",
                f"{_mean(some, 'worst_kept'):.2f}",
                "" if bound else f"{_mean(some, 'seconds'):#.3g}".rstrip("."),
                f"{memory[label]:.0f}" if label in memory else "",
                "" if bound else f"{_mean(some, 'images'):.0f}",
            ]
        )
    if kind != "domain":  # these ran while other things did, so their times say nothing
        place = header.index("seconds")
        for row in (header, *lines):
            del row[place]
    return markdown(header, lines)


def _by_request(rows: Mapping[str, Sequence[Run]], domains: Sequence[str]) -> str:
    numbers = range(len(domains))
    header = ["method", *domains]
    lines = []
    for label, some in rows.items():
        cells = []
        for number in numbers:
            values = [run["h4"] for run in some if run["number"] == number]
            sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{sd}" if values else "")
        lines.append([label, *cells])
    return markdown(header, lines)


def _ablation(rows: Mapping[str, Sequence[Run]]) -> str:
    header = ["parts", "Mem", "For", "H ± sd", "H in the paper (Office-Home, %)"]
    lines = [
        [
            name,
            f"{_mean(rows[label], 'kept'):.3f}",
            f"{1 - _mean(rows[label], 'forgotten'):.3f}",
            f"{_mean(rows[label], 'h4'):.3f} ± {_sd(rows[label]):.3f}",
            f"{PAPER[name]:.2f}",
        ]
        for label, name in ABLATION.items()
        if label in rows
    ]
    return markdown(header, lines)


def _beside(again: Sequence[Run], runs: Sequence[Run], order: Sequence[str]) -> str:
    names = {"domain": "sketch", "global": "car", "cell": "car in sketch"}
    asked = [(run["kind"], run["number"]) for run in again]
    lines = []
    for label in ["retrained", *order]:
        cells = []
        for kind, number in asked:
            some = [
                run
                for run in runs
                if (run["label"], run["kind"], run["number"]) == (label, kind, number)
            ]
            cells.append(
                f"{_mean(some, 'kept'):.3f}, {1 - _mean(some, 'forgotten'):.3f}, "
                f"{_mean(some, 'h4'):.3f}"
                if some
                else ""
            )
        if any(cells):
            lines.append([label, *cells])
    return markdown(["", *(names[kind] for kind, _ in asked)], lines)


def _chosen(folder: Path) -> str:
    header = ["row", "kind", "requests", "numbers", "Mem", "For", "H", "seconds"]
    lines = []
    for path in sorted(folder.glob("*")):
        runs = [json.loads(file.read_text()) for file in sorted(path.glob("*.json"))]
        for kind, some in _grouped(runs, "kind").items():
            said = ", ".join(f"{key}={value}" for key, value in some[0]["numbers"])
            which = ", ".join(str(run["number"] + 1) for run in some)
            figures = [_mean(some, "kept"), 1 - _mean(some, "forgotten"), _mean(some, "h4")]
            lines.append(
                [some[0]["label"], kind, which, said, *(f"{value:.3f}" for value in figures),
                 f"{_mean(some, 'seconds'):.0f}"]
            )  # fmt: skip
    return markdown(header, lines)


def _grouped(runs: Sequence[Run], key: str) -> dict[Any, list[Run]]:
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(run[key], []).append(run)
    return found


def _mean(runs: Sequence[Run], key: str) -> float:
    """Mean over requests of the mean over draws."""
    by_request = _grouped(runs, "number").values()
    return statistics.fmean(statistics.fmean(run[key] for run in some) for some in by_request)


def _sd(runs: Sequence[Run]) -> float:
    """Standard deviation over draws of the mean over requests; 0 where there is one draw."""
    means = [_mean(some, "h4") for some in _grouped(runs, "seed").values()]
    same = len({tuple(sorted(r["number"] for r in s)) for s in _grouped(runs, "seed").values()})
    return statistics.stdev(means) if len(means) > 1 and same == 1 else 0.0
