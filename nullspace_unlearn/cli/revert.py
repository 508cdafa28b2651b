"""`nsu revert`: bring the original weights back, bit for bit."""

from __future__ import annotations

import click


@click.command()
@click.argument("folder")
@click.argument("undo")
@click.option("--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
def revert(folder: str, undo: str, output: str, overwrite: bool) -> None:
    """Restore the model that FOLDER was made from, with the UNDO file of erase --undo."""
    from nullspace_unlearn.clip import revert as restore

    click.echo(f"Restored {restore(folder, undo, output, overwrite)}")
