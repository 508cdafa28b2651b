"""`nsu erase --recipe`: several requests, one edit, one folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import DataOptions
from nullspace_unlearn.cli.visual import VisualOptions

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.evaluate.compare import Comparison
    from nullspace_unlearn.recipe import EditRecipe


def erase_several(
    clip: Clip, recipe: EditRecipe, visual: VisualOptions, batch_size: int, quiet: bool
) -> Clip:
    """Meet the requests of a recipe one after another.

    Args:
        clip: The model.
        recipe: The requests.
        visual: What prototypes are made of, where the recipe does not say.
        batch_size: Images per forward pass.
        quiet: Whether to leave out progress bars.

    Returns:
        The edited model; its history holds every request.

    Raises:
        ValueError: If the recipe is for other weights, or a request cannot be met, which is named.
    """
    from nullspace_unlearn.unlearn import erase

    recipe.check_made_for(clip)
    for number, entry in enumerate(recipe.edits, 1):
        own = replace(visual, space=entry.space)
        if entry.prototypes != "auto":
            own = replace(own, prototypes=entry.prototypes)
        try:
            plan = entry.plan(clip, own.shows)
            own = own.reading(clip, plan, None)
            edit = erase(
                clip, plan, strength=entry.strength, numbers=entry.numbers, space=own.space,
                visual=own.make(clip, plan, None, batch_size, quiet),
            )  # fmt: skip
            clip = edit.fold(clip, plan.side)
        except ValueError as error:
            raise ValueError(f"request {number} of the recipe: {error}") from None
    return clip


def run(
    file: str,
    model: str,
    pretrained: str | None,
    visual: VisualOptions,
    data: DataOptions,
    target: Path,
    overwrite: bool,
    undo: str | None,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Carry a recipe out, show what it did, write the folder."""
    from nullspace_unlearn.recipe import read_recipe

    recipe = read_recipe(file)
    found, silent = data.find({}, model), quiet or as_json
    options.use_text_cache(visual.cache, visual.no_cache)
    started = time.perf_counter()
    clip = options.load_model(model, pretrained, device, precision)
    edited = erase_several(clip, recipe, visual, data.batch_size, silent)
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "edits": [dict(edit) for edit in edited.edits],
        "parameter": [change.key for change in edited.changes],
    }
    comparison = None
    if found is not None:
        comparison = _compare(clip, edited, *(data.embed(c, found, silent) for c in (clip, edited)))
        result |= comparison.to_json()
    edited.save(target, overwrite, undo=undo, report=result)
    if as_json:
        options.print_json({**result, "seconds": seconds, "output": str(target)})
    elif not quiet:
        click.echo(_report(edited, comparison, seconds, target))


def _compare(clip: Clip, edited: Clip, before: Any, after: Any) -> Comparison:
    """What all requests together did, and those before them."""
    from nullspace_unlearn.evaluate.compare import EVERYWHERE, classifier, compared
    from nullspace_unlearn.words import Words

    templates = (clip.words or Words()).class_templates
    mask = edited.history.forgotten(before.class_names, before.domain_names or EVERYWHERE)
    if not mask.any():
        raise ValueError("the data has none of the classes and domains that the recipe forgets")
    models = [
        (features.embeddings, classifier(some, features, templates))
        for some, features in ((clip, before), (edited, after))
    ]
    return compared(before, mask, models[0], models[1])


def _report(edited: Clip, comparison: Comparison | None, seconds: float, target: Path) -> str:
    from nullspace_unlearn.cli.shown import comparison_lines

    lines = []
    for edit in edited.edits:
        request = edit["request"]
        what = ", ".join(request["classes"]) or "every class"
        where = f" in {', '.join(request['domains'])}" if request["domains"] else " everywhere"
        rank = edit["numbers"].get("rank", "?")
        lines.append(f"Forgot {what}{where} with {edit['method']} (rank {rank}).")
    lines.append(f"{len(edited.edits)} requests in {seconds:.1f} s.")
    if comparison is not None:
        methods = ", ".join(dict.fromkeys(str(edit["method"]) for edit in edited.edits))
        lines += ["", *comparison_lines(comparison, methods)]
    return "\n".join([*lines, "", f"Wrote {target} (load it as local-dir:{target})"])
