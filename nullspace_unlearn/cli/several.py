"""`nsu erase --recipe`: several requests, one edit, one folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import DataOptions
from nullspace_unlearn.cli.judge import JudgeOptions
from nullspace_unlearn.cli.options import ModelOptions
from nullspace_unlearn.cli.outputs import OutputOptions
from nullspace_unlearn.cli.request import RequestOptions
from nullspace_unlearn.cli.visual import VisualOptions

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.evaluate.compare import Comparison


def run(
    file: str,
    which: ModelOptions,
    request: RequestOptions,
    visual: VisualOptions,
    data: DataOptions,
    judge: JudgeOptions,
    files: OutputOptions,
    patch: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Carry a recipe out, show what it did, write the folder."""
    if request.cells.class_ or request.cells.domain or request.cells.all_classes:
        raise ValueError("--recipe says what to forget: leave out --class, --domain, or it")
    if files.output is None or files.heatmap or judge.fail_if or visual.images:
        raise ValueError(
            "--recipe needs --output, and goes without --heatmap, --fail-if and --images"
        )
    target = Path(files.output)
    files.claim(target, patch)

    from nullspace_unlearn.evaluate.verdict import in_words
    from nullspace_unlearn.patch import check_patch
    from nullspace_unlearn.patching import make_patch
    from nullspace_unlearn.recipe import composed, read_recipe

    if patch is not None:
        check_patch(Path(patch), files.overwrite)

    recipe = read_recipe(file)
    found, silent = data.find({}, which.name), quiet or as_json
    cache = options.use_text_cache(visual.cache, visual.no_cache)
    started = time.perf_counter()
    clip = which.load()
    steps = list(recipe.steps(clip, visual.looks(None, data.batch_size, cache, silent)))
    edited = steps[-1].edited
    edit = None if patch is None else composed(steps)
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "edits": [dict(edit) for edit in edited.edits],
        "parameter": edited.changed,
    }
    comparison = None
    if found is not None:
        comparison = _compare(clip, edited, *data.embed((clip, edited), found, silent))
        result |= {"data": found.name, **comparison.to_json(), **in_words(comparison)}
    result |= options.made_by(edited)
    edited.save(target, files.overwrite, undo=files.undo, report=result)
    if patch is not None and edit is not None:
        make_patch(clip, edit, steps[0].side, result).save(patch, files.overwrite)
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
    loading = edited.source.layout.loading(str(target))
    return "\n".join([*lines, "", f"Wrote {target} ({loading})"])
