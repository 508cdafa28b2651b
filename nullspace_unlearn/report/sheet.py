"""A contact sheet of synthesised pictures: classes down, domains across, a cell's side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nullspace_unlearn.prototypes import Pictures
from nullspace_unlearn.report.text import columns, padded, shortened

MOST_CLASSES, MOST_DOMAINS, MOST_EACH = 40, 12, 8
"""Beyond these a sheet is cut, and says so."""

_WIDTH = 2400  # pixels that the pictures of a row may take together
_LARGEST = 112  # of a picture's side; small ones are enlarged to it
_GAP, _CELL_GAP, _MARGIN = 3, 14, 24
_TEXT, _SMALL = 17, 14
_PAPER, _INK, _FAINT, _FRAME = "#FFFFFF", "#1A1A1A", "#6B6B6B", "#C4C4C4"
_MISSED = "#D55E00"
"""Vermilion of Okabe and Ito, as in the heatmaps; a corner is filled too: it needs no colour."""


def contact_sheet(pictures: Pictures) -> Image.Image:
    """Draw the pictures of a synthesis on one sheet of bounded size.

    Pictures that the model does not take for their own cell are framed, with a corner filled.

    Args:
        pictures: Equally many of each cell, in the order of classes, domains, samples.

    Returns:
        An RGB image of at most about 3,000 x 5,000 pixels. Where pictures were left out, a line at
        its foot says how many.
    """
    classes, domains = pictures.features.class_names, pictures.features.domain_names
    each = len(pictures.images) // (len(classes) * len(domains))
    shape = (len(classes), len(domains), each)
    rows, columns, samples = map(min, shape, (MOST_CLASSES, MOST_DOMAINS, MOST_EACH))
    images = pictures.images.unflatten(0, shape)[:rows, :columns, :samples]
    reached = pictures.reached.reshape(shape)[:rows, :columns, :samples]

    side = min(_LARGEST, _WIDTH // (columns * samples))
    shrink = side / max(images.shape[-2:])
    height, width = (max(1, round(n * shrink)) for n in images.shape[-2:])
    font, small = (ImageFont.load_default(size) for size in (_TEXT, _SMALL))
    names = [shortened(name, 24) for name in classes[:rows]]
    left = _MARGIN + round(max(map(font.getlength, names))) + _CELL_GAP
    # A narrow cell's head is cut to it.
    cell_width = samples * (width + _GAP) - _GAP
    heads = [_fitting(shortened(name, 24), font, cell_width) for name in domains[:columns]]
    notes = _notes(shape, (rows, columns, samples), bool(reached.all()))
    top = _MARGIN + _TEXT + _CELL_GAP
    foot = top + rows * (height + _CELL_GAP)
    text_width = max(map(small.getlength, notes))
    sheet = Image.new(
        "RGB",
        (
            round(max(left + columns * (cell_width + _CELL_GAP), _MARGIN + text_width)) + _MARGIN,
            foot + len(notes) * (_SMALL + 8) + _MARGIN,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for d, head in enumerate(heads):
        middle = left + d * (cell_width + _CELL_GAP) + cell_width / 2
        draw.text((middle, _MARGIN), head, _INK, font, anchor="ma")
    for c, name in enumerate(names):
        y = top + c * (height + _CELL_GAP)
        draw.text((left - _CELL_GAP, y + height / 2), name, _INK, font, anchor="rm")
        for d in range(columns):
            for s in range(samples):
                x = left + d * (cell_width + _CELL_GAP) + s * (width + _GAP)
                sheet.paste(_thumbnail(images[c, d, s], width, height), (x, y))
                _frame(draw, x, y, width, height, bool(reached[c, d, s]))
    for i, note in enumerate(notes):
        draw.text((_MARGIN, foot + i * (_SMALL + 8)), note, _FAINT, small)
    return sheet


def cell_lines(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What became of each cell, a line for a terminal.

    Args:
        cells: For each its "class", "domain", number of "pictures", how many of them "reached" it,
            and their mean "cosine" with its text prototype.

    Returns:
        As many lines, aligned.
    """
    names = [[shortened(cell[what], 24) for what in ("class", "domain")] for cell in cells]
    wide = [max(map(columns, column)) for column in zip(*names, strict=True)]
    return [
        f"{padded(name, wide[0])}  {padded(domain, wide[1])}  cosine {cell['cosine']:.3f}  "
        f"reached {cell['reached']} of {cell['pictures']}"
        for (name, domain), cell in zip(names, cells, strict=True)
    ]


def _thumbnail(image: UInt8[Tensor, "3 rows columns"], width: int, height: int) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _frame(
    draw: ImageDraw.ImageDraw, x: int, y: int, width: int, height: int, reached: bool
) -> None:
    box = (x - 1, y - 1, x + width, y + height)
    if reached:
        draw.rectangle(box, outline=_FRAME)  # or near-white pictures would have no edge
        return
    draw.rectangle(box, outline=_MISSED, width=3)
    corner = max(8, width // 5)
    right = x + width
    draw.polygon([(right - corner, y - 1), (right, y - 1), (right, y - 1 + corner)], fill=_MISSED)


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(name) <= width:
        return name
    while len(name) > 1 and font.getlength(name + "..") > width:
        name = name[:-1]
    return name + ".."


def _notes(all_: Sequence[int], shown: Sequence[int], reached: bool) -> list[str]:
    notes = ["for the model to see: to the eye, still the noise and scribbles they began as"]
    if not reached:
        notes.append("filled corner: the model takes the picture for another cell")
    whats = ("classes", "domains", "pictures of each cell")
    cut = [
        f"{few} of {many} {what}"
        for few, many, what in zip(shown, all_, whats, strict=True)
        if few < many
    ]
    if cut:
        notes.append("shown: the first " + ", ".join(cut))
    return notes
