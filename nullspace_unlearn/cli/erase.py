"""`nsu erase`: make a model forget, show what that did, write the folder."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options, several
from nullspace_unlearn.cli.data import DataOptions, data_options, say_skipped
from nullspace_unlearn.cli.judge import JudgeOptions, failed, judge_options, stop_if
from nullspace_unlearn.cli.options import ModelOptions
from nullspace_unlearn.cli.outputs import OutputOptions, output_files
from nullspace_unlearn.cli.request import (
    RequestOptions,
    default_name,
    request_options,
    warn_of_domains,
)
from nullspace_unlearn.cli.shown import comparison_lines, prediction_lines
from nullspace_unlearn.cli.visual import VisualOptions, visual_options

if TYPE_CHECKING:
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.evaluate.outcome import Outcome


@click.command()
@options.model_options
@request_options
@visual_options
@data_options
@judge_options
@click.option("--recipe", metavar="FILE", help="Several requests (YAML) in place of one: one edit.")
@output_files
@click.option("--patch", metavar="FILE", help="Also write the edit alone, for nsu apply.")
@options.device_options
@options.output_options
@options.which_model
def erase(
    which: ModelOptions,
    request: RequestOptions,
    visual: VisualOptions,
    data: DataOptions,
    judge: JudgeOptions,
    recipe: str | None,
    files: OutputOptions,
    patch: str | None,
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
        several.run(recipe, which, request, visual, data, judge, files, patch, as_json, quiet)
        return
    request, silent = visual.request(request), quiet or as_json
    target = files.target(default_name(which.name, request.forget()))
    files.claim(target, patch)
    if patch is not None:
        from nullspace_unlearn.patch import check_patch

        check_patch(Path(patch), files.overwrite)
    found = data.find(request.domain_words(), which.name, quiet)
    shown = visual.find(request.domain_words(), data.class_words, quiet)
    visual.check_shown_by(found)
    conditions = judge.conditions(measured=found is not None)
    files.check_heatmap(measured=found is not None)

    outcome, seconds = _carry_out(which, request, visual, data, judge, found, shown, silent)
    say_skipped(outcome.features)
    refused = failed(conditions, outcome.measured)
    written = not (refused and judge.discard)
    # Without what differs from run to run: the same command twice gives the same folder.
    report = {**outcome.to_json(), **options.made_by(outcome.edited)}
    if written:
        outcome.edited.save(target, files.overwrite, undo=files.undo, report=report)
    if written and patch is not None:
        from nullspace_unlearn.patching import make_patch

        made = make_patch(outcome.clip, outcome.edit, outcome.plan.side, report)
        made.save(patch, files.overwrite)
    files.draw(outcome.measured)
    said = {**report, "seconds": seconds, "output": str(target) if written else None}
    _print(said, outcome, _next(which, data, str(target)), as_json, quiet)
    stop_if(refused)


def _carry_out(
    which: ModelOptions,
    request: RequestOptions,
    visual: VisualOptions,
    data: DataOptions,
    judge: JudgeOptions,
    found: Source | None,
    shown: Source | None,
    quiet: bool,
) -> tuple[Outcome, dict[str, float]]:
    """What comes of the request, and how long each part took."""
    from nullspace_unlearn.evaluate.outcome import carry_out

    cache = options.use_text_cache(visual.cache, visual.no_cache)
    started = time.perf_counter()
    clip = which.load()
    loaded = time.perf_counter()
    looks = visual.looks(shown, data.batch_size, cache, quiet)
    plan = request.plan(clip, shown if found is None else found, looks.shows)
    warn_of_domains(clip, plan)
    planned = time.perf_counter()
    outcome = carry_out(
        clip, plan, strength=request.strength, numbers=request.numbers, looks=looks,
        reported=found, lists=judge.lists(plan.keep), batch_size=data.batch_size,
        workers=data.num_workers, quiet=quiet,
    )  # fmt: skip
    seconds = {"load": loaded - started, **outcome.seconds}
    return outcome, seconds | {"prototypes": seconds["prototypes"] + planned - loaded}


def _print(
    said: dict[str, Any], outcome: Outcome, following: str, as_json: bool, quiet: bool
) -> None:
    if as_json:
        options.print_json(said)
    elif not quiet:
        click.echo(_report(said, outcome, following))


def _next(which: ModelOptions, data: DataOptions, output: str) -> str:
    """The command that comes next, to be typed as it stands where there are images to measure."""
    command = ["nsu", "audit", output, "--against", which.name]
    if which.pretrained is not None:
        command += ["--pretrained", which.pretrained]
    if data.data is not None:
        command += ["--data", data.data]
    images = " --data IMAGES" if data.data is None and which.name != options.BUNDLED else ""
    return f"Next: {shlex.join(command)}{images} --quick  (what can still be recovered)"


def _report(result: dict[str, Any], outcome: Outcome, following: str) -> str:
    plan, comparison, prediction = outcome.plan, outcome.measured, outcome.predicted
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
    if wordings := result.get("in_other_words"):
        took, there = wordings["directions"], wordings["of"]
        lines.append(
            f"In other words too: held down in {took} directions in which they move the name"
            + ("." if took == there else f" of {there}, as many as the space bears.")
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
    if result["output"] is None:
        return "\n".join([*lines, "", "Wrote nothing, as --discard asks"])
    loading = outcome.edited.source.layout.loading(result["output"])
    lines += ["", f"Wrote {result['output']} ({loading})", following]
    return "\n".join(lines)
