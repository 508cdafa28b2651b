"""`nsu evaluate`: accuracy of a model in every class and domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import DataOptions, data_options

if TYPE_CHECKING:
    from nullspace_unlearn.features import Features


@click.command()
@click.argument("model")
@click.option("--pretrained", help="Tag or weights file, for an open_clip name.")
@click.option("--base", metavar="MODEL", help="The model that a folder of visual prompts is for.")
@data_options
@click.option("--classes", metavar="A,B,C|FILE", help="Names to choose from; absent: the data's.")
@click.option("--template", multiple=True, metavar="TEXT", help="Class template; several average.")
@click.option("--domain-word", multiple=True, metavar="FOLDER=WORD", help="As for erase.")
@click.option(
    "--phrasing",
    is_flag=True,
    help="Of an edited folder: ask for what was forgotten by each of the 80 standard templates.",
)
@options.cache_options
@options.device_options
@options.output_options
def evaluate(
    model: str,
    pretrained: str | None,
    base: str | None,
    data: DataOptions,
    classes: str | None,
    template: tuple[str, ...],
    domain_word: tuple[str, ...],
    phrasing: bool,
    cache: str | None,
    no_cache: bool,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure zero-shot accuracy of MODEL on DATA, class by domain.

    MODEL is anything that erase takes, and the folder that it or train wrote. DATA is a folder
    root/<domain>/<class>/*, webdataset shards, a feature file of that model (.npz, or one that
    embed wrote), or nsu-mini for the bundled pictures.
    """
    words = options.pairs("--domain-word", domain_word)
    found = data.find(words, model, quiet)
    if found is None:
        raise ValueError("give --data: images, shards, a feature file, or nsu-mini")

    from dataclasses import asdict

    from nullspace_unlearn.evaluate.compare import EVERYWHERE, accuracy, classifier, told_alone
    from nullspace_unlearn.evaluate.phrasing import phrasings
    from nullspace_unlearn.report.plots import grid_table
    from nullspace_unlearn.words import Words

    options.use_text_cache(cache, no_cache)
    clip = options.load_model(model, pretrained, device, precision, base)
    features = data.embed(clip, found, quiet or as_json)
    features = _named_by(features, options.class_list(classes))
    templates = (
        Words(class_templates=template).class_templates
        if template
        else found.templates or (clip.words or Words()).class_templates
    )
    grid, result = accuracy(clip, features, templates)
    domains = features.domain_names or EVERYWHERE
    mask = clip.history.forgotten(features.class_names, domains)
    told = None
    if mask.any():
        told = told_alone(features, mask, classifier(clip, features, templates))
        result |= {"forgotten": mask.tolist(), "figures": told}
        if phrasing:
            result["phrasing"] = [asdict(one) for one in phrasings(clip, features, mask)]
    elif phrasing:
        raise ValueError("--phrasing asks for what a folder has forgotten, and this has not")
    provenance: dict[str, Any] = dict(features.provenance)
    result |= {
        "model": model,
        "pretrained": pretrained,
        "task": "zeroshot_classification",
        "language": "en",
        "dataset": data.data or options.BUNDLED,
        "templates": list(templates),
        "skipped": provenance.get("skipped", []),
    }
    if as_json:
        options.print_json(result)
    elif not quiet:
        marked = mask if told else None
        click.echo(grid_table(grid, None, marked, features.class_names, domains))
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items() if v is not None)
        click.echo(metrics)
        if told:
            click.echo("\n".join(["", *_told_lines(told), *_phrasing_lines(result)]))


def _named_by(features: Features, names: list[str] | None) -> Features:
    """The features with the classes of --classes to choose from.

    Raises:
        ValueError: If these lack a class of the data, or there are none.
    """
    from dataclasses import replace

    if names is None:
        if not features.class_names:
            raise ValueError("the feature file has no class names: give --classes")
        return features
    if not features.class_names:
        if int(features.labels.max()) >= len(names):
            raise ValueError(
                f"the feature file has label {int(features.labels.max())} and no class names, and "
                f"--classes names {len(names)}"
            )
        return replace(features, class_names=tuple(names))
    unknown = [name for name in features.class_names if name not in names]
    if unknown:
        raise ValueError(f"--classes lacks classes of the data: {', '.join(unknown)}")
    place = [names.index(name) for name in features.class_names]
    labels = features.labels.new_tensor(place)[features.labels]
    return replace(features, class_names=tuple(names), labels=labels, text=None)


def _told_lines(told: dict[str, dict[str, float | None]]) -> list[str]:
    """What the model tells of what it has forgotten (marked with a *), beside chance."""
    from nullspace_unlearn.evaluate.figures import FIGURES

    lines = [f"{'of what was forgotten (*)':28}{'now':>9}{'chance':>9}"]
    for name, figure in FIGURES.items():
        value, chance = told["after"][name], told["chance"][name]
        if value is None or (chance is None and figure.good == "chance"):
            continue
        if figure.good == "chance" or name in ("forgotten", "kept", "worst_kept"):
            cells = f"{figure.written(value):>9}{figure.written(chance):>9}"
            lines.append(f"{figure.title:28}{cells}")
    return lines


def _phrasing_lines(result: dict[str, Any]) -> list[str]:
    """The three templates that tell most, if templates were tried singly."""
    worst = result.get("phrasing", [])[:3]
    lines = [f"{one['value']:9.3f}{one['blind']:9.3f}  {one['template']}" for one in worst]
    return ["", "named(all) by single templates, those that tell most", *lines] if lines else []
