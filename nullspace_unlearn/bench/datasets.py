"""Where the data of a recipe lie: every kind ends as a `Pool` of two sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.bench.recipe import (
    Bundled,
    Cifar,
    Data,
    Domains,
    FeatureFile,
    Folder,
    Recipe,
    Sets,
)
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.bundled import bundled_to_learn, bundled_to_report
from nullspace_unlearn.data.cifar import read_cifar
from nullspace_unlearn.data.find import from_features
from nullspace_unlearn.data.folders import listed_files, read_class_folders, read_folder
from nullspace_unlearn.data.source import Source, apart
from nullspace_unlearn.evaluate.compare import EVERYWHERE
from nullspace_unlearn.features import Features, read_features
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.fingerprint import Fingerprint
from nullspace_unlearn.train.shots import Shots, from_source

_ONE_DOMAIN = {EVERYWHERE[0]: "photo"}

Draw = Callable[[int, int, int], tuple[Source, Source]]


@dataclass(frozen=True, eq=False)
class Pool:
    """One data set: images to report on, and others that methods may be given.

    Attributes:
        name: Which of several data sets it is; empty where there is one.
        reported: The images to report on.
        fingerprint: What the images hold, those to report on and those that may be given.
        learned: Shots, validation images, seed -> what methods are given; None: nothing.
    """

    name: str
    reported: Source
    fingerprint: Fingerprint
    learned: Draw | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names as prompts use them."""
        return self.reported.classes

    @property
    def domains(self) -> dict[str, str]:
        """Domain -> the word prompts use for it."""
        return self.reported.words or _ONE_DOMAIN

    @property
    def covered(self) -> Bool[Tensor, "classes domains"]:
        """Cells with images to report on."""
        return self.reported.counts > 0

    def embed(self, clip: Clip | None, hidden: bool, quiet: bool) -> Features:
        """Features of the images to report on; with `hidden`, hidden features too."""
        if clip is None:
            assert self.reported.features is not None  # a recipe without a model is of features
            return self.reported.features
        return embed(clip, self.reported, quiet=quiet, hidden=hidden)

    def draw(self, clip: Clip, shots: int, validation: int, seed: int) -> tuple[Shots, Shots]:
        """What methods are given, and what they are chosen by. The last draw is kept.

        Args:
            clip: The model.
            shots: Images a cell.
            validation: Others.
            seed: Another seed draws others.

        Raises:
            ValueError: If there are too few.
        """
        return _drawn(self, clip, shots, validation, seed)


@lru_cache(maxsize=1)
def _drawn(pool: Pool, clip: Clip, shots: int, validation: int, seed: int) -> tuple[Shots, Shots]:
    assert pool.learned is not None  # `runner` has seen to it
    given, chosen = pool.learned(shots, validation, seed)
    return from_source(clip, given), from_source(clip, chosen)


def absent(data: Data, root: Path) -> str | None:
    """The first path that the data need and that is not there.

    Args:
        data: The data of a recipe.
        root: What their paths are below.

    Returns:
        The path, below the root; None where all are there.
    """
    for path in data.paths:
        if not (any(root.glob(path)) if "*" in path else (root / path).exists()):
            return path
    return None


def find_pools(recipe: Recipe, root: Path) -> tuple[Pool, ...]:
    """Look at the data of a recipe before anything is computed.

    Args:
        recipe: The recipe.
        root: What its paths are below.

    Returns:
        One pool, or one for each data set.

    Raises:
        ValueError: If the data are not there, saying where to put them; or cannot be used.
    """
    data = recipe.data
    missing = absent(data, root)
    if missing is not None:
        where = f"; {data.where}" if data.where else ""
        raise ValueError(
            f"the data of recipe {recipe.name!r} are not there: put them at "
            f"{str(root / missing)!r}, or name another --data{where}"
        )
    match data:
        case Bundled():
            pictures = bundled_to_report(data.each)
            held = Fingerprint({"reported": pictures.fingerprint, "given": "bundled pictures"})
            return (Pool("", pictures, held, bundled_to_learn),)
        case Folder():
            return (_pool("", *_folder(data, root), data.each),)
        case Domains():
            source = read_class_folders(data.folders, data.domain_words, root=root)
            if data.common:
                full = (source.counts > 0).all(1).nonzero()[:, 0].tolist()
                source = source.cut(full, range(len(source.domains)))
            return (_pool("", *_parted(source, data.held_out), data.each),)
        case Sets():
            return tuple(
                _pool(name, *_parted(_one_set(root, path), data.held_out), data.each)
                for name, path in data.sets.items()
            )
        case Cifar():
            test, train = (read_cifar(root / data.path, part) for part in ("test", "train"))
            return (_pool("", _one_domain(test), _one_domain(train), data.each),)
        case FeatureFile():
            return (_features(data, root),)


def _folder(data: Folder, root: Path) -> tuple[Source, Source | None]:
    """The images of a folder, and those that may be given."""
    folder = root / data.path

    def listings(pattern: str) -> list[Path]:
        return sorted(root.glob(pattern)) if pattern else []

    report, drawn = listings(data.report), listings(data.draw)
    whole = read_folder(folder, data.domain_words, listing=[*report, *drawn] if report else None)
    if data.domains:
        unknown = [name for name in data.domains if name not in whole.domains]
        if unknown:
            raise ValueError(f"there is no domain {unknown[0]!r}, only {', '.join(whole.domains)}")
        columns = [i for i, name in enumerate(whole.domains) if name in data.domains]
        whole = whole.cut(range(len(whole.classes)), columns)
    if not report:
        return _parted(whole, data.held_out)

    def listed(files: list[Path]) -> Source:
        names = {"/".join(parts) for file in files for parts in listed_files(folder, file)}
        some = [i for i, picture in enumerate(whole.pictures) if picture.name in names]
        return whole.subset(torch.tensor(some, dtype=torch.int64))

    return listed(report), listed(drawn) if drawn else None


def _pool(name: str, reported: Source, given: Source | None, each: int) -> Pool:
    """A pool of two sources of the same classes and domains."""
    few = reported.few(each) if each else reported
    if given is None:
        return Pool(name, few, Fingerprint({"reported": few.fingerprint}))
    try:
        left_out = apart(reported, given)[1]
    except ValueError:
        left_out = len(reported)
    if left_out:
        raise ValueError(f"{left_out} images are both reported on and given to methods")

    def learned(shots: int, validation: int, seed: int) -> tuple[Source, Source]:
        parts = given.split(shots, validation, seed)
        return parts.given, parts.validation

    held = Fingerprint({"reported": few.fingerprint, "given": given.fingerprint})
    return Pool(name, few, held, learned)


def _features(data: FeatureFile, root: Path) -> Pool:
    path = root / data.path
    features = read_features(path)
    if features.text is None:
        raise ValueError(f"feature file {str(path)!r} has no text prototypes, so nothing to edit")
    # Only classes everywhere can be forgotten from text alone.
    source = from_features(replace(features, domains=None, domain_names=()), path.name)
    return Pool("", source, Fingerprint({"reported": source.fingerprint}))


def _one_set(root: Path, path: str) -> Source:
    return read_class_folders({EVERYWHERE[0]: path}, _ONE_DOMAIN, root=root)


def _one_domain(source: Source) -> Source:
    """The same, its one domain called as in every benchmark of classes alone."""
    words = tuple(_ONE_DOMAIN.values())
    return replace(source, domains=tuple(_ONE_DOMAIN), domain_words=words)


def _parted(source: Source, held_out: float) -> tuple[Source, Source | None]:
    """The share of every cell that is reported on, and the others."""
    return source.held_out(held_out) if held_out else (source, None)
