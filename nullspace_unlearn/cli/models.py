"""`nsu models`: which families can be edited, and whether a given model can."""

from __future__ import annotations

from dataclasses import asdict

import click

from nullspace_unlearn.cli import options


@click.command()
@click.option("--model", help="Look at this model instead of listing the families.")
@click.option("--pretrained", help="Tag or weights file, for an open_clip name.")
@options.device_options
@options.output_options
def models(
    model: str | None,
    pretrained: str | None,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """List the model families and where they keep their final projections."""
    if model is not None:
        from nullspace_unlearn.clip import describe

        clip = options.load_model(model, pretrained, device, precision)
        sides = describe(clip.model)
        if as_json:
            options.print_json({"model": model, "sides": sides})
        elif not quiet:
            for side, found in sides.items():
                click.echo(f"{side}: " + _sentence(found))
        return

    from nullspace_unlearn.clip import FAMILIES

    if as_json:
        options.print_json({"families": [asdict(family) for family in FAMILIES]})
        return
    for family in () if quiet else FAMILIES:
        click.echo(f"{family.name} ({', '.join(family.examples)})")
        click.echo(f"    visual  {family.visual or 'none: edit the text side'}")
        click.echo(f"    text    {family.text or 'none: edit the visual side'}")


def _sentence(found: dict[str, object] | None) -> str:
    if found is None:
        return "cannot be edited"
    bias = f", bias {found['bias']}" if found["bias"] else ""
    if not found["stored"]:
        return f"can be edited: the edit adds {found['key']} [{found['dim']} x {found['dim']}]"
    mlp = f"; --space mlp: {found['mlp']}" if found["mlp"] else ""
    return f"can be edited: {found['key']} [{found['width']} -> {found['dim']}]{bias}{mlp}"
