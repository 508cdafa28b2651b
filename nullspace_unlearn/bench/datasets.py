"""Where the data of a recipe lie and how they are read: every kind ends as a `Pool`."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor

from nullspace_unlearn.bench.cifar import find_cifar
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
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.folders import (
    SUFFIXES,
    ImageFile,
    ImageSet,
    few,
    find_images,
    shuffled_cells,
)
from nullspace_unlearn.evaluate import pictures
from nullspace_unlearn.evaluate.compare import EVERYWHERE
from nullspace_unlearn.features import Features, embed, read_features
from nullspace_unlearn.train.shots import Shots, from_bundled, from_images, from_tensors, split

_ONE_DOMAIN = {EVERYWHERE[0]: "photo"}
_WORDNET = re.compile(r"^n\d{8}[-_ ]?")
_IMAGENET = 1000

Draw = Callable[[Clip, int, int, int], tuple[Shots, Shots]]


@dataclass(frozen=True, eq=False)
class Pool:
    """One data set: images to report on, and others that methods may be given.

    Attributes:
        name: Which of several data sets it is; empty where there is one.
        classes: Class names as prompts use them.
        domains: Domain -> the word prompts use for it.
        covered: `[classes, domains]` cells with images to report on.
        digest: Changes where the images do.
        embed: Model, whether to keep hidden features, whether to leave out progress bars ->
            features of the images to report on.
        draw: Model, shots, validation images, seed -> what methods are given; None: nothing. The
            last draw is kept.
    """

    name: str
    classes: tuple[str, ...]
    domains: Mapping[str, str]
    covered: Bool[Tensor, "classes domains"]
    digest: str
    embed: Callable[[Any, bool, bool], Features]
    draw: Draw | None = None


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
            return (_bundled(data),)
        case Folder():
            return (_folder(data, root),)
        case Domains():
            images = _class_folders(root, data.folders, data.domain_words, data.names)
            if data.common:
                images = _only(images, classes=(images.counts > 0).all(1))
            return (_pool("", *_parted(images, data.held_out), data.each),)
        case Sets():
            return tuple(
                _pool(name, *_parted(_one_set(root, path), data.held_out), data.each)
                for name, path in data.sets.items()
            )
        case Cifar():
            return (_cifar(data, root),)
        case FeatureFile():
            return (_features(data, root),)


def _bundled(data: Bundled) -> Pool:
    domains = {name: name for name in mini.DOMAINS}

    @lru_cache(maxsize=1)
    def draw(clip: Clip, shots: int, validation: int, seed: int) -> tuple[Shots, Shots]:
        return from_bundled(clip, mini.CLASSES, mini.DOMAINS, shots, validation, seed)

    return Pool(
        name="",
        classes=mini.CLASSES,
        domains=domains,
        covered=torch.ones(len(mini.CLASSES), len(domains), dtype=torch.bool),
        digest=f"bundled pictures, {data.each} a cell",
        embed=lambda clip, hidden, quiet: pictures.embed_pictures(
            clip, each=data.each, quiet=quiet, hidden=hidden
        ),
        draw=draw,
    )


def _folder(data: Folder, root: Path) -> Pool:
    words = dict(data.domain_words)
    folder = root / data.path

    def listed(pattern: str) -> ImageSet | None:
        files = sorted(root.glob(pattern)) if pattern else []
        found = [find_images(folder, words, file) for file in files]
        return _of_domains(_joined(folder, found), data.domains) if found else None

    report, drawn = listed(data.report), listed(data.draw)
    if report is None:
        images = _of_domains(find_images(folder, words), data.domains)
        report, drawn = _parted(images, data.held_out)
    elif drawn is not None:
        report, drawn = _of_one_grid(report, drawn)
    return _pool("", report, drawn, data.each)


def _pool(name: str, report: ImageSet, drawn: ImageSet | None, each: int) -> Pool:
    """A pool of image files; the two sets must be of the same classes and domains."""
    if drawn is not None:
        given_too = {path.resolve() for path in drawn.paths}
        if shared := [path for path in report.paths if path.resolve() in given_too]:
            raise ValueError(
                f"{len(shared)} images are both reported on and given to methods, the first "
                f"{str(shared[0])!r}"
            )
    reported = few(report, each) if each else report
    reported = _named(reported)
    given = None if drawn is None else _named(drawn)

    @lru_cache(maxsize=1)
    def draw(clip: Clip, shots: int, validation: int, seed: int) -> tuple[Shots, Shots]:
        assert given is not None  # `Pool.draw` is None then
        parts = split(given, shots, validation, seed)
        return from_images(clip, parts.train), from_images(clip, parts.validation)

    return Pool(
        name=name,
        classes=reported.classes,
        domains=dict(zip(reported.domains, reported.domain_words, strict=True)),
        covered=reported.counts > 0,
        digest=_digest(reported.root, [*reported.paths, *(given.paths if given else ())]),
        embed=lambda clip, hidden, quiet: embed(clip, reported, quiet=quiet, hidden=hidden),
        draw=None if given is None else draw,
    )


def _features(data: FeatureFile, root: Path) -> Pool:
    path = root / data.path
    features = read_features(path)
    if features.text is None:
        raise ValueError(f"feature file {str(path)!r} has no text prototypes, so nothing to edit")
    # Names only label rows here, and ImageNet has two cranes.
    times = Counter[str]()
    names = []
    for name in features.class_names:
        times[name] += 1
        names.append(name if times[name] == 1 else f"{name} ({times[name]})")
    features = replace(features, class_names=tuple(names), domains=None, domain_names=())
    covered = torch.zeros(len(names), 1, dtype=torch.bool)
    covered[features.labels] = True
    return Pool(
        name="",
        classes=features.class_names,
        domains=_ONE_DOMAIN,
        covered=covered,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        embed=lambda *_: features,
    )


def _cifar(data: Cifar, root: Path) -> Pool:
    files = find_cifar(root / data.path)
    reported, labels = files.read(files.test)
    if data.each:
        chosen = _first_of_each(labels, data.each)
        reported, labels = reported[chosen], labels[chosen]
    covered = torch.zeros(len(files.classes), 1, dtype=torch.bool)
    covered[torch.from_numpy(labels)] = True

    @lru_cache(maxsize=1)
    def draw(clip: Clip, shots: int, validation: int, seed: int) -> tuple[Shots, Shots]:
        images, own = files.read(files.train)
        order = np.random.default_rng(seed).permutation(len(own))
        both = order[_first_of_each(own[order], shots + validation)]
        first = np.isin(both, order[_first_of_each(own[order], shots)])
        return (
            _array_shots(clip, images[both[first]], own[both[first]]),
            _array_shots(clip, images[both[~first]], own[both[~first]]),
        )

    return Pool(
        name="",
        classes=files.classes,
        domains=_ONE_DOMAIN,
        covered=covered,
        digest=_digest(files.folder, files.paths),
        embed=lambda clip, *_: _embed_arrays(clip, reported, labels, files.classes),
        draw=draw,
    )


def _array_shots(
    clip: Clip, images: UInt8[np.ndarray, "n rows columns 3"], labels: Int[np.ndarray, " n"]
) -> Shots:
    tensors = [clip.preprocess(Image.fromarray(one)) for one in images]
    shown = torch.stack(tensors) if tensors else torch.empty(0, 3, *clip.image_size)
    index = torch.from_numpy(labels)
    return from_tensors(shown, index, torch.zeros_like(index))


def _embed_arrays(
    clip: Clip, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> Features:
    parts = []
    for start in range(0, len(images), 64):
        batch = [clip.preprocess(Image.fromarray(one)) for one in images[start : start + 64]]
        parts.append(clip.encode_image(torch.stack(batch)).cpu())
    return Features(torch.cat(parts), torch.from_numpy(labels), classes)


def _first_of_each(labels: np.ndarray, each: int) -> np.ndarray:
    """The places of the first so many of every label, ascending."""
    return np.sort(np.concatenate([np.nonzero(labels == c)[0][:each] for c in np.unique(labels)]))


def _one_set(root: Path, path: str) -> ImageSet:
    return _class_folders(root, {EVERYWHERE[0]: path}, _ONE_DOMAIN, "folder")


def _class_folders(
    root: Path, folders: Mapping[str, str], words: Mapping[str, str], names: str
) -> ImageSet:
    """Images of folders `<folder>/<class>/*`, one folder a domain."""
    found = [
        (_class_of(images.name), domain, file)
        for domain, folder in folders.items()
        for images in sorted((root / folder).iterdir())
        if images.is_dir() and not images.name.startswith(".")
        for file in sorted(images.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
    ]
    if names == "imagenet":
        by_number = _imagenet(root / next(iter(folders.values())))
        unknown = {file.parent.name for _, _, file in found} - by_number.keys()
        if unknown:
            raise ValueError(f"{min(unknown)!r} is no class of ImageNet's 1,000, under {root}")
        found = [(by_number[file.parent.name], domain, file) for _, domain, file in found]
    return _image_set(root, found, {name: words.get(name, name) for name in folders})


def _imagenet(first: Path) -> dict[str, str]:
    """WordNet number -> name: sorted numbers are in the order of open_clip's names."""
    from open_clip import IMAGENET_CLASSNAMES

    numbers = sorted(path.name for path in first.iterdir() if path.is_dir())
    if len(numbers) != _IMAGENET or not all(map(_WORDNET.fullmatch, numbers)):
        raise ValueError(
            f"{str(first)!r} holds {len(numbers)} folders; names: imagenet takes the 1,000 folders "
            "n01440764 to n15075141 in the first domain"
        )
    return dict(zip(numbers, IMAGENET_CLASSNAMES, strict=True))


def _class_of(folder: str) -> str:
    """A class by its folder: without a WordNet number in front, blanks for underscores."""
    return (_WORDNET.sub("", folder) or folder).replace("_", " ")


def _named(images: ImageSet) -> ImageSet:
    """The same with class names as prompts use them."""
    return replace(images, classes=tuple(_class_of(name) for name in images.classes))


def _image_set(
    root: Path, found: Sequence[tuple[str, str, ImageFile]], domains: Mapping[str, str]
) -> ImageSet:
    classes = {name: i for i, name in enumerate(sorted({name for name, _, _ in found}))}
    if len(classes) < 2:
        raise ValueError(f"there are images of {len(classes)} classes below {str(root)!r}, not 2")
    columns = {key: i for i, key in enumerate(domains)}
    if empty := sorted(columns.keys() - {domain for _, domain, _ in found}):
        raise ValueError(f"domain {empty[0]!r} holds no images; the layout is <folder>/<class>/*")
    return ImageSet(
        root=root,
        classes=tuple(classes),
        domains=tuple(columns),
        domain_words=tuple(domains.values()),
        paths=tuple(path for _, _, path in found),
        class_index=torch.tensor([classes[name] for name, _, _ in found]),
        domain_index=torch.tensor([columns[domain] for _, domain, _ in found]),
    )


def _cells(images: ImageSet) -> list[tuple[str, str, ImageFile]]:
    index = zip(
        images.class_index.tolist(), images.domain_index.tolist(), images.paths, strict=True
    )
    return [(images.classes[c], images.domains[d], path) for c, d, path in index]


def _words(*some: ImageSet) -> dict[str, str]:
    return {k: w for one in some for k, w in zip(one.domains, one.domain_words, strict=True)}


def _joined(root: Path, some: Sequence[ImageSet]) -> ImageSet:
    """Several sets as one, in the order of their domains, classes and files."""
    found = {cell[2].relative_to(root).as_posix(): cell for one in some for cell in _cells(one)}
    return _image_set(
        root, [found[name] for name in sorted(found)], dict(sorted(_words(*some).items()))
    )


def _of_one_grid(one: ImageSet, other: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Two sets with the same classes and domains, of which either may lack images."""
    classes = tuple(sorted({*one.classes, *other.classes}))
    domains = dict(sorted(_words(one, other).items()))

    def again(images: ImageSet) -> ImageSet:
        rows = torch.tensor([classes.index(name) for name in images.classes])
        columns = torch.tensor([list(domains).index(name) for name in images.domains])
        return replace(
            images,
            classes=classes,
            domains=tuple(domains),
            domain_words=tuple(domains.values()),
            class_index=rows[images.class_index],
            domain_index=columns[images.domain_index],
        )

    return again(one), again(other)


def _of_domains(images: ImageSet, domains: Sequence[str]) -> ImageSet:
    unknown = [name for name in domains if name not in images.domains]
    if unknown:
        raise ValueError(f"there is no domain {unknown[0]!r}, only {', '.join(images.domains)}")
    if not domains:
        return images
    chosen = [cell for cell in _cells(images) if cell[1] in domains]
    words = {key: word for key, word in _words(images).items() if key in domains}
    return _image_set(images.root, chosen, words)


def _only(images: ImageSet, classes: Bool[Tensor, " classes"]) -> ImageSet:
    kept = {name for name, stays in zip(images.classes, classes.tolist(), strict=True) if stays}
    return _image_set(images.root, [c for c in _cells(images) if c[0] in kept], _words(images))


def _parted(images: ImageSet, held_out: float) -> tuple[ImageSet, ImageSet | None]:
    """The share of every cell that is reported on, at least one image, and the others."""
    if not held_out:
        return images, None
    report: list[int] = []
    for cell in shuffled_cells(images, 0, 2):
        report += cell[: max(1, round(held_out * len(cell)))].tolist()
    others = sorted(set(range(len(images))) - set(report))
    return images.subset(torch.tensor(sorted(report))), images.subset(torch.tensor(others))


def _digest(root: Path, paths: Sequence[ImageFile]) -> str:
    said = [
        (path.relative_to(root).as_posix(), path.stat().st_size if isinstance(path, Path) else None)
        for path in paths
    ]
    return hashlib.sha256(repr(said).encode()).hexdigest()
