"""Tables and the picture of what benchmarks/trained.py has run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _tables
from _peers import CLOSED, WORLDS, Peer
from _tables import markdown

from nullspace_unlearn.evaluate.figures import FIGURES
from nullspace_unlearn.report.picture import COLOURS, picture

Run = dict[str, Any]

TITLES = {
    "domain": "One whole domain, every domain in turn",
    "cell": "One class in one domain, two cells",
}
DOMAINS = {
    "bundled": ("photo", "sketch", "painting", "cartoon"),
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
}
SHOWN = ("left", "over", "cost", "kept", "kept_search", "worst_kept", "balance")
SAW = (
    "Trained rows saw 8 images a cell and 4 for validation (the epoch that is kept, by "
    "balance, and the strength of the soup), with labels; none is reported on. "
    "Closed forms use their defaults: pixels are pictures made from the model alone, 8 images "
    "those that the trained rows saw, text prompts. Figures as in docs/figures.md, means over "
    "the requests, in brackets the worst of them; the last columns say how many requests were "
    "run, and on how many draws of images. Seconds of one thread on a machine busy with other "
    "runs: they compare rows only roughly. On at most 25 images a cell."
)
CHOSEN = (
    "Every peer has the numbers of the best balance among those tried when the first whole "
    "domain goes, from a draw of its own, reported on further images that no table uses "
    "(bundled pictures on other seeds, training images of PACS). Cells are measured with the "
    "same numbers. Runs of the search that were kept:"
)
RETRAINED = (
    "nsu-mini trained from scratch on all pictures but those of the request, with the same "
    "seed and numbers (`train_mini.py`, `trained.py retrained`): what it is to have truly "
    "never seen a thing."
)


def one_line(numbers: Iterable[tuple[str, str]], found: Sequence[Run]) -> str:
    """What some numbers of a method give on the images that numbers are chosen on."""
    said = ",".join(f"{key}={value}" for key, value in numbers)
    figures = " ".join(
        f"{key} {_written(found, key)}" for key in ("balance", "left", "over", "cost")
    )
    return f"{said or 'defaults'}: {figures}, {_mean(found, 'seconds'):.0f} s"


def write_all(world: str, work: Path, peers: Mapping[str, Peer]) -> None:
    """Write results/trained-<world>.md and .json and draw docs/images/trained-<world>.png."""
    runs = [json.loads(path.read_text()) for path in sorted((work / world).glob("*/*.json"))]
    parts = [f"{WORLDS[world]}.", SAW]
    for kind, title in TITLES.items():
        order = ("untouched", "retrained", *CLOSED, *peers)
        rows = {
            label: some
            for label in order
            if (some := [run for run in runs if run["label"] == label and run["kind"] == kind])
        }
        if len(rows) < 3:
            continue
        parts += [f"## {title}", _table(rows)]
        if kind == "domain":
            domains = DOMAINS.get(world, DOMAINS["pacs"])
            parts += ["### left / over / cost of each domain", _by_request(rows, domains)]
            draw(rows, Path(__file__).parents[1] / "docs" / "images" / f"trained-{world}.png")
            parts += [f"![left and cost](../../docs/images/trained-{world}.png)"]
    if any(run["label"] == "retrained" for run in runs):
        parts += [RETRAINED]
    parts += ["## How the numbers were chosen", CHOSEN, _chosen(work / f"{world}-chosen")]
    parts += ["Numbers in use, and what they were chosen among:", _numbers(peers)]
    name = f"trained-{world}"
    made = f"Made by `python benchmarks/trained.py run {world}` and `table`."
    text = "\n\n".join([f"# Trained methods, {world}", made, *parts])
    (_tables.RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (_tables.RESULTS / f"{name}.json").write_text(
        json.dumps(_tables.rounded({"runs": runs}), ensure_ascii=False) + "\n", encoding="utf-8"
    )


def draw(rows: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Every method in the plane: what is left, or told by over, against what it costs."""
    with picture(path, (6.4, 4.2), overwrite=True) as figure:
        axes = figure.subplots()
        costs = [statistics.fmean(run["cost"] for run in some) for some in rows.values()]
        for x, (label, some) in zip(costs, rows.items(), strict=True):
            y = statistics.fmean(max(run["left"], run["over"]) for run in some)
            mark, colour = "s", COLOURS[-1]
            if label in ("untouched", "retrained"):
                mark, colour = "*", "black"
            elif label in CLOSED:
                mark, colour = "o", COLOURS[0]
            axes.plot(x, y, mark, color=colour, markersize=6)
            # The outermost would run over the frame.
            aside, to = ((-5, 3), "right") if x > 0.8 * max(costs) else ((5, 3), "left")
            axes.annotate(
                label, (x, y), xytext=aside, textcoords="offset points", fontsize=7, ha=to
            )
        handles = [
            axes.plot([], [], mark, color=colour, label=name)[0]
            for mark, colour, name in (("o", COLOURS[0], "closed"), ("s", COLOURS[-1], "trained"))
        ]
        axes.legend(handles=handles, fontsize=8)
        axes.set(xlabel="cost: points of accuracy lost on what stays")
        axes.set_ylabel("left or over, whichever is more")
        axes.margins(0.12)


def _table(rows: Mapping[str, Sequence[Run]]) -> str:
    header = [
        "method",
        *(FIGURES[key].title for key in SHOWN),
        "seconds",
        "images",
        "requests",
        "draws",
    ]
    lines = []
    for label, some in rows.items():
        made = label not in ("untouched", "retrained")
        lines.append(
            [
                label,
                *(_written(some, key, worst=key in SHOWN[:3]) for key in SHOWN),
                f"{_mean(some, 'seconds'):#.3g}".rstrip(".") if made else "",
                f"{_mean(some, 'images'):.0f}" if made else "",
                str(len({run["number"] for run in some})),
                str(len({run["seed"] for run in some})),
            ]
        )
    return markdown(header, lines)


def _by_request(rows: Mapping[str, Sequence[Run]], domains: Sequence[str]) -> str:
    lines = []
    for label, some in rows.items():
        cells = []
        for number in range(len(domains)):
            found = [run for run in some if run["number"] == number]
            said = " / ".join(_written(found, key) for key in ("left", "over", "cost"))
            cells.append(said if found else "")
        lines.append([label, *cells])
    return markdown(["method", *domains], lines)


def _chosen(folder: Path) -> str:
    lines = []
    for path in sorted(folder.glob("*")):
        runs = [json.loads(file.read_text()) for file in sorted(path.glob("*.json"))]
        said = ", ".join(f"{key}={value}" for key, value in runs[0]["numbers"])
        figures = [_written(runs, key) for key in ("balance", "left", "over", "cost")]
        lines.append([runs[0]["label"], said, *figures])
    return markdown(["row", "numbers", "balance", "left", "over", "cost"], lines)


def _numbers(peers: Mapping[str, Peer]) -> str:
    lines = [
        [label, ", ".join(f"{k}={v:g}" for k, v in peer.numbers.items()), peer.tried]
        for label, peer in peers.items()
    ]
    return markdown(["row", "numbers", "chosen among"], lines)


def _written(runs: Sequence[Run], key: str, worst: bool = False) -> str:
    values = [run[key] for run in runs if run.get(key) is not None]
    if not values:
        return "-"
    mean = FIGURES[key].written(_mean(runs, key))
    return f"{mean} ({FIGURES[key].written(max(values))})" if worst and len(values) > 1 else mean


def _mean(runs: Sequence[Run], key: str) -> float:
    """Mean over requests of the mean over draws."""
    by_request: dict[Any, list[float]] = {}
    for run in runs:
        if run.get(key) is not None:
            by_request.setdefault(run["number"], []).append(run[key])
    return statistics.fmean(statistics.fmean(some) for some in by_request.values())
