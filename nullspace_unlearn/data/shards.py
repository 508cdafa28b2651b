"""webdataset shards: tar files of labelled images, indexed once and read in place.

A sample is the files of one key: `KEY.jpg` (or another image suffix), `KEY.cls`, its label as text,
and maybe its domain, as text in `KEY.domain` or as "domain" in `KEY.json`. `classnames.txt`, one
name a line in the labels' order, lies beside the shards or one folder above, and so may the class
templates: CLIP_benchmark's layout. Nothing is unpacked, and nothing but text and image files is
ever decoded: the standard library reads tar headers, where webdataset's own decoders know pickles
too.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from nullspace_unlearn.data.folders import holds_images
from nullspace_unlearn.data.names import check_domains, spoken
from nullspace_unlearn.data.picture import SUFFIXES, decode
from nullspace_unlearn.data.source import NO_DOMAIN, NO_DOMAIN_WORD, Source
from nullspace_unlearn.files import check_regular
from nullspace_unlearn.progress import progress
from nullspace_unlearn.words import check_template

NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"

_MOST_BYTES = 1 << 28  # of an image file
_MOST_TEXT = 1 << 20  # of a label or a domain
_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LAYOUT = f"shards are DIR/*.tar or DIR/<domain>/*.tar, with {NAMES_FILE} in DIR or above"


@dataclass(frozen=True, slots=True)
class Member:
    """An image inside a shard.

    Attributes:
        root: The folder that the shard is seen from.
        shard: The tar file, below that.
        member: The member's name there.
        offset: Of its first byte in the shard.
        size: Its bytes.
    """

    root: Path
    shard: str
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Its name below the root: `shard.tar:KEY.jpg`."""
        return f"{self.shard}:{self.member}"

    def open(self) -> BinaryIO:
        """Its bytes, read from the shard.

        Raises:
            ValueError: If they are too many for a picture.
            OSError: If the shard cannot be read that far.
        """
        if self.size > _MOST_BYTES:
            raise ValueError(f"{self.size} bytes are too many for a picture, {_MOST_BYTES} allowed")
        with (self.root / self.shard).open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError("the shard ends in the middle of it")
        return io.BytesIO(data)

    @property
    def holder(self) -> tuple[Path, Path]:
        """The folder that the shard is seen from, and the shard."""
        return self.root, self.root / self.shard

    @property
    def place(self) -> tuple[int, int]:
        """Its first byte in the shard, and how many they are."""
        return self.offset, self.size

    def decode(self) -> Image.Image:
        """The image in RGB."""
        with self.open() as file:
            return decode(file)

    def __str__(self) -> str:
        return f"{self.root / self.shard}:{self.member}"


@dataclass(frozen=True)
class _Sample:
    """What a shard says of one image."""

    image: Member
    label: int
    domain: str


def read_shards(
    data: str | Path,
    domain_words: Mapping[str, str] | None = None,
    class_words: Mapping[str, str] | None = None,
) -> Source:
    """Index the images of webdataset shards; only headers and labels are read.

    Args:
        data: A folder that holds shards or, for each domain, a folder of shards; or a path in which
            `{00..03}` stands for each number of that range.
        domain_words: Domain -> the word that prompts use for it, in place of the rule's;
            `NO_DOMAIN` goes by `NO_DOMAIN_WORD`.
        class_words: Class name -> the word that prompts use for it.

    Returns:
        The images, by shard (numbers in names counted as numbers) and by place in it. A sample's
        own domain goes before that of its folder; samples with neither are of domain `NO_DOMAIN`.

    Raises:
        ValueError: If there is no shard, a shard is missing, cut short or no tar file, the class
            names cannot be read or are fewer than two, folders of shards are parts of one data set
            (train, test), or a sample lacks its image or its label, or says something else than it
            should; names the shard and the sample.
    """
    shards, root = _shards(str(data))
    names = _lines(root, NAMES_FILE)
    if names is None:
        raise ValueError(f"the shards in {str(root)!r} have no {NAMES_FILE}; {_LAYOUT}")
    if len(names) < 2:
        raise ValueError(f"class names in {str(root)!r} must be at least 2, one a line")
    folders = {domain for shard in shards if (domain := _folder_domain(shard, root)) != NO_DOMAIN}
    check_domains(root, folders)
    samples = [
        sample
        for shard in progress(shards, desc="indexing", unit="shard", hidden=None, leave=False)
        for sample in _samples(shard, root, _folder_domain(shard, root), len(names))
    ]
    if not samples:
        raise ValueError(f"the shards of {str(data)!r} hold no samples; {_LAYOUT}")
    domains = tuple(sorted({sample.domain for sample in samples}))
    where = {name: i for i, name in enumerate(domains)}
    words = spoken("domain", domains, {NO_DOMAIN: NO_DOMAIN_WORD, **(domain_words or {})})
    classes = spoken("class", names, class_words)
    templates = tuple(check_template(t, ("class",)) for t in _lines(root, TEMPLATES_FILE) or ())
    said = [f"class templates are those of {TEMPLATES_FILE}"] if templates else []
    return Source(
        name=root.name or root.resolve().name,
        kind=f"{len(shards)} webdataset shards",
        classes=classes.words,
        domains=domains,
        domain_words=words.words,
        class_index=torch.tensor([sample.label for sample in samples]),
        domain_index=torch.tensor([where[sample.domain] for sample in samples]),
        pictures=tuple(sample.image for sample in samples),
        templates=templates,
        notes=(*classes.said, *words.said, *said),
    )


def are_shards(data: str | Path) -> bool:
    """Whether some data are shards: a name or pattern that ends in .tar, or a folder of such.

    A folder that holds images is not, whatever else lies in it.
    """
    path = Path(data)
    if path.suffix == ".tar":
        return True
    there = any(path.glob("*.tar")) or any(path.glob("*/*.tar"))
    return there and not holds_images(path)


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


def _lines(root: Path, name: str) -> tuple[str, ...] | None:
    """The lines of a file beside the shards or one folder above; None where there is none."""
    # Names may come twice, as two of ImageNet's do.
    for folder in (root, root.absolute().parent):
        file = folder / name
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8-sig").rstrip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{str(file)!r} cannot be read: {error}") from None
        lines = tuple(line.strip() for line in text.split("\n")) if text else ()
        if not all(lines):
            raise ValueError(f"{str(file)!r} must hold one name or template a line and none empty")
        return lines
    return None


def _samples(shard: Path, root: Path, domain: str, classes: int) -> Iterator[_Sample]:
    """The samples of a shard in its order."""
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    domains: dict[str, str] = {}
    below = shard.relative_to(root).as_posix()
    try:
        check_regular(shard)
        with shard.open("rb") as file:
            for tar, member in _members(file):
                key, suffix = _key(member.name)
                if not member.isreg() or member.issparse():
                    continue
                if suffix in SUFFIXES:
                    if key in images:
                        raise ValueError(f"sample {key!r} has two images")
                    place = member.offset_data, member.size
                    images[key] = Member(root, below, member.name, *place)
                elif suffix == ".cls":
                    labels[key] = _label(key, _text(tar, member), classes)
                elif suffix in (".domain", ".json"):
                    said = _domain(key, suffix, _text(tar, member))
                    if said is not None:
                        domains[key] = said
        # KEY.mask.png is no sample of its own where KEY.jpg is one, and KEY.coarse.cls no label.
        whole = images.keys() & labels.keys()
        for what in (images, labels):
            for key in [key for key in what if key not in whole and _stem(key) in whole]:
                del what[key]
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


def _members(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """What a tar file holds, or several written one behind another."""
    more = True
    while more:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # Else they would gather, for every file of a shard.
                tar.members.clear()  # type: ignore[attr-defined]
                yield tar, member
            more = _goes_on(file, tar.offset)


def _goes_on(file: BinaryIO, offset: int) -> bool:
    """Whether another archive begins behind the end of one, where the file is left then."""
    # tarfile takes a header cut short, or a damaged one, for the end.
    file.seek(offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise ValueError(f"it is cut short or damaged after {offset} bytes")
    while block := file.read(_BLOCK):
        if any(block):
            file.seek(-len(block), os.SEEK_CUR)
            return True
    return False


def _key(name: str) -> tuple[str, str]:
    """A member's key and lower-case suffix, parted at the last dot of its base name."""
    if not name.isprintable():
        raise ValueError(f"it holds a file by the name {name!r}")
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return folder + slash + (stem if dot else base), (dot + suffix if dot else "").lower()


def _stem(key: str) -> str:
    """A key up to its first dot, as webdataset's own reader parts it."""
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.partition(".")[0]


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
