"""`nsu bench`: run a recipe, closed forms and trained methods side by side, and table it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.files import clear_leftovers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nullspace_unlearn.bench.benchmark import Benchmark
    from nullspace_unlearn.bench.runner import Trial
    from nullspace_unlearn.clip import Clip


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
    from nullspace_unlearn.bench.benchmark import Benchmark
    from nullspace_unlearn.bench.recipe import Model
    from nullspace_unlearn.bench.runner import check_output

    if pretrained and not model:
        raise ValueError("--pretrained goes with --model")
    options.keep_contents(options.cache_folder(None, False))
    found = Benchmark.find(recipe, root, None if model is None else Model(model, pretrained))
    chosen = found.chosen(only)
    if dry_run:
        _list(found.recipe.name, chosen, as_json)
        return
    target = Path(output) if output else Path(f"bench-{found.recipe.name}")
    options.claim(True, target)
    clear_leftovers(target)
    check_output(target, found.recipe, overwrite)
    clip = _load(found, device, download)
    try:
        tabled = found.run(target, clip, only=only, overwrite=overwrite, quiet=quiet or as_json,
                           note=_note)  # fmt: skip
    except KeyboardInterrupt:
        click.echo("nsu: interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    total, failed = len(found.trials), tabled.done.failures
    if as_json:
        options.print_json({**tabled.tables, "failed": failed, "output": str(target)})
    elif not quiet:
        click.echo(tabled.markdown)
        click.echo(f"{total} trials, {tabled.done.found} of them found; wrote {target}/table.md")
    if failed:
        click.echo(f"nsu: {len(failed)} of {total} trials failed: run it again to retry", err=True)
        sys.exit(1)


def _load(found: Benchmark, device: str, download: bool) -> Clip | None:
    """The benchmark's model, from this machine unless a download is allowed."""
    if found.model_name is None or found.recipe.model is None:
        return None
    try:
        return options.load_model(found.model_name, found.recipe.model.pretrained, device, "fp32")
    except RuntimeError as error:
        if download:
            raise
        raise ValueError(f"{error}; pass --download to fetch it, or name --model") from None


def _list(name: str, trials: Sequence[Trial], as_json: bool) -> None:
    if as_json:
        listed = [
            {"method": t.entry.label, "request": t.what, "kind": t.forget.paradigm, "seed": t.seed}
            for t in trials
        ]
        options.print_json({"recipe": name, "trials": listed})
        return
    for trial in trials:
        click.echo(f"{trial.entry.label} | {trial.what} | seed {trial.seed}")
    click.echo(f"{len(trials)} trials; nothing was run")


def _note(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"nsu: {line}", file=sys.stderr)
