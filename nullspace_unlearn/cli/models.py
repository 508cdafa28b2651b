"""`nsu models`: which families can be edited, and whether a given model can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli import completion, options

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Layout


@click.command()
@click.option(
    "--model",
    shell_complete=completion.models,
    help="Look at this model instead of listing the families.",
)
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
        layout = clip.source.layout
        sides = {
            side: None if found is None or side not in layout.sides else _named(found, layout)
            for side, found in describe(clip.model).items()
        }
        if as_json:
            options.print_json({"model": model, "sides": sides})
        elif not quiet:
            for side, found in sides.items():
                click.echo(f"{side}: " + side_in_words(found))
        return

    from nullspace_unlearn.clip import FAMILIES

    if as_json:
        names = ("name", "examples", "visual", "text", "pooled")
        rows = [{name: getattr(family, name) for name in names} for family in FAMILIES]
        options.print_json({"families": rows})
        return
    for family in () if quiet else FAMILIES:
        click.echo(f"{family.name} ({', '.join(family.examples)})")
        added = " (an edit adds it: the tower ends in attention pooling)" if family.pooled else ""
        click.echo(f"    visual  {family.visual}{added}")
        click.echo(f"    text    {family.text or 'none (the tower ends in a layer norm)'}")


def _named(found: dict[str, object], layout: Layout) -> dict[str, object]:
    """The same by the names that the model's folder has for its tensors."""
    from nullspace_unlearn.edit import DEEPER

    keys = [key for key in ("key", "bias", *DEEPER) if isinstance(found[key], str)]
    return found | {key: layout.names([str(found[key])])[0] for key in keys}


def side_in_words(found: dict[str, object] | None) -> str:
    """What of a tower can be edited, in a sentence.

    Args:
        found: What `clip.describe` says of the side.
    """
    from nullspace_unlearn.edit import DEEPER

    if found is None:
        return "cannot be edited"
    bias = f", bias {found['bias']}" if found["bias"] else ""
    if not found["stored"]:
        return f"can be edited: the edit adds {found['key']} [{found['dim']} x {found['dim']}]"
    deeper = "".join(f"; --space {space}: {found[space]}" for space in DEEPER if found[space])
    return f"can be edited: {found['key']} [{found['width']} -> {found['dim']}]{bias}{deeper}"
