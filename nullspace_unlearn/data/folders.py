"""Folders of images: `root/<domain>/<class>/*`, or without domains `root/<class>/*`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch

from nullspace_unlearn.data.names import check_domains, spoken
from nullspace_unlearn.data.picture import SUFFIXES, File
from nullspace_unlearn.data.source import NO_DOMAIN, NO_DOMAIN_WORD, Source
from nullspace_unlearn.files import read_text
from nullspace_unlearn.spelling import listed
from nullspace_unlearn.words import check_names

_LAYOUT = "the layout is root/<domain>/<class>/<image>, or root/<class>/<image> without domains"
_LABEL = re.compile(r"(?<=\S)\s+\d+$")


@dataclass
class _Found:
    """What lies below a folder.

    Attributes:
        images: Path parts, below the root, of every image.
        others: First two path parts -> endings of files that are no images.
        shards: Tar files in the folder or one below.
    """

    images: list[tuple[str, ...]] = field(default_factory=list)
    others: dict[tuple[str, ...], Counter[str]] = field(default_factory=dict)
    shards: int = 0


def read_folder(
    root: str | Path,
    domain_words: Mapping[str, str] | None = None,
    class_words: Mapping[str, str] | None = None,
    listing: str | Path | Sequence[str | Path] | None = None,
) -> Source:
    """Find the images of a folder `root/<domain>/<class>/*` or `root/<class>/*`.

    Each domain is what torchvision calls an ImageFolder: sub-folders of a class are searched, files
    of other types are passed over. Hidden files and folders (a leading dot) are passed over too.
    Classes and domains are those that hold at least one image; a class may be absent from a domain.

    Args:
        root: The folder.
        domain_words: Domain folder -> the word that prompts use for it, in place of the rule's.
        class_words: Class folder -> the word that prompts use for it.
        listing: A text file, or several, that name the images to use, one `domain/class/file` a
            line, relative to root; a number behind it (the label of Dassl's split files) is passed
            over, since the folder says the class.

    Returns:
        The images, sorted by domain, class and name.

    Raises:
        ValueError: If the folder or the listing cannot be read, holds no image or fewer than two
            classes; if two of them, or two domains, differ in outer blanks alone; if domains are
            parts of one data set (train, test); or if the listing names files that are missing
            or outside the folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"image folder {str(root)!r} is not a folder")
    if listing is None:
        found = look(root)
        if not found.images:
            what = "holds no images" if os.listdir(root) else "is empty"
            raise ValueError(f"image folder {str(root)!r} {what}; {_LAYOUT} ({' '.join(SUFFIXES)})")
    else:
        lists = [listing] if isinstance(listing, (str, Path)) else listing
        found = _Found(sorted({parts for one in lists for parts in listed_files(root, one)}))
    return _grid(root, found, domain_words, class_words)


def read_class_folders(
    folders: Mapping[str, str | Path],
    domain_words: Mapping[str, str] | None = None,
    class_words: Mapping[str, str] | None = None,
    root: str | Path = ".",
) -> Source:
    """Find the images of folders `<folder>/<class>/*`, one folder a domain.

    Args:
        folders: Domain -> its folder.
        domain_words: Domain -> the word that prompts use for it, in place of the rule's.
        class_words: Class folder -> the word that prompts use for it.
        root: What the folders are below.

    Returns:
        The images, by domain as given, class and name.

    Raises:
        ValueError: If a folder cannot be read or holds no image, or there are fewer than two
            classes.
    """
    images: list[tuple[str, str, File]] = []
    notes: list[str] = []
    for domain, below in folders.items():
        folder = Path(root) / below
        if not folder.is_dir():
            raise ValueError(f"image folder {str(folder)!r} is not a folder")
        found = look(folder)
        inside = [parts for parts in found.images if len(parts) > 1]
        if not inside:
            raise ValueError(f"domain {domain!r} holds no images; the layout is <folder>/<class>/*")
        images += [(domain, p[0], File(folder, "/".join(p), domain)) for p in inside]
        notes += _lost(found, 1)
    return _source(
        ", ".join(dict.fromkeys(Path(folder).name for folder in folders.values())),
        "a folder <class>/* for each domain",
        images,
        tuple(folders),
        domain_words,
        class_words,
        notes,
    )


def look(root: Path) -> _Found:
    """What lies below a folder.

    Args:
        root: The folder.

    Returns:
        Its images, sorted by their names, and what else there is.

    Raises:
        ValueError: If a folder cannot be opened.
    """
    found = _Found()
    try:
        for path in _files(root):
            parts = path.relative_to(root).parts
            suffix = path.suffix.lower()
            if path.name.lower().endswith(SUFFIXES):
                # A pipe is no file, and reading it would never end.
                if len(parts) > 1 and path.is_file():
                    found.images.append(parts)
            elif suffix == ".tar" and len(parts) < 3:
                found.shards += 1
            elif len(parts) > 1:
                found.others.setdefault(parts[: min(2, len(parts) - 1)], Counter())[suffix] += 1
    except OSError as error:
        raise ValueError(
            f"image folder {str(error.filename)!r} cannot be read: {error.strerror}"
        ) from None
    found.images.sort()
    return found


def holds_images(root: Path) -> bool:
    """Whether there is an image in a folder below a folder, however deep."""
    try:
        return any(
            path.parent != root and path.name.lower().endswith(SUFFIXES) for path in _files(root)
        )
    except OSError:  # which `look` names
        return True


def listed_files(root: Path, listing: str | Path) -> list[tuple[str, ...]]:
    """Path parts, below a folder, of every image that a listing names.

    Args:
        root: The folder.
        listing: The listing.

    Raises:
        ValueError: If it cannot be read, names no file, or one that is missing or outside.
    """
    listing = Path(listing)
    lines = read_text(listing, stdin=True).splitlines()
    files = set()
    for number, line in enumerate(lines, 1):
        path = PurePosixPath(_LABEL.sub("", line.strip()))
        if path == PurePosixPath():
            continue
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or "\0" in line:
            raise ValueError(
                f"listing {str(listing)!r}, line {number}: {str(path)!r} is not a path "
                "domain/class/file below the image folder"
            )
        files.add(path.parts)
    if not files:
        raise ValueError(f"listing {str(listing)!r} names no files")
    ordered = sorted(files)
    missing = [parts for parts in ordered if not root.joinpath(*parts).is_file()]
    if missing:
        raise ValueError(
            f"listing {str(listing)!r} names {len(missing)} files that are not in {str(root)!r}, "
            f"the first {'/'.join(missing[0])!r}"
        )
    return ordered


def _grid(
    root: Path,
    found: _Found,
    domain_words: Mapping[str, str] | None,
    class_words: Mapping[str, str] | None,
) -> Source:
    """The images as root/<domain>/<class>/* or root/<class>/*, whichever they lie in."""
    shallow = {parts[0] for parts in found.images if len(parts) == 2}
    deep = {parts[0] for parts in found.images if len(parts) > 2}
    flat = deep < shallow
    if not flat:
        check_domains(root, deep)
    notes = _lost(found, 1 if flat else 2)
    stray = 0 if flat else sum(len(parts) == 2 for parts in found.images)
    if stray:
        notes.append(f"{stray} images lie outside a class folder and are passed over")
    if found.shards:
        notes.append(f"{found.shards} .tar files beside the images are passed over")
    images = [
        (NO_DOMAIN if flat else parts[0], parts[0 if flat else 1], File(root, "/".join(parts)))
        for parts in found.images
        if flat or len(parts) > 2
    ]
    domains = tuple(sorted({domain for domain, _, _ in images}))
    kind = "images root/<class>/*" if flat else "images root/<domain>/<class>/*"
    name = root.name or root.resolve().name
    return _source(name, kind, images, domains, domain_words, class_words, notes)


def _source(
    name: str,
    kind: str,
    images: Sequence[tuple[str, str, File]],
    domains: tuple[str, ...],
    domain_words: Mapping[str, str] | None,
    class_words: Mapping[str, str] | None,
    notes: Sequence[str],
) -> Source:
    """A source from the domain, the class folder and the file of each image."""
    folders = tuple(sorted({class_ for _, class_, _ in images}))
    check_names("domain", domains)
    check_names("class", folders)
    if len(folders) < 2:
        raise ValueError(
            f"image folder {name!r} has images of 1 class, {folders[0]!r}; at least 2 are needed, "
            f"and {_LAYOUT}"
        )
    classes = spoken("class", folders, class_words)
    words = spoken("domain", domains, {NO_DOMAIN: NO_DOMAIN_WORD, **(domain_words or {})})
    row = {folder: i for i, folder in enumerate(folders)}
    column = {domain: i for i, domain in enumerate(domains)}
    return Source(
        name=name,
        kind=kind,
        classes=classes.words,
        domains=domains,
        domain_words=words.words,
        class_index=torch.tensor([row[class_] for _, class_, _ in images]),
        domain_index=torch.tensor([column[domain] for domain, _, _ in images]),
        pictures=tuple(file for _, _, file in images),
        notes=(*notes, *classes.said, *words.said),
    )


def _lost(found: _Found, depth: int) -> list[str]:
    """A line about class folders that hold files, and none that counts as an image."""
    there = {parts[:depth] for parts in found.images}
    lost: dict[tuple[str, ...], set[str]] = {}
    for parts, kinds in sorted(found.others.items()):
        if len(parts) >= depth and parts[:depth] not in there:
            lost.setdefault(parts[:depth], set()).update(kinds)
    if not lost:
        return []
    named = [
        f"{'/'.join(parts)} ({' '.join(sorted(kind or 'no ending' for kind in kinds))})"
        for parts, kinds in lost.items()
    ]
    return [f"folders that hold no image by its ending are left out: {listed(named, 3)}"]


def _files(
    folder: Path, depth: int = 0, above: tuple[str, ...] = (), seen: set[str] | None = None
) -> Iterator[Path]:
    """Every file below a folder, hidden ones left out; what links lead to, once in a class."""
    real = os.path.realpath(folder)
    # A link to a folder above would be followed for ever.
    if real in above or (seen is not None and real in seen):
        return
    if depth > 1:
        seen = set() if seen is None else seen
        seen.add(real)
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        path = folder / name
        if path.is_dir():
            yield from _files(path, depth + 1, (*above, real), seen)
        else:
            yield path
