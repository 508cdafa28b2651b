"""What a page is made of, before it is HTML, CSV or LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from nullspace_unlearn.evaluate.figures import FIGURES
from nullspace_unlearn.evaluate.zeroshot import Grid
from nullspace_unlearn.report.bench_plots import Point
from nullspace_unlearn.report.plots import grid_heatmap

Tone = Literal["good", "warn", "bad", "none"]
"""How a verdict is coloured; it always stands in words too."""


@dataclass(frozen=True)
class Number:
    """A figure as it was written, and as a reader sees it.

    Attributes:
        value: As the run wrote it; None where it could not be told.
        text: Rounded.
    """

    value: float | None
    text: str

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise TypeError(f"expected a number, got {str(value)[:60]!r}")
        if value is not None and not math.isfinite(value):
            raise ValueError(f"expected a finite number, got {value}")


def number(value: Any, figure: str | None = None) -> Number:
    """A value as tables show it.

    Args:
        value: The value; None where it could not be told.
        figure: Its name among `evaluate.figures.FIGURES`; absent: to three decimals, or as a count.
    """
    if value is None:
        return Number(None, "-")
    checked = Number(value, "").value
    if figure is not None and figure in FIGURES:
        return Number(checked, FIGURES[figure].written(checked))
    return Number(checked, str(checked) if isinstance(checked, int) else f"{checked:.3f}")


def ends(both: Any, figure: str | None = None) -> str:
    """An interval in words; empty where there is none.

    Args:
        both: The two ends, or None.
        figure: As for `number`.
    """
    if both is None:
        return ""
    low, high = (number(end, figure) for end in both)
    return f"{low.text} to {high.text}"


Cell = str | Number
_FIRST = 24  # rows of a heat map that matter most


@dataclass(frozen=True)
class Table:
    """Rows under heads; the first of each row names it.

    Attributes:
        name: Its file's, without an ending.
        title: What stands above it.
        heads: Of the columns.
        rows: Cells, as many in each as there are heads.
        note: A sentence beneath; empty for none.
        folded: Whether it opens on request.
    """

    kind: ClassVar[str] = "table"
    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]  # cells, which is checked
    note: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(tuple(row) for row in self.rows))
        if any(len(row) != len(self.heads) for row in self.rows):
            raise ValueError(f"table {self.name!r} has rows of other lengths than its head")
        for cell in (cell for row in self.rows for cell in row):
            if not isinstance(cell, Cell):
                raise TypeError(f"expected text or a number, got {str(cell)[:60]!r}")


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Accuracy of each class in each domain before and after, and the difference.

    Attributes:
        name: Its file's, without an ending.
        title: What stands above it.
        classes: Rows.
        domains: Columns.
        before: `[classes][domains]` as the run wrote it, None where there is no image.
        after: The same of the changed model.
        count: Images of each cell.
        mask: Which cells were to be forgotten.
        first: Rows that matter most, shown where all are too many.
        folded: Whether it opens on request.
    """

    kind: ClassVar[str] = "heat"
    name: str
    title: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    before: Sequence[Sequence[float | None]]
    after: Sequence[Sequence[float | None]]
    count: Sequence[Sequence[int]]
    mask: Sequence[Sequence[bool]]
    first: tuple[int, ...] = ()
    folded: bool = False

    def change(self, c: int, d: int) -> float | None:
        """After less before, as exact as the two."""
        was, now = self.before[c][d], self.after[c][d]
        return None if was is None or now is None else now - was

    def losses(self) -> list[tuple[int, int]]:
        """The cells that stay and lost, the largest loss first."""
        lost = [
            (change, c, d)
            for c in range(len(self.classes))
            for d in range(len(self.domains))
            if not self.mask[c][d] and (change := self.change(c, d)) is not None and change < 0
        ]
        return [(c, d) for _, c, d in sorted(lost)]

    def led(self) -> HeatMap:
        """The same, rows that matter most named first: the forgotten ones, then who lost most."""
        every = range(len(self.classes))
        gone = [c for c in every if any(self.mask[c])]
        order = dict.fromkeys([*gone[:_FIRST], *(c for c, _ in self.losses()), *every])
        return replace(self, first=tuple(order)[:_FIRST])

    def table(self) -> Table:
        """One row a cell."""
        rows: list[tuple[Any, ...]] = []
        for c, name in enumerate(self.classes):
            for d, domain in enumerate(self.domains):
                values = (self.before[c][d], self.after[c][d], self.change(c, d))
                gone = "yes" if self.mask[c][d] else "no"
                cells = [*map(number, values), number(self.count[c][d]), gone]
                rows.append((name, domain, *cells))
        heads = ("class", "domain", "before", "after", "change", "images", "to be forgotten")
        return Table(self.name, self.title, heads, tuple(rows))

    def draw(self, path: Path) -> None:
        """As a picture."""
        import torch

        count = torch.tensor(self.count)
        before, after = (
            Grid(torch.tensor([[value or 0.0 for value in row] for row in some]).double(), count)
            for some in (self.before, self.after)
        )
        mask = torch.tensor(self.mask)
        grid_heatmap(before, after, mask, self.classes, self.domains, path)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A plot.

    Attributes:
        name: Its file's, without an ending.
        title: What stands above it.
        says: What it shows, for who cannot see it.
        draw: Writes it to a file of one of `picture.FORMATS`.
        table: Its numbers.
    """

    kind: ClassVar[str] = "drawing"
    name: str
    title: str
    says: str
    draw: Callable[[Path], None]
    table: Table | None = None


@dataclass(frozen=True)
class Picture:
    """A picture made of pixels.

    Attributes:
        title: What stands beneath it.
        says: What it shows, for who cannot see it.
        uri: The picture itself, as a data URI.
        size: Width and height.
    """

    kind: ClassVar[str] = "picture"
    title: str
    says: str
    uri: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """Terms and what is known under them.

    Attributes:
        items: Term, value and whether the value is code.
    """

    kind: ClassVar[str] = "facts"
    items: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Verdict:
    """A verdict, and what it rests on.

    Attributes:
        word: The verdict.
        tone: How it is coloured.
        sentence: What it rests on.
    """

    kind: ClassVar[str] = "verdict"
    word: str
    tone: Tone
    sentence: str

    def __post_init__(self) -> None:
        for text in (self.word, self.sentence):
            if not isinstance(text, str):
                raise TypeError(f"expected text, got {str(text)[:60]!r}")


@dataclass(frozen=True)
class Tiles:
    """The few figures that everything turns on.

    Attributes:
        items: Title, number, interval in words, and what counts as good.
    """

    kind: ClassVar[str] = "tiles"
    items: tuple[tuple[str, Number, str, str], ...]


@dataclass(frozen=True)
class Words:
    """Paragraphs.

    Attributes:
        text: Parted by empty lines.
    """

    kind: ClassVar[str] = "words"
    text: str

    @property
    def paragraphs(self) -> list[str]:
        """One by one."""
        return [" ".join(part.split()) for part in self.text.split("\n\n")]


@dataclass(frozen=True)
class Listing:
    """Text as it stands in a file, opened on request.

    Attributes:
        title: What it is.
        text: The text.
    """

    kind: ClassVar[str] = "listing"
    title: str
    text: str


Block = Table | HeatMap | Drawing | Picture | Facts | Verdict | Tiles | Words | Listing


@dataclass(frozen=True)
class Section:
    """Some blocks under one heading.

    Attributes:
        title: The heading.
        blocks: What stands beneath.
        verdict: A question's verdict, beside the heading.
    """

    title: str
    blocks: tuple[Block, ...]
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Part:
    """All that a page says of one run.

    Attributes:
        title: The run's name.
        what: What kind of run it is, in words.
        sections: What it says.
        headline: What was to be forgotten, in a few words; empty where that is many things.
        verdict: What it comes to, where it comes to one.
        points: What it adds to the plane of what is left and what it cost: kind of request, empty
            where that is not known, and point.
    """

    title: str
    what: str
    sections: tuple[Section, ...]
    headline: str = ""
    verdict: Verdict | None = None
    points: tuple[tuple[str, Point], ...] = ()


def tone_of(verdict: str) -> Tone:
    """How a verdict is coloured.

    Args:
        verdict: As `evaluate.figures` or an audit gives it.
    """
    if verdict in ("forgotten", "kept"):
        return "good"
    if verdict == "not forgotten":
        return "bad"
    return "none" if verdict in ("unknown", "not measured") else "warn"
