"""`nsu revert`: bring the original weights back, bit for bit."""

from __future__ import annotations

import click

from nullspace_unlearn.cli import options


@click.command()
@click.argument("folder")
@click.argument("undo")
@click.option("--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@options.output_options
def revert(
    folder: str, undo: str, output: str, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    """Restore the model that FOLDER was made from, with the UNDO file of erase --undo."""
    from nullspace_unlearn.clip import revert as restore

    options.claim(overwrite, output)
    restored = restore(folder, undo, output, overwrite)
    if as_json:
        options.print_json({"output": str(restored)})
    elif not quiet:
        click.echo(f"Restored {restored}")
