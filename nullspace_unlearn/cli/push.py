"""`nsu push`: a model folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.spelling import printable


@click.command()
@click.argument("folder")
@click.argument("repository")
@click.option("--yes", is_flag=True, help="Upload; absent: say what would be uploaded.")
@click.option("--private", is_flag=True, help="Where the repository is new, make it private.")
@options.output_options
def push(
    folder: str, repository: str, yes: bool, private: bool, as_json: bool, quiet: bool
) -> None:
    """Upload a model FOLDER, with its card, to REPOSITORY (ORG/NAME) on the Hugging Face Hub.

    Says which files that are and what the card says, and uploads nothing before --yes. The login is
    the hub's own: hf auth login.
    """
    from nullspace_unlearn.clip.push import upload, what_goes

    goes = what_goes(Path(folder), repository)
    address = upload(goes, private) if yes else None
    if as_json:
        files = {name: size for name, size in goes.files}
        options.print_json(
            {"repository": repository, "files": files, "card": goes.card, "uploaded": address}
        )
    elif not quiet:
        for name, size in goes.files:
            click.echo(f"{size:>14,}  {printable(name)}")
        total = sum(size for _, size in goes.files)
        click.echo(f"{total:>14,}  bytes in {len(goes.files)} files\n\nThe card says:\n")
        click.echo("\n".join(f"    {printable(line)}" for line in goes.card.splitlines()))
        done = f"Uploaded to {address}" if yes else "Nothing was uploaded: --yes does it"
        click.echo(f"\n{done}")
