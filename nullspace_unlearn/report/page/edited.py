"""An edited or trained model: what was asked, whether it is forgotten, what that cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nullspace_unlearn.certificate import SCOPE
from nullspace_unlearn.clip.card import asked_for, limits
from nullspace_unlearn.clip.hugging_face import layout_of
from nullspace_unlearn.clip.source import ADAPTER_NAME, RECIPE_NAME, REPORT_NAME
from nullspace_unlearn.evaluate.asking import ALL, LISTS, way_of
from nullspace_unlearn.evaluate.figures import FIGURES, FORGOTTEN
from nullspace_unlearn.evaluate.zeroshot import grid_of
from nullspace_unlearn.fingerprint import file_sha256
from nullspace_unlearn.history import History
from nullspace_unlearn.report.bench_plots import Point, left_against_cost
from nullspace_unlearn.report.lines import line_plot
from nullspace_unlearn.report.page.blocks import (
    Block,
    Drawing,
    Facts,
    HeatMap,
    Listing,
    Number,
    Part,
    Section,
    Table,
    Tiles,
    Verdict,
    Words,
    ends,
    number,
    tone_of,
)
from nullspace_unlearn.report.page.runs import Run
from nullspace_unlearn.strict import yaml_text

UNTOUCHED = Point("untouched", 1.0, 0.0, bound=True)
"""All is left and nothing is paid."""

_MOST_PAID = 15
_MOST_NAMES = 60


def part(run: Run) -> Part:
    """What the folder of `nsu erase` or `nsu train` says.

    Args:
        run: The folder.

    Raises:
        ValueError: If a file in it is malformed; also KeyError, TypeError and AttributeError.
    """
    recipe, report = run.said.get(RECIPE_NAME), run.said.get(REPORT_NAME, {})
    history = History.from_json(recipe or {"edits": []})
    found = report if "figures" in report else report.get("predicted", {})
    sections = [Section("What was asked", tuple(_asked(history, report)))]
    points: tuple[tuple[str, Point], ...] = ()
    if found:
        guessed = found is not report
        sections.append(Section("Is it forgotten?", tuple(_verdict(found, guessed))))
        sections.append(Section("Class by class", (_heat(found), *_paid(found))))
        sections.append(Section("By lists of every length", tuple(_lists(found))))
        if point := _point(run.name, found):
            points = ((_kind(history), point),)
            sections.append(Section("The plane", (plane([point]),)))
        sections.append(Section("Every figure", tuple(_figures(found))))
    else:
        words = Words("Nothing was measured: give nsu erase --data, or nsu evaluate the folder.")
        sections.append(Section("Is it forgotten?", (words,)))
    sections.append(Section("The edit", tuple(_edit(history, report))))
    if "certificate" in report:
        sections.append(Section("The certificate", tuple(_proof(report["certificate"]))))
    if history.edits:
        sections.append(Section("What is not claimed", (Words(limits(history)),)))
    sections.append(Section("How to make it again", tuple(_made(run, history, recipe, report))))
    trained = any(edit.get("trained") for edit in history.edits)
    what = "a trained model" if trained else "an edited model"
    return Part(run.name, what, tuple(sections), _headline(history), _first(found), points)


def plane(points: Sequence[Point], name: str = "plane") -> Drawing:
    """What is left against what it cost.

    Args:
        points: The models; the untouched one joins them.
        name: The drawing's.
    """
    all_ = [UNTOUCHED, *(one for one in points if not one.bound)]
    rows = [
        (one.label, number(one.left, "left"), ends(one.left_ends, "left"),
         number(one.cost, "cost"), ends(one.cost_ends, "cost"), "yes" if one.over else "no")
        for one in all_
    ]  # fmt: skip
    heads = ("model", "left", "between", "cost", "between", "over-forgotten")
    return Drawing(
        name,
        "What is left, against what it cost",
        "Each model as a point: across, how much the name still tells; up, points of accuracy "
        "lost on what stays. The best lie at the lower left. Hollow: over-forgotten.",
        partial(left_against_cost, all_, ""),
        Table(name, "The same in numbers", heads, tuple(rows), folded=True),
    )


def request_words(classes: Sequence[str], domains: Sequence[str]) -> str:
    """A request in a few words, without aliases.

    Args:
        classes: Names; empty: every class.
        domains: Domains; empty: everywhere.
    """
    where = f"in {', '.join(domains)}" if domains else "everywhere"
    return f"{', '.join(classes) or 'every class'} {where}"


def _headline(history: History) -> str:
    asked = [request_words(one.classes, one.domains) for one in history.requests]
    return asked[0] if len(asked) == 1 else f"{len(asked)} requests"


def _kind(history: History) -> str:
    kinds = {one.paradigm for one in history.requests}
    return kinds.pop() if len(kinds) == 1 else ""


def _first(found: Mapping[str, Any]) -> Verdict | None:
    if not found:
        return None
    return Verdict(found["verdict"], tone_of(found["verdict"]), found["sentence"])


def _asked(history: History, report: Mapping[str, Any]) -> list[Block]:
    model = " ".join(filter(None, (history.model, history.pretrained))) or "unknown"
    items = [("model", model, False)]
    items += [("to forget", asked_for(one), False) for one in history.requests[:_MOST_NAMES]]
    if "data" in report:
        items.append(("measured on", str(report["data"] or "images"), False))
        images = report["images"]
        told = f"{images['forgotten']:,} of what was to be forgotten, {images['others']:,} of "
        told += f"others in its place, {images['kept']:,} of what stays"
        items.append(("images", told, False))
    if report.get("left_out"):
        items.append(("left out", f"{report['left_out']} images the edit was made of", False))
    blocks: list[Block] = [Facts(tuple(items))]
    if kept := history.kept:
        blocks.append(Listing(f"The {len(kept):,} names that stay", "\n".join(kept)))
    return blocks


def _verdict(found: Mapping[str, Any], guessed: bool) -> list[Block]:
    after, both = found["figures"]["after"], found.get("intervals", {})
    aims = {
        "left": f"forgotten: at most {FORGOTTEN:g}",
        "over": f"forgotten: at most {FORGOTTEN:g}",
        "cost": "points of accuracy on what stays",
    }
    tiles = tuple(
        (FIGURES[name].title, number(after[name], name), ends(both.get(name), name), aim)
        for name, aim in aims.items()
    )
    blocks: list[Block] = [Tiles(tiles)]
    if guessed:
        blocks.insert(0, Words("Predicted, no image seen: prototypes stand in place of images."))
    blocks.append(
        Words(
            "Left is how much of what the untouched model's name says of an image is still said, "
            "in the way of asking that finds most; over is how far the name is got less often "
            "than on other images, which tells as much. Beneath: 95 % intervals over images."
        )
    )
    return blocks


def _heat(found: Mapping[str, Any]) -> HeatMap:
    before, after = found["before"], found["after"]
    classes, domains = tuple(before["classes"]), tuple(before["domains"])
    shapes = [grid_of(one).count.shape for one in (before, after)]  # and that they are grids
    mask = found["forgotten"]
    if any(shape != (len(classes), len(domains)) for shape in shapes) or len(mask) != len(classes):
        raise ValueError("its grids and names are not of one shape")
    map_ = HeatMap(
        "cells", "Accuracy of every class in every domain", classes, domains,
        before["accuracy"], after["accuracy"], before["count"], mask,
    )  # fmt: skip
    return map_.led()


def _paid(found: Mapping[str, Any]) -> list[Block]:
    heat = _heat(found)
    losses = heat.losses()
    if not losses:
        return [Words("No cell that stays lost accuracy.")]
    rows = tuple(
        (heat.classes[c], heat.domains[d], number(heat.before[c][d]), number(heat.after[c][d]),
         number(heat.change(c, d)), number(heat.count[c][d]))
        for c, d in losses[:_MOST_PAID]
    )  # fmt: skip
    heads = ("class", "domain", "before", "after", "change", "images")
    more = len(losses) - len(rows)
    note = f"{more:,} more cells lost less." if more else ""
    return [Table("paid", "Who paid: cells that stay and lost most", heads, rows, note)]


def _lists(found: Mapping[str, Any]) -> list[Block]:
    figures = found["figures"]
    ways = {way_of(length): str(length) for length in LISTS} | {ALL: "all"}
    shown = [way for way in ways if figures["before"].get(way) is not None]
    lines = {
        name: [figures[which][way] for way in shown]
        for name, which in (("original", "before"), ("edited", "after"), ("chance", "chance"))
    }
    both = found.get("intervals", {})
    rows = tuple(
        (ways[way], *(number(line[i], way) for line in lines.values()), ends(both.get(way), way))
        for i, way in enumerate(shown)
    )
    heads = ("names on the list", "original", "edited", "chance", "95 % of edited")
    table = Table("lists", "The same in numbers", heads, rows, folded=True)
    blocks: list[Block] = []
    if shown:
        blocks.append(
            Drawing(
                "lists",
                "How often its images get the forgotten name",
                "Lines over the length of the list: the original model, the edited one, and "
                "chance, which is what a name that says nothing scores. Forgotten: edited lies on "
                "chance.",
                partial(
                    line_plot, [ways[way] for way in shown], lines, "names on the list",
                    "images that get the name",
                ),
                table,
            )
        )  # fmt: skip
    if len(by := found.get("by_class", {})) > 1:
        blocks.append(_by_class(by))
    return blocks or [Words("No list could be asked.")]


def _by_class(by: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = tuple(
        (name, FIGURES[way].title, *(number(told[which], way) for which in told),
         number(one["images"]))
        for name, one in by.items()
        for way, told in one.items()
        if way in FIGURES
    )  # fmt: skip
    heads = ("class", "asked by", "before", "after", "chance", "images")
    return Table("classes", "Each forgotten class by itself", heads, rows, folded=len(rows) > 40)


def _point(name: str, found: Mapping[str, Any]) -> Point | None:
    after, both = found["figures"]["after"], found.get("intervals", {})
    if after["left"] is None or after["cost"] is None:
        return None
    left, cost = (tuple(both[key]) if key in both else None for key in ("left", "cost"))
    over = (after["over"] or 0.0) > FORGOTTEN
    return Point(name, after["left"], after["cost"], left, cost, over)


def _figures(found: Mapping[str, Any]) -> list[Block]:
    both, figures = found.get("intervals", {}), found["figures"]
    rows = tuple(
        (
            row["title"],
            *(number(figures[which][row["name"]], row["name"]) for which in ("before", "after")),
            ends(both.get(row["name"]), row["name"]),
            number(figures["chance"][row["name"]], row["name"]),
            row["good"],
            number(row["images"]),
        )
        for row in found["table"]
    )
    heads = ("figure", "before", "after", "95 %", "chance", "good", "images")
    means = "\n".join(f"{row['title']}: {row['meaning']}." for row in found["table"])
    return [Table("figures", "Before and after", heads, rows), Listing("What they mean", means)]


def _edit(history: History, report: Mapping[str, Any]) -> list[Block]:
    items: list[tuple[str, str, bool]] = []
    for edit in history.edits:
        keys = edit.get("parameter")
        keys = keys if isinstance(keys, list) else [keys]
        numbers = edit.get("numbers") or {}
        items.append(("method", " ".join(filter(None, (str(edit.get("method", "edit")),
                      f"({edit['paper']})" if edit.get("paper") else ""))), False))  # fmt: skip
        items.append(("tensors", ", ".join(map(str, keys[:4])), True))
        if len(keys) > 4:
            items.append(("and", f"{len(keys) - 4} more tensors", False))
        for key, value in {"strength": edit.get("strength"), **numbers}.items():
            if value is not None:
                shown = f"{value:.4g}" if isinstance(value, float) else str(value)
                items.append((key, shown, False))
    blocks: list[Block] = [Facts(tuple(items))] if items else []
    spectrum = report.get("spectrum")
    if spectrum:
        rows = tuple((str(i), number(value)) for i, value in enumerate(spectrum, 1))
        table = Table("spectrum", "The same in numbers", ("direction", "size"), rows, folded=True)
        if len(rows) == 1:
            blocks.append(Table("spectrum", "Rank 1", table.heads, rows))
        else:
            blocks.append(
                Drawing(
                    "spectrum",
                    f"The spectrum: rank {len(rows)}",
                    "Singular values of the update, the largest first.",
                    partial(
                        line_plot, list(range(1, len(rows) + 1)), {"edit": spectrum}, "direction",
                        "singular value", share=False,
                    ),
                    table,
                )
            )  # fmt: skip
    return blocks


def _proof(proof: Mapping[str, Any]) -> list[Block]:
    holds = proof["holds"] is True
    worst = number(proof["largest_violation"]).value
    said = f"Largest violation {worst:.1e}, smallest room {proof['smallest_room']:.2g}. {SCOPE}"
    said += " nsu certify computes it again from the weights."
    word = "holds" if holds else "does not hold"
    rows = tuple(
        (name, Number(value, f"{number(value).value:.1e}"), str(proof["means"][name]))
        for name, value in proof["violation"].items()
    )
    table = Table("certificate", "Name by name", ("name", "violation", "what is proven"), rows)
    return [Verdict(word, "good" if holds else "bad", said), table]


def _made(
    run: Run,
    history: History,
    recipe: Mapping[str, Any] | None,
    report: Mapping[str, Any],
) -> list[Block]:
    items: list[tuple[str, str, bool]] = []
    if "command" in report:
        items.append(("command", str(report["command"]), True))
    items += [(str(k), str(v), False) for k, v in report.get("versions", {}).items()]
    if history.weights_sha256:
        items.append(("sha256 of the original weights", history.weights_sha256, True))
    layout = layout_of(run.folder)
    for name in (ADAPTER_NAME, *([] if layout is None else [layout.weights])):
        if (file := run.folder / name).is_file():
            items.append((f"sha256 of {name}", file_sha256(file), True))
    blocks: list[Block] = [Facts(tuple(items))] if items else []
    if recipe is not None:
        blocks.append(Listing(f"What {RECIPE_NAME} holds", yaml_text(dict(recipe))))
    return blocks
