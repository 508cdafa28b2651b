"""`write_page`: from the folders of runs to a page, and to its tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.files import new_file, refuse_replacing
from nullspace_unlearn.report.page import audited, benched, edited, pictured, swept
from nullspace_unlearn.report.page.blocks import Part
from nullspace_unlearn.report.page.compared import section
from nullspace_unlearn.report.page.render import check_page, page
from nullspace_unlearn.report.page.runs import Kind, Run, read_run
from nullspace_unlearn.report.page.tables import check_replaceable, write_tables

_PARTS: Mapping[Kind, Callable[[Run], Part]] = {
    "edited": edited.part,
    "audit": audited.part,
    "sweep": swept.part,
    "bench": benched.part,
    "pictures": pictured.part,
}

_MARK = b'<meta name="generator" content="nullspace-unlearn '


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        parts: What the page says of each run.
        tables: Names of the files of the folder of tables.
    """

    parts: tuple[Part, ...]
    tables: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        runs = [
            {
                "name": part.title,
                "what": part.what,
                "verdict": part.verdict.word if part.verdict else None,
            }
            for part in self.parts
        ]
        return {"runs": runs, "tables": list(self.tables)}


def write_page(
    runs: Sequence[str | Path],
    output: str | Path,
    tables: str | Path | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a page of what runs wrote; nothing is measured anew.

    Args:
        runs: Folders of `nsu erase`, `train`, `audit`, `sweep`, `bench` or `prototypes`, in the
            order in which the page shows them; several are compared too.
        output: The HTML file to write.
        tables: A folder to write every table (CSV, LaTeX) and plot (PNG, SVG) to.
        overwrite: Whether existing outputs may be replaced.

    Returns:
        What was written.

    Raises:
        OutputExists: If an output exists and `overwrite` is false.
        ValueError: If a folder is no run's, or a file in it is malformed, which is named; or jinja2
            or matplotlib is not installed.
    """
    if not runs:
        raise ValueError("there is no run to report on: give at least one folder")
    check_page()
    refuse_replacing(Path(output), overwrite, _MARK, "page of a report")
    if tables is not None:
        check_replaceable(Path(tables))
    read = [read_run(run) for run in runs]
    parts = tuple(map(_part, read))
    beside = section(read, parts) if len(parts) > 1 else None
    text = page(parts, beside)
    files: tuple[str, ...] = ()
    with new_file(Path(output), overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if tables is not None:
            files = write_tables(parts, beside, Path(tables), overwrite)
    return Written(parts, files)


def _part(run: Run) -> Part:
    try:
        return _PARTS[run.kind](run)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        said = " ".join(missing.split())
        raise ValueError(f"{str(run.folder)!r} cannot be reported on: {said}") from None
