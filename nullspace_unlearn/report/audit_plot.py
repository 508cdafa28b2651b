"""What an audit found, a line a figure: the edited model beside the untouched one and chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nullspace_unlearn.audit.question import COLUMNS, Answer, Question
from nullspace_unlearn.report.picture import COLOURS, MARKS, picture
from nullspace_unlearn.report.text import shortened


def audit_plot(
    answers: Sequence[tuple[Question, Answer]], path: str | Path, overwrite: bool = False
) -> None:
    """Draw every finding that lies between 0 and 1.

    Args:
        answers: Questions and answers.
        path: The picture to write; its ending, one of `picture.FORMATS`, says the format.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If matplotlib is not installed, the ending is another, or no answer has such a
            finding.
    """
    rows = [
        (f"{question.title}: {finding.title}", finding)
        for question, answer in answers
        for finding in answer.findings
        if all(value is None or 0 <= value <= 1 for value in finding.values.values())
    ]
    if not rows:
        raise ValueError("the audit has no figures to draw")
    with picture(path, (8, 1.2 + 0.24 * len(rows)), overwrite) as figure:
        ax = figure.subplots()
        for model, colour, mark in zip(COLUMNS, COLOURS, MARKS, strict=False):
            at = [
                (value, row)
                for row, (_, finding) in enumerate(rows)
                if (value := finding.values.get(model)) is not None
            ]
            if at:
                across, down = zip(*at, strict=True)
                ax.plot(across, down, mark, color=colour, label=model, alpha=0.8, zorder=3)
        for row, (_, finding) in enumerate(rows):
            if finding.interval is not None:
                ax.hlines(row, *finding.interval, color=COLOURS[0], alpha=0.4, lw=3)
        labels = [shortened(title, 60) for title, _ in rows]
        ax.set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)
        ax.set_xlim(-0.03, 1.03)
        ax.invert_yaxis()
        ax.grid(axis="x", alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.3, 1), ncols=len(COLUMNS), frameon=False)
