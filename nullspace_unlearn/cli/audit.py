"""`nsu audit`: what can still be recovered of what a model was made to forget."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import DataOptions, data_options
from nullspace_unlearn.cli.options import ModelOptions
from nullspace_unlearn.cli.request import CellOptions, cell_options

if TYPE_CHECKING:
    from nullspace_unlearn.audit.opening import Choices, Subject
    from nullspace_unlearn.audit.question import Answer, Question
    from nullspace_unlearn.audit.run import Audit

_WORST = 5  # rows shown of each question


@click.command()
@click.argument("edited")
@click.option(
    "--against", "model", metavar="ORIGINAL", required=True,
    help="The untouched model, as erase takes it; or its feature file, where EDITED is one.",
)  # fmt: skip
@click.option("--pretrained", help="Tag or weights file of ORIGINAL, for an open_clip name.")
@click.option(
    "--retrained", metavar="MODEL",
    help="A model that never saw what was to be forgotten: what an ideal edit would be like.",
)  # fmt: skip
@data_options
@click.option(
    "--other", "others", multiple=True, metavar="ROOT|FILE",
    help="Another data set, as --data takes it: what became of classes nobody asked about.",
)  # fmt: skip
@cell_options
@click.option(
    "--classes", metavar="A,B,C|FILE", help="Names that stay; absent: those that the edit kept."
)
@click.option("--only", metavar="A,B", help="Ask only these questions.")
@click.option("--quick", is_flag=True, help="Leave out what takes long: minutes, not hours.")
@click.option("--output", metavar="DIR", help="Folder of the results; absent: audit-NAME.")
@click.option("--overwrite", is_flag=True, help="Begin anew: remove the results that are there.")
@options.cache_options
@options.device_options
@options.output_options
@options.which_model
def audit(
    edited: str,
    which: ModelOptions,
    retrained: str | None,
    data: DataOptions,
    others: tuple[str, ...],
    cells: CellOptions,
    classes: str | None,
    only: str | None,
    quick: bool,
    output: str | None,
    overwrite: bool,
    cache: str | None,
    no_cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find out what EDITED still tells of what it was made to forget.

    \b
    nsu audit out --against nsu-mini
    nsu audit out --against hf-hub:org/model --data images/ --quick
    nsu audit after.npz --against before.npz --class car

    What was to be forgotten is read from EDITED's recipe; --class and --domain say it where there
    is none. Every question leaves its answer in DIR, so that a run cut short goes on where it
    stopped: give the same command again. Then it writes DIR/audit.json, which nsu report shows.
    """  # noqa: D301
    from nullspace_unlearn.audit.attacks import chosen
    from nullspace_unlearn.audit.opening import Choices
    from nullspace_unlearn.audit.run import run
    from nullspace_unlearn.files import clear_leftovers

    named = tuple(name.strip() for name in only.split(",")) if only else ()
    chosen(named, quick)  # which refuses unknown names before anything is loaded
    target = Path(output or f"audit-{Path(edited).stem}")
    options.claim(True, target)
    clear_leftovers(target)
    options.use_text_cache(cache, no_cache)
    choices = Choices(quick, data.seed, batch_size=data.batch_size, workers=data.num_workers,
                      quiet=quiet or as_json)  # fmt: skip
    subject = _subject(edited, which, retrained, data, others, cells, classes, choices)
    if not (quiet or as_json):
        click.echo(_head(subject))
    show = (lambda question, answer: None) if quiet or as_json else _show
    command = options.command_line(sys.argv[1:])
    try:
        found = run(subject, target, only=named, overwrite=overwrite, command=command, note=show)
    except KeyboardInterrupt:
        click.echo("nsu: interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    if as_json:
        options.print_json(found.to_json())
    elif not quiet:
        click.echo("\n".join(_foot(found, target)))


def _subject(
    edited: str,
    which: ModelOptions,
    retrained: str | None,
    data: DataOptions,
    others: tuple[str, ...],
    cells: CellOptions,
    classes: str | None,
    choices: Choices,
) -> Subject:
    from nullspace_unlearn.audit.opening import of_features, of_models
    from nullspace_unlearn.features import read_features

    asked = bool(cells.class_ or cells.domain or cells.all_classes)
    original = which.name
    if Path(edited).is_file() and Path(original).is_file():
        from nullspace_unlearn.data.find import from_features

        if data.data is not None:
            raise ValueError("feature files are the data: leave out --data")
        if others:
            raise ValueError("--other takes models: feature files are of one set of images")
        before = read_features(original)
        third = None if retrained is None else read_features(retrained)
        source = from_features(before, Path(original).name)
        return of_features(
            before, read_features(edited), source, cells.forget(), third, choices
        )  # fmt: skip
    words = cells.domain_words()
    found = data.find(words, original, choices.quiet)
    if found is None:
        raise ValueError("give --data: images, shards, a feature file of ORIGINAL, or nsu-mini")
    clip = which.load()
    load = replace(which, pretrained=None)
    forget = cells.resolve(clip, found)[0] if asked else None
    return of_models(
        clip,
        replace(load, model=edited).load(),
        found,
        forget=forget,
        retrained=None if retrained is None else replace(load, model=retrained).load(),
        names=options.class_list(classes) or (),
        templates=cells.template,
        others=[replace(data, data=one, listing=None).open(words, choices.quiet) for one in others],
        choices=choices,
    )


def _head(subject: Subject) -> str:
    from nullspace_unlearn.audit.run import about

    said = about(subject)
    images = said["images"]
    return (
        f"Audit of {said['edited']} against {said['original']}: {said['request']['words']}, on "
        f"{images['forgotten']} images of it and {images['others']} others.\n"
    )


def _show(question: Question, answer: Answer) -> None:
    """A line as soon as a question is answered; a bar may be standing below."""
    from tqdm import tqdm

    tqdm.write(f"{question.title}: {answer.verdict.upper()}. {answer.sentence}")


def _foot(found: Audit, target: Path) -> list[str]:
    rows: list[tuple[str, Any]] = [
        (question.title, row) for question, answer in found.answers for row in answer.rows[:_WORST]
    ]
    lines = ["", f"{'':44}{'edited':>9}{'original':>9}{'chance':>9}"] if rows else []
    before = ""
    for title, row in rows:
        lines += [title] if title != before else []
        before = title
        cells = "".join(
            f"{'-' if value is None else format(value, '.3f'):>9}"
            for value in (row.value, row.original, row.chance)
        )
        lines.append(f"  {_cut(f'{row.kind}: {row.text}', 42)}{cells}")
    return [*lines, "", f"Wrote {target}/audit.json"]


def _cut(text: str, width: int) -> str:
    from nullspace_unlearn.report.text import padded, shortened

    return padded(shortened(text, width), width)
