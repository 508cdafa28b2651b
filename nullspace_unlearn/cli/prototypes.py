"""`nsu prototypes`: pictures that stand for cells to the model, to look at and to use."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import said

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.features import Features
    from nullspace_unlearn.prototypes import Pictures

SHEET, FEATURES, FACTS = "sheet.png", "features.safetensors", "prototypes.json"
_LONGEST = 60  # letters of a folder's name: at most 240 bytes, where file systems take 255
_MOST_LINES = 40


@click.command()
@options.model_options
@click.option("--class", "class_", multiple=True, metavar="NAME", help="Absent: every class.")
@click.option("--domain", multiple=True, metavar="NAME", help="Absent: every domain.")
@click.option("--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option(
    "--each", default=4, show_default=True, type=click.IntRange(1), help="Pictures of each cell."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--classes",
    metavar="A,B,C|FILE",
    help="All class names: a list, or a file with one a line. Absent: the model folder's own.",
)
@click.option(
    "--domain-word",
    multiple=True,
    metavar="FOLDER=WORD",
    help="The word that prompts use for a domain: art_painting=painting.",
)
@click.option(
    "--template",
    multiple=True,
    metavar="TEXT",
    help='Prompt template such as "a {domain} of a {class}."; several are averaged.',
)
@click.option(
    "--against",
    metavar="ROOT",
    help="Say how near they come to real images, root/<domain>/<class>/*.",
)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
@options.cache_options
@options.device_options
@options.output_options
def prototypes(
    model: str,
    pretrained: str | None,
    class_: tuple[str, ...],
    domain: tuple[str, ...],
    output: str,
    overwrite: bool,
    each: int,
    seed: int,
    classes: str | None,
    domain_word: tuple[str, ...],
    template: tuple[str, ...],
    against: str | None,
    batch_size: int,
    cache: str | None,
    no_cache: bool,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make pictures that stand for cells, from the model alone, by ascent on the pixels.

    \b
    nsu prototypes --output DIR                              every cell
    nsu prototypes --class car --domain sketch --output DIR  one

    A cell is what sets it apart from all the others, so all are made, and those asked for written:
    DIR/<domain>/<class>/*.png, sheet.png to look at, features.safetensors, prototypes.json. Made
    pictures are cached; an interrupted call takes up where it stopped.
    """  # noqa: D301
    from nullspace_unlearn.files import new_folder
    from nullspace_unlearn.prototypes import Synthesis, synthesise
    from nullspace_unlearn.words import CELL_TEMPLATES, check_names, check_template

    target = Path(output)
    options.claim(overwrite, target)
    kept = options.cache_folder(cache, no_cache)
    given_words = options.pairs("--domain-word", domain_word)
    given_classes = options.class_list(classes)
    check_names("class", class_)
    check_names("domain", domain)
    for text in template:
        check_template(text, ("class", "domain"))
    real = None if against is None else _real(against, given_words)
    synthesis = Synthesis(each=each, seed=seed, batch_size=batch_size)

    clip = options.load_model(model, pretrained, device, precision)
    names, words = _vocabulary(clip, given_classes, given_words, real)
    keys = {**{word: key for key, word in words.items()}, **{key: key for key in words}}
    called = [keys.get(name, name) for name in domain]
    asked = _asked("class", class_, names), _asked("domain", called, tuple(words))
    common = None if real is None else _in_common(names, tuple(words), real)
    templates = template or (clip.words.cell_templates if clip.words else CELL_TEMPLATES)
    silent = quiet or as_json
    made = synthesise(clip, names, words, templates, synthesis, cache=kept, quiet=silent)
    near = None
    if real is not None and common is not None:
        near = _nearness(clip, made.features, real, common, batch_size, silent)
    chosen = _only(made, *asked)
    result = {
        **_facts(clip, chosen, [words[key] for key in asked[1]]),
        "vocabulary": {"classes": list(names), "domains": words},
        "nearness": near,
    }
    with new_folder(target, overwrite) as folder:
        _write(folder, chosen, result)
    if as_json:
        options.print_json({"output": str(target), **result})
    elif not quiet:
        click.echo(_report(result, target, chosen))


def _real(against: str, words: Mapping[str, str]) -> Source:
    from nullspace_unlearn.data.find import open_source

    source = open_source(against, domain_words=words)
    if source.features is not None:
        raise ValueError("--against are images, and a feature file holds none: give images")
    return said(source)


def _vocabulary(
    clip: Clip,
    classes: Sequence[str] | None,
    words: Mapping[str, str],
    real: Source | None,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """All classes and domains, the latter with words: as given, else the model's, or the data's."""
    from nullspace_unlearn.prototypes import DOMAIN_WORDS

    own = clip.words
    names = classes or (own.classes if own else ()) or (real.classes if real else ())
    if not names:
        raise ValueError(f"{clip.source.name} carries no class list: give --classes")
    known: Mapping[str, str] = {word: word for word in DOMAIN_WORDS}
    if own and own.domains:
        known = own.domains
    elif real:
        known = real.words
    # A domain given under a word takes the place of the one that had it: no picture could be of
    # one and not of the other.
    others = {key: word for key, word in known.items() if word not in words.values()}
    return tuple(names), {**others, **words}


def _asked(what: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names asked for, in the vocabulary's order; all where none is given."""
    unknown = [name for name in given if name not in known]
    if unknown:
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise ValueError(
            f"unknown {what} {', '.join(map(repr, unknown))}; known: {', '.join(known[:20])}{more}"
        )
    return tuple(name for name in known if name in given or not given)


def _only(made: Pictures, classes: Sequence[str], domains: Sequence[str]) -> Pictures:
    """The pictures of a part of the grid."""
    import torch

    from nullspace_unlearn.prototypes import Pictures, Visual

    f = made.features
    columns = f.domains
    assert columns is not None  # `synthesise` gives them
    wanted = [
        f.class_names[c] in classes and f.domain_names[d] in domains
        for c, d in zip(f.labels.tolist(), columns.tolist(), strict=True)
    ]
    rows = torch.tensor(wanted)
    part = Visual(f, "pictures").on(classes, domains).features
    return Pictures(part, made.images[rows], made.reached[rows])


def _in_common(
    classes: Sequence[str], domains: Sequence[str], found: Source
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes and domains of the vocabulary that there are real images of."""
    classes = tuple(name for name in classes if name in found.classes)
    domains = tuple(name for name in domains if name in found.domains)
    if len(classes) * len(domains) < 2:
        raise ValueError(
            f"the real images share {len(classes)} classes and {len(domains)} domains with the "
            f"vocabulary, and at least 2 cells are needed; theirs: {', '.join(found.classes[:10])};"
            f" {', '.join(found.domains[:10])}"
        )
    absent = [f"{c}/{d}" for c, d in found.absent if c in classes and d in domains]
    if absent:
        raise ValueError(
            f"--against has no image of {len(absent)} cells of the vocabulary, of which nearness "
            f"needs each: {', '.join(absent[:5])}"
        )
    return classes, domains


def _nearness(
    clip: Clip,
    made: Features,
    found: Source,
    common: tuple[Sequence[str], Sequence[str]],
    batch_size: int,
    quiet: bool,
) -> dict[str, Any]:
    """Nearness over all cells that both have, whichever were asked for."""
    from nullspace_unlearn.features.embed import embed
    from nullspace_unlearn.prototypes import Visual
    from nullspace_unlearn.prototypes.nearness import nearness

    features = embed(clip, found, batch_size=batch_size, quiet=quiet, hidden=True)
    ours, real = (Visual(rows, "images").on(*common).features for rows in (made, features))
    figures = nearness(ours, real)
    return {
        "images": found.name,
        "skipped": features.provenance["skipped"],
        "classes": list(real.class_names),
        "domains": list(real.domain_names),
        **asdict(figures),
    }


def _facts(clip: Clip, made: Pictures, words: Sequence[str]) -> dict[str, Any]:
    """Where the pictures come from, and what became of each cell."""
    from nullspace_unlearn.linalg import unit
    from nullspace_unlearn.prototypes import cell_prototypes

    f = made.features
    keys = list(f.domain_names)
    text = cell_prototypes(clip, f.class_names, words, f.provenance["templates"])
    shape = (len(f.class_names), len(keys), -1)
    rows = unit(f.embeddings.double()).reshape(*shape, text.shape[-1])
    cosine = (rows * text[:, :, None]).sum(-1).mean(-1)
    reached = made.reached.reshape(shape)
    folders = _folder_names(keys, (SHEET, FEATURES, FACTS)), _folder_names(f.class_names)
    return {
        **{name: value for name, value in f.provenance.items() if name != "words"},
        "cells": [
            {
                "class": name,
                "domain": key,
                "folder": f"{folders[0][d]}/{folders[1][c]}",
                "pictures": reached.shape[-1],
                "reached": int(reached[c, d].sum()),
                "cosine": float(cosine[c, d]),
            }
            for c, name in enumerate(f.class_names)
            for d, key in enumerate(keys)
        ],
    }


def _write(folder: Path, made: Pictures, facts: Mapping[str, Any]) -> None:
    from PIL import Image

    from nullspace_unlearn.report.sheet import contact_sheet

    each = len(made.images) // len(facts["cells"])
    digits = max(2, len(str(each - 1)))
    for cell, pictures in zip(facts["cells"], made.images.split(each), strict=True):
        below = folder / cell["folder"]
        below.mkdir(parents=True)
        for i, picture in enumerate(pictures):
            image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
            image.save(below / f"{i:0{digits}}.png")
    contact_sheet(made).save(folder / SHEET)
    made.features.save(folder / FEATURES)
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def _folder_names(names: Sequence[str], reserved: Collection[str] = ()) -> list[str]:
    """A folder name for each name, safe in any file system, no two alike even without case."""
    taken = {name.casefold() for name in reserved}
    safe = []
    for name in names:
        letters = (
            c if c.isalnum() or c in " -_.,+&'()" else "_"
            for c in unicodedata.normalize("NFC", name)
        )
        # A leading dot hides a folder, and some systems drop dots and blanks at the end.
        plain = "".join(letters).strip(" .")[:_LONGEST].strip(" .") or "_"
        unique, count = plain, 1
        while unique.casefold() in taken:
            count += 1
            unique = f"{plain}-{count}"
        taken.add(unique.casefold())
        safe.append(unique)
    return safe


def _report(facts: Mapping[str, Any], target: Path, made: Pictures) -> str:
    from nullspace_unlearn.report.sheet import cell_lines

    lines = cell_lines(facts["cells"][:_MOST_LINES])
    if (rest := len(facts["cells"]) - len(lines)) > 0:
        lines.append(f"and {rest} more cells, in {FACTS}")
    if facts["nearness"] is not None:
        for space, what in (("embedding", "embeddings"), ("hidden", "hidden features")):
            near = facts["nearness"][space]
            lines.append(
                f"nearness of {what} to {facts['nearness']['images']}: cosine {near['cosine']:.3f}"
                f", rank {near['rank']:.2f}, domain transfer {near['domain_transfer']:.3f}, "
                f"class transfer {near['class_transfer']:.3f}"
            )
    if (warning := made.warning()) is not None:
        lines.append(warning)
    lines.append(f"Wrote {len(made.images)} pictures and {SHEET} to {target}")
    return "\n".join(lines)
