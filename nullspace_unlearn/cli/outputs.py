"""What a command that edits a model writes, as options: --output, --undo, --heatmap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli import options

if TYPE_CHECKING:
    from nullspace_unlearn.evaluate.compare import Comparison


@dataclass(frozen=True)
class OutputOptions:
    """The options of `output_files`, as given."""

    output: str | None
    overwrite: bool
    undo: str | None
    heatmap: str | None

    def target(self, default: str) -> Path:
        """The folder to write.

        Args:
            default: Its name where none is given.
        """
        return Path(self.output or default)

    def claim(self, target: Path, *others: str | None, working: Path | None = None) -> None:
        """Refuse outputs before any work is spent (`options.claim`).

        Args:
            target: From `target`.
            *others: What else the command writes.
            working: Where it keeps what it needs to go on.

        Raises:
            ValueError: If one exists, or cannot be written.
        """
        options.claim(self.overwrite, target, self.undo, self.heatmap, *others, working=working)
        if self.undo is not None:
            from nullspace_unlearn.clip.folder import check_undo

            check_undo(Path(self.undo), self.overwrite)

    def check_heatmap(self, measured: bool) -> None:
        """Refuse --heatmap where it cannot be drawn.

        Args:
            measured: Whether there are images to measure on.

        Raises:
            ValueError: If there are none, or the file cannot be such a picture.
        """
        from nullspace_unlearn.report.picture import check_picture

        if self.heatmap is None:
            return
        if not measured:
            raise ValueError("--heatmap draws accuracies: give --data")
        check_picture(self.heatmap)

    def draw(self, found: Comparison | None) -> None:
        """Draw the grids before and after, where they are asked for.

        Args:
            found: What was measured.
        """
        from nullspace_unlearn.report.plots import grid_heatmap

        if self.heatmap and found is not None:
            grids = (found.before, found.after, found.mask, found.classes, found.domains)
            grid_heatmap(*grids, self.heatmap, self.overwrite)


output_files = options.gathered(
    "files",
    OutputOptions,
    click.option(
        "--output", metavar="DIR", help="Folder to write; absent: named after the request."
    ),
    click.option("--overwrite", is_flag=True, help="Replace an existing output."),
    click.option(
        "--undo", metavar="FILE", help="Also write what brings the original back, elsewhere."
    ),
    click.option("--heatmap", metavar="PNG", help="Also draw the grids before and after."),
)
