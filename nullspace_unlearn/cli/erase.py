"""`nsu erase`: make a model forget, show what that did, write the folder."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options, several
from nullspace_unlearn.cli.data import DataOptions, data_options
from nullspace_unlearn.cli.judge import JudgeOptions, failed, judge_options, stop_if
from nullspace_unlearn.cli.request import (
    RequestOptions,
    default_name,
    request_options,
    warn_of_domains,
)
from nullspace_unlearn.cli.shown import comparison_lines, prediction_lines
from nullspace_unlearn.cli.visual import VisualOptions, visual_options

if TYPE_CHECKING:
    from nullspace_unlearn.evaluate.compare import Comparison
    from nullspace_unlearn.plans import Plan


@click.command()
@options.model_options
@request_options
@visual_options
@data_options
@judge_options
@click.option("--recipe", metavar="FILE", help="Several requests (YAML) in place of one: one edit.")
@click.option("--output", metavar="DIR", help="Folder to write; absent: named after the request.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--undo", metavar="FILE", help="Also write what brings the original back, elsewhere.")
@click.option("--heatmap", metavar="PNG", help="Also draw the grids before and after.")
@options.device_options
@options.output_options
def erase(
    model: str,
    pretrained: str | None,
    request: RequestOptions,
    visual: VisualOptions,
    data: DataOptions,
    judge: JudgeOptions,
    recipe: str | None,
    output: str | None,
    overwrite: bool,
    undo: str | None,
    heatmap: str | None,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Forget a class everywhere, a class in some domains, or whole domains.

    \b
    nsu erase --class car                                  the class everywhere
    nsu erase --class car --domain sketch                  the class in that domain only
    nsu erase --all-classes --domain sketch                the whole domain
    nsu erase --class car --images-too                     its images too, not only its name

    Writes a folder that stock open_clip loads as local-dir:DIR. With the bundled model, or with
    --data, it says whether the class is forgotten by every way of asking, beside what a name that
    says nothing would score, and what that cost; without, what prototypes predict.
    """  # noqa: D301
    if recipe is not None:
        if request.cells.class_ or request.cells.domain or request.cells.all_classes:
            raise ValueError("--recipe says what to forget: leave out --class, --domain, or it")
        if output is None or heatmap or judge.fail_if or visual.images:
            raise ValueError(
                "--recipe needs --output, and goes without --heatmap, --fail-if and --images"
            )
        options.claim(overwrite, Path(output), undo)
        several.run(
            recipe, model, pretrained, visual, data, Path(output), overwrite, undo, device,
            precision, as_json, quiet,
        )  # fmt: skip
        return
    request = visual.request(request)
    target = Path(output) if output else Path(default_name(model, request.forget()))
    options.claim(overwrite, target, undo, heatmap)
    found = data.find(request.domain_words(), model, quiet)
    shown = visual.find(request.domain_words(), data.class_words, quiet)
    if visual.space == "mlp" and found is not None and found.features is not None:
        raise ValueError(
            "--space mlp is measured on images encoded again, and --data is features: give images, "
            "or --space hidden"
        )

    conditions = judge.conditions(measured=found is not None)

    from nullspace_unlearn.data.source import apart, rows_apart
    from nullspace_unlearn.evaluate.compare import check_measurable
    from nullspace_unlearn.evaluate.outcome import carry_out
    from nullspace_unlearn.report.picture import check_picture
    from nullspace_unlearn.report.plots import grid_heatmap

    if heatmap:
        if found is None:
            raise ValueError("--heatmap draws accuracies: give --data")
        check_picture(heatmap)

    options.use_text_cache(visual.cache, visual.no_cache)
    started = time.perf_counter()
    clip = options.load_model(model, pretrained, device, precision)
    loaded = time.perf_counter()
    plan = request.plan(clip, shown if found is None else found, visual.shows)
    warn_of_domains(clip, plan)
    visual = visual.reading(clip, plan, found)
    silent = quiet or as_json
    drawn = visual.draw(plan, shown)
    left_out = 0
    if found is not None:
        found, left_out = apart(found, drawn)
        if left_out:
            check_measurable(plan.forget, found)
    prototypes = visual.make(clip, plan, drawn, data.batch_size, silent)
    if found is not None and drawn is not None and prototypes is not None:
        found, alike = rows_apart(found, prototypes.features)
        left_out += alike
    made = time.perf_counter()
    outcome = carry_out(
        clip, plan, strength=request.strength, numbers=request.numbers, visual=prototypes,
        space=visual.space, lists=judge.lists(plan.keep),
        embed=None if found is None else partial(data.embed, source=found, quiet=silent),
    )  # fmt: skip
    comparison = outcome.measured
    seconds = {"load": loaded - started, "prototypes": made - loaded, "erase": outcome.seconds}
    result = {**outcome.to_json(), "seconds": seconds}
    if comparison is not None:
        result["left_out"] = left_out
    refused = failed(conditions, comparison)
    if not (refused and judge.discard):
        # Without what differs from run to run: the same command twice gives the same folder.
        report = {name: value for name, value in result.items() if name != "seconds"}
        outcome.edited.save(target, overwrite, undo=undo, report=report)
    if comparison is not None and heatmap:
        grid_heatmap(
            comparison.before, comparison.after, comparison.mask, comparison.classes,
            comparison.domains, heatmap, overwrite,
        )  # fmt: skip
    result["output"] = None if refused and judge.discard else str(target)
    if as_json:
        options.print_json(result)
    elif not quiet:
        click.echo(_report(result, plan, comparison, outcome.predicted))
    stop_if(refused)


def _report(
    result: dict[str, Any],
    plan: Plan,
    comparison: Comparison | None,
    prediction: Comparison | None,
) -> str:
    where = f" in {', '.join(plan.forget.domains)}" if plan.forget.domains else " everywhere"
    what = ", ".join(plan.forget.names) or "every class"
    seconds, seen = result["seconds"], result["prototypes"]
    lines = [
        f"Forgot {what}{where} with {plan.method} (rank {result['numbers'].get('rank', '?')}, "
        f"{', '.join(result['parameter'])}) in {seconds['erase']:.2f} s "
        f"after {seconds['load']:.1f} s of loading"
        + (f" and {seconds['prototypes']:.1f} s of looking." if "images" in seen else ".")
    ]
    if plan.synonyms:
        lines.append(
            "Near-synonyms, which the model hardly tells apart and which go too: "
            + ", ".join(plan.synonyms)
        )
    if wordings := result.get("wordings"):
        took, there = wordings["directions"], wordings["of"]
        lines.append(
            f"In other words too: {took} of {there} directions in which wordings move the name"
            + ("." if took == there else ", as many as the space bears.")
        )
    if "certificate" in result:
        proof = result["certificate"]
        verdict = "holds" if proof["holds"] else "DOES NOT HOLD"
        lines.append(
            f"Certificate {verdict} for each forgotten name: "
            f"{'; '.join(dict.fromkeys(proof['means'].values()))} (largest violation "
            f"{proof['largest_violation']:.1e})."
        )
    if comparison is not None:
        lines += ["", *comparison_lines(comparison, plan.method)]
        if result["left_out"]:
            lines.append(
                f"Left out of these figures: {result['left_out']} images that the edit was made of."
            )
    if prediction is not None:
        lines += ["", *prediction_lines(prediction, plan.method)]
    if comparison is None and prediction is None:
        lines += ["", "Not measured: what an edit of the last MLP does takes images; give --data."]
    if result["output"] is None:
        return "\n".join([*lines, "", "Wrote nothing, as --discard asks"])
    lines += ["", f"Wrote {result['output']} (load it as local-dir:{result['output']})"]
    return "\n".join(lines)
