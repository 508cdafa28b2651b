"""Synthesised pictures: what the model takes each cell for."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from nullspace_unlearn.report.page.blocks import Part, Picture, Section, Table, number
from nullspace_unlearn.report.page.runs import Run
from nullspace_unlearn.report.prototypes import FACTS, SHEET

_WIDEST = 1400
"""Pixels of a sheet on a page; a larger one is made smaller, so that the page stays light."""


def part(run: Run) -> Part:
    """What `nsu prototypes` wrote.

    Args:
        run: Its folder.

    Raises:
        ValueError: If it is malformed; also KeyError, TypeError and AttributeError.
    """
    cells = run.said[FACTS]["cells"]
    rows = tuple(
        (one["class"], one["domain"], number(one["pictures"]), number(one["reached"]),
         number(one["cosine"]))
        for one in cells
    )  # fmt: skip
    heads = ("class", "domain", "pictures", "taken for their cell", "cosine to the prompt")
    uri, size = _embedded(run.folder / SHEET)
    names = ", ".join(dict.fromkeys(one["class"] for one in cells))
    says = f"A contact sheet, classes down and domains across, of {names}"
    sheet = Picture("Made from the model alone; no image was used.", says, uri, size)
    table = Table("pictures", "What became of each cell", heads, rows, folded=len(rows) > 12)
    return Part(run.name, "synthesised prototypes", (Section("Pictures", (sheet, table)),))


def _embedded(file: Path) -> tuple[str, tuple[int, int]]:
    """A picture decoded and written anew, so that nothing else of the file reaches the page."""
    try:
        with Image.open(file, formats=("PNG",)) as found:
            image = found.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{str(file)!r} is no PNG picture: {error}") from None
    image.thumbnail((_WIDEST, 4 * _WIDEST))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode(), image.size
