"""`nsu bench`: run a recipe, closed forms and trained methods side by side, and table it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from nullspace_unlearn.cli import options


@click.command()
@click.argument("recipe")
@click.option(
    "--data",
    "root",
    default=".",
    show_default=True,
    metavar="ROOT",
    help="The folder that the recipe's paths are below.",
)
@click.option("--output", metavar="DIR", help="Folder of the results; absent: bench-NAME.")
@click.option("--overwrite", is_flag=True, help="Begin anew: remove the results that are there.")
@click.option("--only", multiple=True, metavar="METHOD", help="Run only this row of the table.")
@click.option("--model", metavar="NAME", help="In place of the recipe's model.")
@click.option("--pretrained", help="Tag or weights file, for an open_clip name.")
@click.option(
    "--download", is_flag=True, help="Let a model that is not on this machine be fetched."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i.")
@click.option("--dry-run", is_flag=True, help="Only list the trials.")
@options.output_options
def bench(
    recipe: str,
    root: str,
    output: str | None,
    overwrite: bool,
    only: tuple[str, ...],
    model: str | None,
    pretrained: str | None,
    download: bool,
    device: str,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run RECIPE: a file, or the name of one that comes along (nsu recipes ls).

    \b
    nsu bench bundled-quick
    nsu bench benchmarks/recipes/pacs.yaml --data ../shared --only "gated, 8 images"

    Every method, request and draw of images is a trial and leaves one JSON in DIR/trials, so that a
    run cut short goes on where it stopped: give the same command again. A changed recipe runs only
    the trials that the change concerns. Then it writes table.md, table.csv, table.json and
    pictures. No data are downloaded, and no model without --download.
    """  # noqa: D301
    if not download:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    from dataclasses import replace

    from nullspace_unlearn.bench import recipe as recipes
    from nullspace_unlearn.bench import runner
    from nullspace_unlearn.bench.datasets import find_pools
    from nullspace_unlearn.bench.report import write_report
    from nullspace_unlearn.files import clear_leftovers

    file = recipes.find_recipe(recipe)
    asked = recipes.read_recipe(file)
    if pretrained and not model:
        raise ValueError("--pretrained goes with --model")
    if model is not None:
        if asked.model is None:
            raise ValueError(f"recipe {asked.name!r} measures a feature file: leave out --model")
        given = recipes.Model(model, pretrained, asked.model.templates)
        asked = replace(asked, model=given)
    _check_only(asked, only)
    pools = find_pools(asked, Path(root))
    trials = runner.trials_of(asked, pools)
    if dry_run:
        _list(asked, [c for c in trials if not only or c.entry.label in only], as_json)
        return
    target = Path(output) if output else Path(f"bench-{asked.name}")
    options.claim(True, target)
    clear_leftovers(target)
    runner.check_output(target, asked, overwrite)
    clip = None
    if asked.model is not None:
        name = asked.model.name if model else runner.model_name(asked.model, Path(root))
        try:
            clip = options.load_model(name, asked.model.pretrained, device, "fp32")
        except RuntimeError as error:
            if download:
                raise
            raise ValueError(f"{error}; pass --download to fetch it, or name --model") from None
    runner.claim(target, asked, file.read_text(encoding="utf-8"), overwrite)
    silent = quiet or as_json
    try:
        done = runner.run(asked, pools, clip, trials, target, only=only, quiet=silent, note=_note)
    except KeyboardInterrupt:
        click.echo("nsu: interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    if not done.runs:
        raise RuntimeError(f"all {len(done.failed)} trials failed; the first: {done.failed[0][1]}")
    text, result = write_report(asked, done.runs, target, len(done.failed))
    failed = [{"trial": f"{c.entry.label}, {c.what}, seed {c.seed}", "error": e}
              for c, e in done.failed]  # fmt: skip
    if as_json:
        options.print_json({**result, "failed": failed, "output": str(target)})
    elif not quiet:
        click.echo(text)
        click.echo(f"{len(trials)} trials, {done.found} of them found; wrote {target}/table.md")
    if failed:
        click.echo(f"nsu: {len(failed)} of {len(trials)} trials failed: run it again to retry",
                   err=True)  # fmt: skip
        sys.exit(1)


def _check_only(asked: Any, only: tuple[str, ...]) -> None:
    labels = [method.label for method in asked.methods]
    if unknown := [label for label in only if label not in labels]:
        raise ValueError(
            f"--only names {unknown[0]!r}, which is no row of {asked.name}: {'; '.join(labels)}"
        )


def _list(asked: Any, trials: Any, as_json: bool) -> None:
    if as_json:
        listed = [
            {"method": c.entry.label, "request": c.what, "kind": c.forget.paradigm, "seed": c.seed}
            for c in trials
        ]
        options.print_json({"recipe": asked.name, "trials": listed})
        return
    for trial in trials:
        click.echo(f"{trial.entry.label} | {trial.what} | seed {trial.seed}")
    click.echo(f"{len(trials)} trials; nothing was run")


def _note(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"nsu: {line}", file=sys.stderr)
