"""Grids before and after an edit, as pictures and as text; the course of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.evaluate.zeroshot import Grid
from nullspace_unlearn.report.picture import COLOURS, MARKS, picture
from nullspace_unlearn.report.text import columns, padded, shortened

_COLOURS = "cividis"
"""Reads the same with every kind of colour blindness, and in grey."""

_OUTLINE = COLOURS[-1]
"""Vermilion, which stands out from blue and from yellow."""

_MOST_ROWS = 60
"""Above this many classes, names and numbers would no longer be legible."""


def grid_heatmap(
    before: Grid,
    after: Grid,
    mask: Bool[Tensor, "classes domains"],
    classes: Sequence[str],
    domains: Sequence[str],
    path: str | Path,
    overwrite: bool = False,
) -> None:
    """Draw accuracy before and after an edit side by side, the forgotten cells outlined.

    Args:
        before: Accuracy of the untouched model.
        after: Accuracy of the edited one.
        mask: True where a cell is forgotten.
        classes: Names of the rows.
        domains: Names of the columns.
        path: The picture to write; its ending, one of `picture.FORMATS`, says the format.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If matplotlib is not installed, the ending is another, or the shapes differ.
    """
    _check(before, after, mask, classes, domains)
    rows, columns = mask.shape
    legible = rows <= _MOST_ROWS
    size = (2 * (1.2 + 0.75 * columns) + 1.2, 1.5 + (0.36 * rows if legible else 9))
    with picture(path, size, overwrite) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        image: Any = None
        for ax, title, grid in zip(axes, ("before", "after"), (before, after), strict=True):
            shown = grid.accuracy.masked_fill(grid.count == 0, float("nan")).numpy()
            image = ax.imshow(shown, vmin=0, vmax=1, cmap=_COLOURS, aspect="auto", rasterized=True)
            ax.set_facecolor("0.85")
            ax.set_title(title)
            ax.set_xticks(
                range(columns),
                [shortened(name, 24) for name in domains],
                rotation=30,
                ha="right",
                rotation_mode="anchor",
                parse_math=False,
            )
            ax.tick_params(length=0)
            if legible:
                ax.set_yticks(
                    range(rows), [shortened(name, 24) for name in classes], parse_math=False
                )
                _write_values(ax, grid)
            else:
                ax.set_ylabel(f"{rows} classes")
            _outline(ax, mask)
        figure.colorbar(image, ax=axes, label="accuracy", shrink=0.8)
        figure.supxlabel("outlined: to be forgotten", fontsize=9, color=_OUTLINE)


def _write_values(ax: Any, grid: Grid) -> None:
    for (c, d), value in np.ndenumerate(grid.accuracy.numpy()):
        there = bool(grid.count[c, d])
        ax.text(
            d,
            c,
            f"{value:.2f}" if there else "none",
            ha="center",
            va="center",
            color="w" if there and value < 0.5 else "k",
            fontsize=9,
        )


def _outline(ax: Any, mask: Tensor) -> None:
    from matplotlib.patches import Rectangle

    for c, d in mask.nonzero().tolist():
        # Clipped, or below the frame, half of it would be lost at the grid's edge.
        box = Rectangle((d - 0.5, c - 0.5), 1, 1, fill=False, ec=_OUTLINE, lw=2.5, zorder=3)
        box.set_clip_on(False)
        ax.add_patch(box)


def grid_table(
    before: Grid,
    after: Grid | None,
    mask: Bool[Tensor, "classes domains"] | None,
    classes: Sequence[str],
    domains: Sequence[str],
    width: int = 100,
) -> str:
    """Accuracy before and after an edit as plain text, forgotten cells marked with a `*`.

    Args:
        before: Accuracy of the untouched model.
        after: Accuracy of the edited one; without it, one accuracy a cell is shown.
        mask: True where a cell is forgotten, if any is.
        classes: Names of the rows.
        domains: Names of the columns; those beyond the width follow in further tables.
        width: Columns of the terminal.

    Returns:
        Lines of at most `width` columns, without a newline at the end. A cell without images shows
        a dash.

    Raises:
        ValueError: If the shapes differ.
    """
    _check(before, after or before, mask, classes, domains)
    names = [shortened(name, 24) for name in classes]
    left = max(map(columns, names), default=0)
    cells = [
        [_cell(before, after, mask, c, d) for d in range(len(domains))] for c in range(len(classes))
    ]
    widest = max((len(cell) for row in cells for cell in row), default=0)
    heads = [shortened(name, max(widest, 14)) for name in domains]
    size = max([widest, *map(columns, heads)])
    per_table = max(1, (width - left) // (size + 2))
    lines: list[str] = []
    for start in range(0, len(domains), per_table):
        part = slice(start, start + per_table)
        if lines:
            lines.append("")
        for name, row in zip(["", *names], [heads, *cells], strict=True):
            line = padded(name, left) + "".join("  " + padded(cell, size) for cell in row[part])
            lines.append(line.rstrip())
    return "\n".join(lines)


def _cell(before: Grid, after: Grid | None, mask: Tensor | None, c: int, d: int) -> str:
    star = "*" if mask is not None and mask[c, d] else ""
    if not before.count[c, d]:
        return "-" + star
    first = f"{before.accuracy[c, d]:.2f}"
    return (first if after is None else f"{first} -> {after.accuracy[c, d]:.2f}") + star


def _check(
    before: Grid,
    after: Grid,
    mask: Tensor | None,
    classes: Sequence[str],
    domains: Sequence[str],
) -> None:
    shapes = {before.count.shape, after.count.shape, (len(classes), len(domains))}
    if mask is not None:
        shapes.add(mask.shape)
    if len(shapes) > 1:
        raise ValueError(
            "grids, mask and names must be of one shape [classes, domains], got "
            + ", ".join(str(list(shape)) for shape in sorted(shapes))
        )


def training_curve(
    log: Sequence[Mapping[str, Any]], path: str | Path, overwrite: bool = False
) -> None:
    """Draw the course of a training: each term of the loss, and the validation scores, by epoch.

    Args:
        log: One entry an epoch, as `train.Trained` holds it: "stage", "loss" by term and, where
            there were validation images, the figures under "validation".
        path: The picture to write; its ending, one of `picture.FORMATS`, says the format.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If matplotlib is not installed, the ending is another, or the log is empty.
    """
    if not log:
        raise ValueError("the log is empty: no epoch has been trained")
    scored = any("validation" in one for one in log)
    losses: dict[str, list[tuple[int, float]]] = {}
    scores: dict[str, list[tuple[int, float]]] = {}
    for epoch, one in enumerate(log, 1):
        for name, value in one["loss"].items():
            losses.setdefault(name, []).append((epoch, value))
        if found := one.get("validation"):
            # Where a class goes in some domains only, h4 is of four groups, not of these two.
            h = "H" if found["same_class"] is None or found["same_domain"] is None else "H4"
            values = {"Mem": found["kept"], "For": 1 - found["forgotten"], h: found["h4"]}
            for name, value in values.items():
                scores.setdefault(name, []).append((epoch, value))
    parts = [("loss", losses), ("on validation images", scores)]
    with picture(path, (5.5 * (1 + scored), 3.6), overwrite) as figure:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots(1, 1 + scored, squeeze=False)[0]
        for ax, (title, lines) in zip(axes, parts, strict=False):
            for number, (name, points) in enumerate(lines.items()):
                mark = MARKS[number % len(MARKS)]
                ax.plot(*zip(*points, strict=True), marker=mark, markersize=3, label=name)
            for epoch, (one, after) in enumerate(zip(log, log[1:], strict=False), 1):
                if one["stage"] != after["stage"]:
                    ax.axvline(epoch + 0.5, color="0.6", linewidth=1, linestyle=":")
            ax.set_title(title)
            ax.set_xlabel("epoch")
            ax.set_xlim(0.5, len(log) + 0.5)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            ax.legend(fontsize=8)
        if scored:
            axes[1].set_ylim(-0.02, 1.02)
