"""`nsu export`: a model folder for another library."""

from __future__ import annotations

from pathlib import Path

import click

from nullspace_unlearn.cli import options


@click.command()
@click.argument("model")
@click.option("--pretrained", help="Tag or weights file, for an open_clip name.")
@click.option(
    "--to",
    required=True,
    metavar="LIBRARY",
    help="open_clip, transformers, sentence-transformers or onnx.",
)
@click.option("--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@options.output_options
def export(
    model: str,
    pretrained: str | None,
    to: str,
    output: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write MODEL, a folder or a name, for another library.

    \b
    nsu export out --to transformers --output out-hf

    The other library itself loads what was written, and its features are compared with the model's:
    where they differ by more than 1e-5, nothing is written.
    """  # noqa: D301
    options.claim(overwrite, output)
    from nullspace_unlearn.clip import export as write

    clip = options.load_model(model, pretrained, "cpu", "fp32")
    written = write(clip, to, Path(output), overwrite)
    if as_json:
        options.print_json({"output": str(written), "to": to})
    elif not quiet:
        click.echo(f"Wrote {written} for {to}: the same features")
