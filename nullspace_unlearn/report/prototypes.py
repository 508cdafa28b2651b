"""Synthesised pictures as a folder: to look at, to use, and how near they come to real ones."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.files import new_folder
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes import (
    DOMAIN_WORDS,
    Pictures,
    Synthesis,
    Visual,
    cell_prototypes,
    synthesise,
)
from nullspace_unlearn.prototypes.nearness import nearness
from nullspace_unlearn.report.sheet import contact_sheet
from nullspace_unlearn.words import CELL_TEMPLATES

SHEET, FEATURES, FACTS = "sheet.png", "features.safetensors", "prototypes.json"
_LONGEST = 60  # letters of a folder's name: at most 240 bytes, where file systems take 255


@dataclass(frozen=True, eq=False)
class Written:
    """What was written.

    Attributes:
        pictures: The pictures.
        facts: Where they come from and what became of each cell; plain JSON values.
    """

    pictures: Pictures
    facts: Mapping[str, Any]


def write_prototypes(
    clip: Clip,
    target: Path,
    *,
    classes: Sequence[str] = (),
    domains: Sequence[str] = (),
    vocabulary: Sequence[str] | None = None,
    domain_words: Mapping[str, str] | None = None,
    templates: Sequence[str] = (),
    synthesis: Synthesis | None = None,
    real: Source | None = None,
    cache: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Written:
    """Make pictures that stand for cells, and write them to a folder.

    A cell is what sets it apart from all the others, so all are made, and those asked for written.

    Args:
        clip: The model.
        target: The folder to write: <domain>/<class>/*.png, a sheet, features, and the facts.
        classes: The classes asked for; empty: all.
        domains: The domains asked for, by key or word; empty: all.
        vocabulary: All class names; absent: those the model's folder carries, else those of `real`.
        domain_words: Domain -> word, beside or in place of those known.
        templates: Templates holding `{class}` and `{domain}`; empty: the folder's or the default.
        synthesis: The numbers of the synthesis.
        real: Real images that nearness is measured to.
        cache: As for `prototypes.synthesise`.
        overwrite: Whether an existing folder may be replaced.
        quiet: Whether to leave out progress bars.

    Returns:
        The pictures asked for, and the facts.

    Raises:
        ValueError: If a name is unknown, `real` lacks cells that nearness needs, or the synthesis
            cannot be made.
        OutputExists: If the folder exists and `overwrite` is false.
    """
    synthesis = synthesis or Synthesis()
    names, words = _vocabulary(clip, vocabulary, domain_words or {}, real)
    keys = {**{word: key for key, word in words.items()}, **{key: key for key in words}}
    called = [keys.get(name, name) for name in domains]
    asked = _asked("class", classes, names), _asked("domain", called, tuple(words))
    common = None if real is None else _in_common(names, tuple(words), real)
    used = templates or (clip.words.cell_templates if clip.words else CELL_TEMPLATES)
    made = synthesise(clip, names, words, used, synthesis, cache=cache, quiet=quiet)
    near = None
    if real is not None and common is not None:
        near = _nearness(clip, made.features, real, common, synthesis.batch_size, quiet)
    chosen = _only(made, *asked)
    facts = {
        **_facts(clip, chosen, [words[key] for key in asked[1]]),
        "vocabulary": {"classes": list(names), "domains": words},
        "nearness": near,
    }
    with new_folder(target, overwrite) as folder:
        _write(folder, chosen, facts)
    return Written(chosen, facts)


def _vocabulary(
    clip: Clip,
    classes: Sequence[str] | None,
    words: Mapping[str, str],
    real: Source | None,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """All classes and domains, the latter with words: as given, else the model's, or the data's."""
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
    return tuple(dict.fromkeys(names)), {**others, **words}


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
