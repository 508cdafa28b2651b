"""`nsu inspect`: what an edit would touch, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.request import RequestOptions, request_options
from nullspace_unlearn.cli.visual import VisualOptions, visual_options


@click.command()
@options.model_options
@request_options
@visual_options
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Names to show.")
@options.device_options
@options.output_options
def inspect(
    model: str,
    pretrained: str | None,
    request: RequestOptions,
    visual: VisualOptions,
    top: int,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show the nearest names, what the edit would change, its spectrum, rank and parameter.

    Where a domain is named, pictures are made for it as `nsu erase` makes them (and kept for it);
    --prototypes text shows what prompts alone would do.
    """
    from nullspace_unlearn import unlearn
    from nullspace_unlearn.edit import DEEPER
    from nullspace_unlearn.inspection import inspection

    request = visual.request(request)
    request.forget()  # what contradicts itself need not wait for the model
    shown = visual.find(request.domain_words(), {}, quiet or as_json)
    kept = options.use_text_cache(visual.cache, visual.no_cache)
    clip = options.load_model(model, pretrained, device, precision)
    projection = clip.projection(request.side)
    looks = visual.looks(shown, 64, kept, quiet or as_json)
    plan = request.plan(clip, shown, looks.shows)
    looks = looks.reading(clip, plan)
    seen = looks.make(clip, plan, looks.drawn(plan))
    edit = unlearn.erase(
        clip, plan, strength=request.strength, numbers=request.numbers, visual=seen,
        space=looks.space,
    )  # fmt: skip
    parameter, shape = projection.key, [projection.width, projection.dim]
    if edit.space in DEEPER:
        inner = clip.inner(edit.space)
        parameter, shape = inner.key, list(inner.sizes)
    result = {
        **edit.provenance,
        "side": plan.side,
        "parameter": parameter,
        "shape": shape,
        **inspection(clip, plan, edit, seen, top),
    }
    if as_json:
        options.print_json(result)
    elif not quiet:
        click.echo(_report(result, top))


def _report(result: Mapping[str, Any], top: int) -> str:
    numbers = ", ".join(f"{name} {value:g}" for name, value in result["numbers"].items()
                        if isinstance(value, int | float))  # fmt: skip
    width, dim = result["shape"]
    lines = [
        f"{result['method']} on {result['parameter']} [{width} -> {dim}], {result['side']} side",
        f"chosen: {numbers}",
    ]
    if result["nearest"]:
        names = (f"{one['name']} {one['cosine']:.3f}" for one in result["nearest"])
        lines.append("nearest kept names (cosine): " + ", ".join(names))
    if result["near_synonyms_not_kept"]:
        lines.append(
            "near-synonyms that would go too: " + ", ".join(result["near_synonyms_not_kept"])
        )
    what = "|t' - t|" if result["space"] == "embedding" else "of images, |z' - z|/|z|"
    lines.append(
        f"change {what}: forgotten {result['change_of_forgotten']:.3f}, kept on average "
        f"{result['mean_change_of_kept']:.4f}, most: "
        + ", ".join(f"{one['name']} {one['change']:.3f}" for one in result["most_changed"])
    )
    shown = ", ".join(f"{value:.3f}" for value in result["spectrum"][:top])
    lines.append(f"singular values of the forgotten prototypes: {shown}")
    return "\n".join(lines)
