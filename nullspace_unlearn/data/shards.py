"""webdataset shards: tar files of labelled images, indexed once and read in place.

A sample is the files of one key: `KEY.jpg` (or another image suffix), `KEY.cls`, its label as text,
and maybe its domain, as text in `KEY.domain` or as "domain" in `KEY.json`. `classnames.txt`, one
name a line in the labels' order, lies beside the shards or one folder above: CLIP_benchmark's
layout. Nothing is unpacked, and nothing but text and image files is ever decoded: the standard
library reads tar headers, where webdataset's own decoders know pickles too.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

import torch
from tqdm import tqdm

from nullspace_unlearn.data.folders import SUFFIXES, ImageSet

NAMES_FILE = "classnames.txt"
NO_DOMAIN = "all"
"""The domain of samples that name none."""
NO_DOMAIN_WORD = "picture"
"""The word that prompts use for it."""

_MOST_BYTES = 1 << 28  # of an image file
_MOST_TEXT = 1 << 20  # of a label or a domain
_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LAYOUT = f"shards are DIR/*.tar or DIR/<domain>/*.tar, with {NAMES_FILE} in DIR or above"


@dataclass(frozen=True)
class Member:
    """An image inside a shard.

    Attributes:
        shard: The tar file.
        name: The member's name there.
        offset: Of its first byte in the shard.
        size: Its bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def open(self, mode: Literal["rb"] = "rb", /) -> BinaryIO:
        """Its bytes, read from the shard.

        Raises:
            ValueError: If they are too many for a picture.
            OSError: If the shard cannot be read that far.
        """
        if self.size > _MOST_BYTES:
            raise ValueError(f"{self.size} bytes are too many for a picture, {_MOST_BYTES} allowed")
        with self.shard.open(mode) as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError("the shard ends in the middle of it")
        return io.BytesIO(data)

    def relative_to(self, root: Path, /) -> PurePosixPath:
        """Its name below a folder: `shard.tar:KEY.jpg`."""
        return PurePosixPath(f"{self.shard.relative_to(root).as_posix()}:{self.name}")

    def resolve(self) -> Member:
        """The same image, its shard by its real path."""
        return replace(self, shard=self.shard.resolve())

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


@dataclass(frozen=True)
class _Sample:
    """What a shard says of one image."""

    image: Member
    label: int
    domain: str


def are_shards(data: str | Path) -> bool:
    """Whether some data are shards: a name or pattern that ends in .tar, or a folder of such."""
    path = Path(data)
    return path.suffix == ".tar" or any(path.glob("*.tar")) or any(path.glob("*/*.tar"))


def find_shards(data: str | Path, domain_words: Mapping[str, str] | None = None) -> ImageSet:
    """Index the images of webdataset shards; only headers and labels are read.

    Args:
        data: A folder that holds shards or, for each domain, a folder of shards; or a path in which
            `{00..03}` stands for each number of that range.
        domain_words: Domain -> the word that prompts use for it; others go by their own name, with
            blanks for underscores, `NO_DOMAIN` by `NO_DOMAIN_WORD`.

    Returns:
        The images, by shard (numbers in names counted as numbers) and by place in it. A sample's
        own domain goes before that of its folder; samples with neither are of domain `NO_DOMAIN`.

    Raises:
        ValueError: If there is no shard, a shard is missing, cut short or no tar file, the class
            names cannot be read or are fewer than two, or a sample lacks its image or its label, or
            says something else than it should; names the shard and the sample.
    """
    shards, root = _shards(str(data))
    classes = _class_names(root)
    samples = [
        sample
        for shard in tqdm(shards, desc="indexing", unit="shard", disable=None, leave=False)
        for sample in _samples(shard, _folder_domain(shard, root), len(classes))
    ]
    if not samples:
        raise ValueError(f"the shards of {str(data)!r} hold no samples; {_LAYOUT}")
    domains = tuple(sorted({sample.domain for sample in samples}))
    where = {name: i for i, name in enumerate(domains)}
    words = {NO_DOMAIN: NO_DOMAIN_WORD, **(domain_words or {})}
    return ImageSet(
        root=root,
        classes=classes,
        domains=domains,
        domain_words=tuple(words.get(name, name.replace("_", " ")) for name in domains),
        paths=tuple(sample.image for sample in samples),
        class_index=torch.tensor([sample.label for sample in samples]),
        domain_index=torch.tensor([where[sample.domain] for sample in samples]),
    )


def _shards(data: str) -> tuple[list[Path], Path]:
    """The shards in order, and the folder that their names and domains are seen from."""
    if Path(data).is_dir():
        root = Path(data)
        found = [path for pattern in ("*.tar", "*/*.tar") for path in root.glob(pattern)]
    else:
        found = [Path(name) for name in _expand(data)]
        root = Path(os.path.commonpath([path.parent for path in found]) or ".")
        missing = [path for path in found if not path.is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(found)} shards {data!r} are not there, the first "
                f"{str(missing[0])!r}"
            )
    if not found:
        raise ValueError(f"folder {data!r} holds no shards; {_LAYOUT}")
    return sorted(set(found), key=_natural), root


def _expand(pattern: str) -> Iterator[str]:
    """Every name that a pattern with ranges {00..03} stands for."""
    match = _RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    if int(first) > int(last):
        raise ValueError(f"shards {pattern!r}: the range {match[0]} is empty")
    for number in range(int(first), int(last) + 1):
        middle = str(number).zfill(len(first))
        yield from _expand(pattern[: match.start()] + middle + pattern[match.end() :])


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key by which 9.tar comes before 10.tar, the same on every machine."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), part) if part.isdecimal() else (0, part) for part in parts]


def _folder_domain(shard: Path, root: Path) -> str:
    parts = shard.relative_to(root).parts
    return parts[0] if len(parts) > 1 else NO_DOMAIN


def _class_names(root: Path) -> tuple[str, ...]:
    # Names may come twice, as two of ImageNet's do.
    for folder in (root, root.absolute().parent):
        file = folder / NAMES_FILE
        if not file.is_file():
            continue
        try:
            names = tuple(file.read_text(encoding="utf-8").rstrip().split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"class names {str(file)!r} cannot be read: {error}") from None
        names = tuple(name.strip() for name in names)
        if len(names) < 2 or not all(names):
            raise ValueError(
                f"class names {str(file)!r} must be at least 2, one a line and none empty"
            )
        return names
    raise ValueError(f"the shards in {str(root)!r} have no {NAMES_FILE}; {_LAYOUT}")


def _samples(shard: Path, domain: str, classes: int) -> Iterator[_Sample]:
    """The samples of a shard in its order."""
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    domains: dict[str, str] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # Else they would gather, for every file of a shard.
                tar.members.clear()  # type: ignore[attr-defined]
                key, suffix = _key(member.name)
                if not member.isreg() or member.issparse():
                    continue
                if suffix in SUFFIXES:
                    if key in images:
                        raise ValueError(f"sample {key!r} has two images")
                    images[key] = Member(shard, member.name, member.offset_data, member.size)
                elif suffix == ".cls":
                    labels[key] = _label(key, _text(tar, member), classes)
                elif suffix in (".domain", ".json"):
                    said = _domain(key, suffix, _text(tar, member))
                    if said is not None:
                        domains[key] = said
            _check_end(file, tar.offset)
        lacking = next((key for key in images if key not in labels), None)
        if lacking is not None:
            raise ValueError(f"sample {lacking!r} has no label, {lacking}.cls")
        lacking = next((key for key in labels if key not in images), None)
        if lacking is not None:
            raise ValueError(f"sample {lacking!r} has no image ({' '.join(SUFFIXES)})")
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"shard {str(shard)!r} cannot be used: {error}") from None
    for key, image in images.items():
        yield _Sample(image, labels[key], domains.get(key, domain))


def _key(name: str) -> tuple[str, str]:
    """A member's key and lower-case suffix, parted at the first dot of its base name."""
    if not name.isprintable():
        raise ValueError(f"it holds a file by the name {name!r}")
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    if member.size > _MOST_TEXT:
        raise ValueError(f"{member.name!r} is of {member.size} bytes, {_MOST_TEXT} allowed")
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    try:
        return file.read().decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{member.name!r} is no text") from None


def _label(key: str, text: str, classes: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) >= classes:
        raise ValueError(
            f"the label of sample {key!r} must be from 0 to {classes - 1}, got {text[:40]!r}"
        )
    return int(text)


def _domain(key: str, suffix: str, text: str) -> str | None:
    """What a .domain or .json file says, if it speaks of a domain."""
    said: object = text
    if suffix == ".json":
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{key + suffix!r} is no JSON: {error}") from None
        if not isinstance(data, dict) or "domain" not in data:
            return None
        said = data["domain"]
    if not isinstance(said, str) or not said.strip() or not said.isprintable():
        raise ValueError(f"the domain of sample {key!r} must be a name, got {str(said)[:40]!r}")
    return said.strip()


def _check_end(file: BinaryIO, offset: int) -> None:
    # tarfile takes a header cut short, or a damaged one, for the end.
    file.seek(offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise ValueError(f"it is cut short or damaged after {offset} bytes")
