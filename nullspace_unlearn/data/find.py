"""The front door: what a user names, as a source of the kind that it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from nullspace_unlearn.data.bundled import BUNDLED, bundled_to_report
from nullspace_unlearn.data.cifar import is_cifar, read_cifar
from nullspace_unlearn.data.folders import read_class_folders, read_folder
from nullspace_unlearn.data.shards import are_shards, read_shards
from nullspace_unlearn.data.source import NO_DOMAIN, NO_DOMAIN_WORD, Source
from nullspace_unlearn.features.features import Features, read_features

_PAIRS = re.compile(r"[^=,]+=[^=,]+(,[^=,]+=[^=,]+)*")

KINDS = (
    "images root/<domain>/<class>/* or root/<class>/*; DOMAIN=FOLDER,... of folders <class>/*; "
    "webdataset shards (a folder, or DIR/{00..03}.tar); a folder of CIFAR's binary files; a "
    "feature file; or nsu-mini: the bundled pictures"
)
"""What `open_source` takes, for help texts."""


def open_source(
    data: str | Path,
    *,
    domain_words: Mapping[str, str] | None = None,
    class_words: Mapping[str, str] | None = None,
    listing: str | Path | None = None,
    seed: int = 0,
) -> Source:
    """Open labelled images of any kind.

    Args:
        data: `nsu-mini`; a feature file; `DOMAIN=FOLDER,DOMAIN=FOLDER`; shards; CIFAR's folder; or
            a folder of images.
        domain_words: Domain -> the word that prompts use for it, in place of the rule's.
        class_words: Class folder -> the word that prompts use for it, likewise.
        listing: A file that names the images of a folder to use.
        seed: Which bundled pictures are drawn.

    Returns:
        The source; `kind` says what it was taken for.

    Raises:
        ValueError: If it cannot be used, or `listing` is given and it is no folder of images.
    """
    path, text = Path(data), str(data)
    if listing is not None:
        if text == BUNDLED or path.is_file() or are_shards(data):
            what = "the bundled pictures" if text == BUNDLED else "shards" * are_shards(data)
            raise ValueError(f"--list names images of a folder, and --data is {what or 'a file'}")
        return read_folder(data, domain_words, class_words, listing)
    if text == BUNDLED:
        return bundled_to_report(seed=seed)
    if are_shards(data):
        return read_shards(data, domain_words, class_words)
    if path.is_file():
        return from_features(read_features(path), path.name, domain_words)
    if _PAIRS.fullmatch(text) and not path.exists():
        pairs = [pair.partition("=") for pair in text.split(",")]
        folders = {domain.strip(): folder.strip() for domain, _, folder in pairs}
        if len(folders) < len(pairs):
            raise ValueError(f"{text!r} gives a domain two folders")
        return read_class_folders(folders, domain_words, class_words)
    if path.is_dir() and is_cifar(path):
        return read_cifar(path, class_words=class_words)
    return read_folder(data, domain_words, class_words)


def from_features(
    features: Features, name: str, domain_words: Mapping[str, str] | None = None
) -> Source:
    """Features as a source.

    Args:
        features: The features.
        name: What reports call them.
        domain_words: Domain -> the word that prompts use for it.

    Returns:
        The source.
    """
    given = {NO_DOMAIN: NO_DOMAIN_WORD, **(domain_words or {})}
    zeros = features.provenance.get("zero_rows")
    index = features.domains
    return Source(
        name=str(features.provenance.get("images") or name),
        kind="a feature file",
        classes=features.class_names,
        domains=features.domain_names,
        domain_words=tuple(given.get(name, name) for name in features.domain_names),
        class_index=features.labels,
        domain_index=torch.zeros_like(features.labels) if index is None else index,
        features=features,
        notes=(f"{zeros} rows of zeros are left out: they are of no image",) if zeros else (),
    )
