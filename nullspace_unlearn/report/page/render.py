"""The page itself: blocks into HTML, every text of which is escaped by the template engine."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from nullspace_unlearn.report.page import colours
from nullspace_unlearn.report.page.blocks import Drawing, HeatMap, Part, Section, number
from nullspace_unlearn.report.page.drawn import inline
from nullspace_unlearn.report.text import shortened
from nullspace_unlearn.version import __version__

MOST_ROWS = 40
"""Classes beyond which a heat map opens on request, and those that matter most stand above it."""

MOST_CELLS = 20_000
"""Cells beyond which a heat map shows no others at all: a browser would no longer scroll."""

_LEGEND = (-1.0, -0.5, -0.25, -0.1, -0.05, 0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
_NAME, _LONG = 60, 300
_MAPS = ("before", "after", "change")


@dataclass(frozen=True)
class Shown:
    """A cell of a heat map as the template writes it."""

    shade: str
    value: str
    text: str
    images: int
    gone: bool


def check_page() -> None:
    """Refuse to write a page where it cannot be, before any work is spent on it.

    Raises:
        ValueError: If jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "a page needs jinja2 and matplotlib: pip install 'nullspace-unlearn[report]'"
        ) from None


def page(parts: Sequence[Part], beside: Section | None = None) -> str:
    """Write a page.

    Args:
        parts: What each run says.
        beside: What they say side by side, if they do.

    Returns:
        HTML that needs nothing else.

    Raises:
        ValueError: If jinja2 or matplotlib is not installed, or a plot cannot be drawn.
    """
    check_page()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=PackageLoader("nullspace_unlearn.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _source(templates, "page.js")
    style = _source(templates, "page.css")
    style += _themes()
    keys = count(1)
    with tempfile.TemporaryDirectory() as folder:

        def draw(drawing: Drawing) -> Markup:
            return Markup(inline(drawing, Path(folder), f"d{next(keys)}"))

        templates.globals.update(
            draw=draw,
            rows_of=rows_of,
            legend=[_shown(value, 2, 0, False) for value in _LEGEND],
            most_rows=MOST_ROWS,
            most_cells=MOST_CELLS,
            unique=lambda: f"b{next(keys)}",
        )
        templates.filters |= {
            "name": lambda text: shortened(text, _NAME),
            "long": lambda text: shortened(text, _LONG),
        }
        return (
            templates.get_template("page.html")
            .render(
                parts=parts,
                beside=beside,
                title=_title(parts),
                style=Markup(style),
                script=Markup(script),
                script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
                version=__version__,
            )
            .lstrip()
        )


def rows_of(heat: HeatMap, some: Sequence[int] | None = None) -> Iterator[tuple[str, list[Shown]]]:
    """Rows of a heat map: before, after and change of every domain.

    Args:
        heat: The map.
        some: The rows; None: all.

    Yields:
        The class and its cells.
    """
    for c in range(len(heat.classes)) if some is None else some:
        cells = []
        for which in range(len(_MAPS)):
            for d in range(len(heat.domains)):
                value = (heat.before[c][d], heat.after[c][d], heat.change(c, d))[which]
                cells.append(_shown(value, which, heat.count[c][d], heat.mask[c][d]))
        yield heat.classes[c], cells


def _shown(value: float | None, which: int, images: int, gone: bool) -> Shown:
    if value is None:
        return Shown("n", "", "–", images, gone)
    number(value)
    if which < 2:
        return Shown(colours.share_step(value), repr(value), f"{value:.2f}", images, gone)
    text = f"{value:+.2f}".replace("-", "−")
    text = "0" if text in ("+0.00", "−0.00") else text
    return Shown(colours.change_step(value), repr(value), text, images, gone)


def _title(parts: Sequence[Part]) -> str:
    headlines = dict.fromkeys(part.headline for part in parts if part.headline)
    if len(headlines) == 1:
        return f"Forgetting {shortened(next(iter(headlines)), 80)}"
    return " and ".join(shortened(part.title, 40) for part in parts[:3]) + (
        f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    )


def _source(templates: object, name: str) -> str:
    loader = templates.loader  # type: ignore[attr-defined]
    return str(loader.get_source(templates, name)[0])


def _themes() -> str:
    """Shades of cells: dark ones on a dark screen, light ones elsewhere and on paper."""
    dark = colours.rules("dark")
    return f"{colours.rules('light')}@media screen and (prefers-color-scheme:dark){{{dark}}}"
