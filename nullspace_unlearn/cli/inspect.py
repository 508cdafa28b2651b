"""`nsu inspect`: what an edit would touch, before anything is written."""

from __future__ import annotations

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.request import RequestOptions, request_options


@click.command()
@options.model_options
@request_options
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Names to show.")
@options.cache_options
@options.device_options
@options.output_options
def inspect(
    model: str,
    pretrained: str | None,
    request: RequestOptions,
    top: int,
    cache: str | None,
    no_cache: bool,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show the nearest names, what the edit would change, its spectrum, rank and parameter."""
    import torch

    from nullspace_unlearn import unlearn

    request.forget()  # what contradicts itself need not wait for the model
    request.domain_words()
    options.use_text_cache(cache, no_cache)
    clip = options.load_model(model, pretrained, device, precision)
    parameter = clip.projection(request.side)
    plan = request.plan(clip, None)
    edit = unlearn.erase(clip, plan, strength=request.strength, numbers=request.numbers)
    cosine = (plan.keep_rows @ plan.forget_rows.mT).amax(-1)
    order = cosine.argsort(descending=True)[:top].tolist() if plan.forget.classes else []
    # |t' - t| for unit t: how far a name's own prototype is moved, as its scores see it.
    moved = (plan.keep_rows @ edit.write @ edit.read.mT).norm(dim=-1)
    moved_forgotten = (plan.forget_rows @ edit.write @ edit.read.mT).norm(dim=-1)
    most = moved.argsort(descending=True)[:top].tolist()
    result = {
        **edit.provenance,
        "side": plan.side,
        "parameter": parameter.key,
        "shape": [parameter.width, parameter.dim],
        "nearest": [{"name": plan.keep[i], "cosine": float(cosine[i])} for i in order],
        "change_of_forgotten": float(moved_forgotten.mean()),
        "most_changed": [{"name": plan.keep[i], "change": float(moved[i])} for i in most],
        "mean_change_of_kept": float(moved.mean()),
        "spectrum": torch.linalg.svdvals(plan.forget_rows).tolist(),
        "operator_singular_values": torch.linalg.svdvals(edit.read @ edit.write.mT)[
            : edit.rank
        ].tolist(),
    }
    if as_json:
        options.print_json(result)
        return
    numbers = ", ".join(f"{name} {value:g}" for name, value in result["numbers"].items()
                        if isinstance(value, int | float))  # fmt: skip
    lines = [
        f"{plan.method} on {parameter.key} [{parameter.width} -> {parameter.dim}], "
        f"{plan.side} side",
        f"chosen: {numbers}",
    ]
    if order:
        names = (f"{plan.keep[i]} {float(cosine[i]):.3f}" for i in order)
        lines.append("nearest kept names (cosine): " + ", ".join(names))
    if plan.synonyms:
        lines.append("near-synonyms that would go too: " + ", ".join(plan.synonyms))
    lines.append(
        f"change |t' - t|: forgotten {float(moved_forgotten.mean()):.3f}, kept on average "
        f"{float(moved.mean()):.4f}, most: "
        + ", ".join(f"{plan.keep[i]} {float(moved[i]):.3f}" for i in most)
    )
    shown = ", ".join(f"{value:.3f}" for value in result["spectrum"][:top])
    lines.append(f"singular values of the forgotten prototypes: {shown}")
    if not quiet:
        click.echo("\n".join(lines))
