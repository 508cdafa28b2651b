"""`nsu evaluate`: accuracy of a model in every class and domain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import DataOptions, data_options
from nullspace_unlearn.cli.options import ModelOptions
from nullspace_unlearn.cli.shown import comparison_lines

if TYPE_CHECKING:
    from nullspace_unlearn.evaluate.alone import Alone


@click.command()
@click.argument("model")
@click.option(
    "--pretrained", help="Tag or weights file, for an open_clip name; ORIGINAL's with --against."
)
@click.option(
    "--against",
    metavar="ORIGINAL",
    help="Of an edited folder: the untouched model, to say what is left and what that cost.",
)
@click.option("--base", metavar="MODEL", help="The model that a folder of visual prompts is for.")
@data_options
@click.option("--classes", metavar="A,B,C|FILE", help="Names to choose from; absent: the data's.")
@click.option("--template", multiple=True, metavar="TEXT", help="Class template; several average.")
@click.option("--domain-word", multiple=True, metavar="FOLDER=WORD", help="As for erase.")
@click.option(
    "--phrasing",
    is_flag=True,
    help="Of an edited folder: ask for what was forgotten by each --template alone; without any, "
    "by each of the 80 standard templates.",
)
@options.cache_options
@options.device_options
@options.output_options
@options.which_model
def evaluate(
    which: ModelOptions,
    against: str | None,
    base: str | None,
    data: DataOptions,
    classes: str | None,
    template: tuple[str, ...],
    domain_word: tuple[str, ...],
    phrasing: bool,
    cache: str | None,
    no_cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure zero-shot accuracy of MODEL on DATA, class by domain.

    MODEL is anything that erase takes, and the folder that it or train wrote. DATA is a folder
    root/<domain>/<class>/*, webdataset shards, a feature file of that model (.npz, or one that
    embed wrote), or nsu-mini for the bundled pictures.

    Of a folder that has forgotten something it says what is still told of it, beside chance; with
    --against, whether it is forgotten and what that cost, as erase does.
    """
    words = options.pairs("--domain-word", domain_word)
    found = data.find(words, which.name, quiet)
    if found is None:
        raise ValueError("give --data: images, shards, a feature file, or nsu-mini")

    from nullspace_unlearn.evaluate.alone import measure_alone, named_by
    from nullspace_unlearn.words import Words

    options.use_text_cache(cache, no_cache)
    clip = (which if against is None else replace(which, pretrained=None)).load(base)
    original = None if against is None else replace(which, model=against).load()
    embedded = data.embed([c for c in (clip, original) if c is not None], found, quiet or as_json)
    features, *untouched = [named_by(one, options.class_list(classes)) for one in embedded]
    templates = Words(class_templates=template).class_templates if template else found.templates
    beside = None if original is None else (original, untouched[0])
    asked = template if phrasing else None
    alone = measure_alone(clip, features, templates, phrasing=asked, against=beside)
    result = {
        **alone.to_json(),
        "model": which.model,
        "pretrained": which.pretrained,
        "task": "zeroshot_classification",
        "language": "en",
        "dataset": data.data or options.BUNDLED,
    }
    if as_json:
        options.print_json(result)
    elif not quiet:
        click.echo(_report(alone, result))


def _report(alone: Alone, result: dict[str, Any]) -> str:
    from nullspace_unlearn.evaluate.compare import EVERYWHERE
    from nullspace_unlearn.report.plots import grid_table

    if alone.comparison is not None:
        return "\n".join([*comparison_lines(alone.comparison), *_phrasing_lines(result)])
    names, domains = alone.features.class_names, alone.features.domain_names or EVERYWHERE
    marked = alone.mask if alone.told else None
    lines = [
        grid_table(alone.grid, None, marked, names, domains),
        ", ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items() if v is not None),
    ]
    if alone.told:
        lines += ["", *_told_lines(alone.told), *_phrasing_lines(result)]
    return "\n".join(lines)


def _told_lines(told: dict[str, dict[str, float | None]]) -> list[str]:
    """What the model tells of what it has forgotten (marked with a *), beside chance."""
    from nullspace_unlearn.evaluate.figures import FIGURES

    lines = [f"{'of what was forgotten (*)':28}{'now':>9}{'chance':>9}"]
    for name, figure in FIGURES.items():
        value, chance = told["after"][name], told["chance"][name]
        if value is None or (chance is None and figure.good == "chance"):
            continue
        if figure.good == "chance" or name in ("forgotten", "kept", "worst_kept", "kept_search"):
            cells = f"{figure.written(value):>9}{figure.written(chance):>9}"
            lines.append(f"{figure.title:28}{cells}")
    return lines


def _phrasing_lines(result: dict[str, Any]) -> list[str]:
    """The three templates that tell most, if templates were tried singly."""
    worst = result.get("phrasing", [])[:3]
    lines = [f"{one['value']:9.3f}{one['blind']:9.3f}  {one['template']}" for one in worst]
    return ["", "named(all) by single templates, those that tell most", *lines] if lines else []
