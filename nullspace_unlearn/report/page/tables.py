"""Every table of a page as CSV and LaTeX, and every plot as PNG and SVG, in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nullspace_unlearn.files import new_folder
from nullspace_unlearn.report.page.blocks import (
    Cell,
    Drawing,
    HeatMap,
    Number,
    Part,
    Section,
    Table,
)
from nullspace_unlearn.report.tidy import write_csv

INDEX = "index.csv"
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "\n": " ",
}  # fmt: skip


def write_tables(
    parts: Sequence[Part], beside: Section | None, folder: Path, overwrite: bool = False
) -> tuple[str, ...]:
    """Write what a page holds as files.

    Args:
        parts: What each run says.
        beside: What they say side by side, if they do.
        folder: The folder to write; index.csv in it says what each file is.
        overwrite: Whether an existing one, which `check_replaceable` allows, may be replaced.

    Returns:
        The names of the files.

    Raises:
        OutputExists: If the folder exists and `overwrite` is false.
        ValueError: If a plot cannot be drawn.
    """
    index: list[dict[str, str]] = []
    with new_folder(folder, overwrite) as below:

        def add(name: str, of: str, title: str) -> Path:
            index.append({"file": name, "run": of, "title": title})
            return below / name

        for of, stem, block in _named(parts, beside):
            table = block.table() if isinstance(block, HeatMap) else (
                block if isinstance(block, Table) else block.table
            )  # fmt: skip
            if table is not None:
                _write_csv(table, add(f"{stem}.csv", of, table.title))
                text = latex(table)
                add(f"{stem}.tex", of, table.title).write_text(text, encoding="utf-8")
            if not isinstance(block, Table):
                for ending in (".png", ".svg"):
                    block.draw(add(stem + ending, of, block.title))
        write_csv(index, ("file", "run", "title"), below / INDEX)
    return tuple(row["file"] for row in index)


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that no report wrote.

    Args:
        folder: The folder that is to be written.

    Raises:
        ValueError: If it holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / INDEX).is_file():
        raise ValueError(f"output {str(folder)!r} is no folder of a report's tables, so it is not "
                         "replaced")  # fmt: skip


def latex(table: Table) -> str:
    """A table as LaTeX, for the booktabs package; numbers as a reader sees them.

    Args:
        table: The table.
    """
    numeric = [any(isinstance(row[i], Number) for row in table.rows)
               for i in range(len(table.heads))]  # fmt: skip
    lines = [
        f"% {' '.join(table.title.split())}",
        f"\\begin{{tabular}}{{{''.join('r' if one else 'l' for one in numeric)}}}",
        "\\toprule",
        " & ".join(map(_latex, table.heads)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(_latex, row)) + " \\\\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _named(
    parts: Sequence[Part], beside: Section | None
) -> Iterator[tuple[str, str, Table | HeatMap | Drawing]]:
    """Every block that is a file, with its run and a stem of its own."""
    taken: set[str] = set()
    several = len(parts) > 1
    sections = [("", "", beside)] if beside else []
    for part in parts:
        slug = f"{_slug(part.title)}-" if several else ""
        sections += [(part.title, slug, section) for section in part.sections]
    for of, slug, section in sections:
        for block in section.blocks:
            if isinstance(block, Table | HeatMap | Drawing):
                stem = unique = slug + _slug(block.name)
                number = 1
                while unique.casefold() in taken:
                    number += 1
                    unique = f"{stem}-{number}"
                taken.add(unique.casefold())
                yield of, unique, block


def _write_csv(table: Table, path: Path) -> None:
    # Heads may be alike ("±"), and rows are told by name: a number is added to the later ones.
    names: list[str] = []
    for head in table.heads:
        names.append(head if head not in names else f"{head} {len(names) + 1}")
    rows = (
        {name: _plain(cell) for name, cell in zip(names, row, strict=True)} for row in table.rows
    )
    write_csv(rows, names, path)


def _plain(cell: Cell) -> str | float | None:
    return cell.value if isinstance(cell, Number) else cell


def _latex(cell: Cell) -> str:
    text = cell.text if isinstance(cell, Number) else cell
    return "".join(_LATEX.get(c, c) for c in text)


def _slug(text: str) -> str:
    return re.sub(r"[^\w=-]+", "-", text).strip("-.").encode()[:60].decode(errors="ignore") or "_"
