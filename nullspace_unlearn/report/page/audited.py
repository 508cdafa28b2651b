"""An audit: each question with its verdict, its figures beside their controls, its curves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from nullspace_unlearn.audit.question import COLUMNS
from nullspace_unlearn.audit.run import FORMAT, RESULT
from nullspace_unlearn.report.lines import line_plot
from nullspace_unlearn.report.page.blocks import (
    Block,
    Drawing,
    Facts,
    Part,
    Section,
    Table,
    Verdict,
    Words,
    ends,
    number,
    tone_of,
)
from nullspace_unlearn.report.page.runs import Run

_CALLED = {"random": "random edit", "retrained": "retrained without it"}


def part(run: Run) -> Part:
    """What `nsu audit` wrote.

    Args:
        run: Its folder.

    Raises:
        ValueError: If it is malformed; also KeyError, TypeError and AttributeError.
    """
    said = run.said[RESULT]
    if said["format"] != FORMAT:
        raise ValueError(f"its format is {said['format']!r}, and {FORMAT} is what is read here")
    asked = said["questions"]
    sections = [Section("What was audited", (_about(said),))]
    rows = tuple((one["title"], one["verdict"], one["sentence"]) for one in asked)
    heads = ("question", "verdict", "what it rests on")
    sections.append(Section("Every verdict", (Table("verdicts", "In short", heads, rows),)))
    sections += [_question(one) for one in asked]
    sections.append(Section("How to make it again", (_made(said),)))
    verdict = said.get("verdict")
    summary = None
    if verdict is not None:
        bad = sum(tone_of(one["verdict"]) not in ("good", "none") for one in asked)
        told = sum(tone_of(one["verdict"]) != "none" for one in asked)
        sentence = f"The worst of {told} answers; {told - bad} of them are good."
        summary = Verdict(verdict, tone_of(verdict), sentence)
    return Part(run.name, "an audit", tuple(sections), said["request"]["words"], summary)


def _about(said: Mapping[str, Any]) -> Facts:
    images = said["images"]
    items = [
        ("to forget", said["request"]["words"], False),
        ("edited model", said["edited"], False),
        ("against", said["original"], False),
    ]
    if said.get("retrained"):
        items.append(("retrained without it", said["retrained"], False))
    items.append(("measured on", str(said["data"]), False))
    items += [("and on", str(name), False) for name in said.get("others", ())]
    counts = f"{images['forgotten']:,} of what was to be forgotten, {images['others']:,} others"
    items.append(("images", counts, False))
    return Facts(tuple(items))


def _question(one: Mapping[str, Any]) -> Section:
    name = one["name"]
    words = one["asks"] + (f"\n\nFrom {one['paper']}." if one["paper"] else "")
    verdict = Verdict(one["verdict"], tone_of(one["verdict"]), one["sentence"])
    blocks: list[Block] = [Words(words)]
    if one["findings"]:
        blocks.append(_findings(name, one["findings"]))
    blocks += [_curve(name, curve) for curve in one["curves"]]
    if one["rows"]:
        blocks.append(_rows(name, one["rows"]))
    return Section(one["title"], tuple(blocks), verdict)


def _findings(name: str, findings: list[Mapping[str, Any]]) -> Table:
    shown = [model for model in COLUMNS if any(model in one["values"] for one in findings)]
    rows = tuple(
        (
            one["title"],
            *(number(one["values"].get(model), one["name"]) for model in shown),
            ends(one["interval"], one["name"]),
            one["good"],
            number(one["images"]),
        )
        for one in findings
    )
    heads = ("figure", *(_CALLED.get(model, model) for model in shown), "95 % of edited", "good",
             "images")  # fmt: skip
    return Table(name, "Figures", heads, rows)


def _curve(name: str, curve: Mapping[str, Any]) -> Drawing:
    lines = {_CALLED.get(key, key): list(line) for key, line in curve["lines"].items()}
    x = list(curve["x"])
    heights = [number(y).value for line in lines.values() for y in line]
    share = all(0 <= one <= 1 for one in heights if one is not None)
    rows = tuple(
        (f"{place:g}", *(number(line[i]) for line in lines.values())) for i, place in enumerate(x)
    )
    table = Table(f"{name}-{curve['name']}", "The same in numbers", (curve["x_title"], *lines),
                  rows, folded=True)  # fmt: skip
    return Drawing(
        table.name,
        curve["title"],
        f"{curve['title']}: lines over {curve['x_title']}, of {', '.join(lines)}.",
        partial(line_plot, x, lines, curve["x_title"], curve.get("y_title", ""), share=share),
        table,
    )


def _rows(name: str, rows: list[Mapping[str, Any]]) -> Table:
    shown = ["value"] + [key for key in ("original", "chance")
                         if any(one.get(key) is not None for one in rows)]  # fmt: skip
    kinds = any(one.get("kind") for one in rows)
    heads = ("which", *(("kind",) if kinds else ()),
             *("edited" if key == "value" else key for key in shown))  # fmt: skip
    cells = tuple(
        (one["text"], *((str(one.get("kind", "")),) if kinds else ()),
         *(number(one.get(key)) for key in shown))
        for one in rows
    )  # fmt: skip
    return Table(f"{name}-tried", "One by one, the worst first", heads, cells)


def _made(said: Mapping[str, Any]) -> Facts:
    items = [("command", said["command"], True)]
    items += [(str(key), str(value), False) for key, value in said["versions"].items()]
    items += [(f"hash of {key}", str(value), True) for key, value in said["hashes"].items()]
    return Facts(tuple(items))
