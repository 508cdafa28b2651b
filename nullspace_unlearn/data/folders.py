"""Folders of images, `root/<domain>/<class>/*`: found, listed, loaded in batches."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nullspace_unlearn.fingerprint import Fingerprint, contents_in_use
from nullspace_unlearn.words import check_names

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File names that count as images, as for torchvision's ImageFolder; case does not matter."""

_LAYOUT = "the layout is root/<domain>/<class>/<image>"
_LABEL = re.compile(r"(?<=\S)\s+\d+$")
# Resized to the model's shorter side, a thinner image than this would fill the memory.
_THINNEST = 200


@runtime_checkable
class ImageFile(Protocol):
    """Where an image lies: a `Path`, or a place inside a larger file (`shards.Member`)."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """Open the image's bytes for reading."""
        ...

    def relative_to(self, root: Path, /) -> PurePath:
        """Its name below a folder."""
        ...

    def resolve(self) -> Hashable:
        """Equal for two that are the same image."""
        ...


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images on disk and the cell of the class x domain grid that each belongs to.

    Attributes:
        root: The folder they were found in.
        classes: Names of the class folders, sorted.
        domains: Names of the domain folders, sorted.
        domain_words: The word that prompts use for each domain.
        paths: The files, sorted by domain, class and name; those of shards in their own order.
        class_index: `[n]` int64, index into `classes`.
        domain_index: `[n]` int64, index into `domains`.
    """

    root: Path
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    domain_words: tuple[str, ...]
    paths: tuple[ImageFile, ...]
    class_index: Int[Tensor, " n"]
    domain_index: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def counts(self) -> Int[Tensor, "classes domains"]:
        """Number of images in each cell."""
        grid = torch.zeros(len(self.classes), len(self.domains), dtype=torch.int64)
        one = torch.ones(len(self), dtype=torch.int64)
        return grid.index_put((self.class_index, self.domain_index), one, accumulate=True)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What features of these images depend on: their names, cells and contents, in order.

        Files are hashed, those that `fingerprint.contents_in_use` knows by what the file system
        says of them; an image in a shard counts as its place in that.
        """
        holders: list[Any] = [getattr(path, "shard", path) for path in self.paths]
        hashes = contents_in_use().of(self.root, holders)
        names, contents = hashlib.sha256(), hashlib.sha256()
        cells = zip(self.class_index.tolist(), self.domain_index.tolist(), strict=True)
        for path, (c, d), content in zip(self.paths, cells, hashes, strict=True):
            name = path.relative_to(self.root).as_posix()
            names.update(json.dumps([name, self.classes[c], self.domains[d]]).encode())
            place = [getattr(path, part, None) for part in ("offset", "size")]
            contents.update(json.dumps([content, *place]).encode())
        return Fingerprint(
            {"count": len(self), "names": names.hexdigest(), "contents": contents.hexdigest()}
        )

    def subset(self, chosen: Int[Tensor, " k"]) -> ImageSet:
        """Some of the images; the names of classes and domains stay.

        Args:
            chosen: `[k]` which images, ascending.
        """
        return replace(
            self,
            paths=tuple(self.paths[i] for i in chosen.tolist()),
            class_index=self.class_index[chosen],
            domain_index=self.domain_index[chosen],
        )

    @property
    def absent(self) -> tuple[tuple[str, str], ...]:
        """The (class, domain) cells that hold no image, where domains differ in their classes."""
        empty = (self.counts == 0).nonzero().tolist()
        return tuple((self.classes[c], self.domains[d]) for c, d in empty)


class Skipped(NamedTuple):
    """A file that could not be used as an image, and why."""

    path: ImageFile
    reason: str


class Batch(NamedTuple):
    """Some images of a set, in its order.

    Attributes:
        images: `[b, 3, rows, columns]` float32, preprocessed.
        indices: `[b]` int64, which images of the set they are.
        skipped: The files among them that could not be read, which `images` lacks.
    """

    images: Float[Tensor, "b 3 rows columns"]
    indices: Int[Tensor, " b"]
    skipped: tuple[Skipped, ...]


def find_images(
    root: str | Path,
    domain_words: Mapping[str, str] | None = None,
    listing: str | Path | None = None,
) -> ImageSet:
    """Find the images of a folder `root/<domain>/<class>/*`.

    Each domain is what torchvision calls an ImageFolder: sub-folders of a class are searched, files
    of other types are passed over. Hidden files and folders (a leading dot) are passed over too.
    Classes and domains are those that hold at least one image; a class may be absent from a domain.

    Args:
        root: The folder.
        domain_words: Domain folder -> the word that prompts use for it; a folder that is not there
            goes by its own name, with blanks for underscores.
        listing: A text file that names the images to use, one `domain/class/file` a line, relative
            to root; a number behind it (the label of Dassl's split files) is passed over, since the
            folder says the class.

    Returns:
        The images, in an order that depends on their names alone.

    Raises:
        ValueError: If the folder or the listing cannot be read, holds no image or fewer than two
            classes; if two of them, or two domains, differ in outer blanks alone; or if the listing
            names files that are missing or outside the folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"image folder {str(root)!r} is not a folder")
    if listing is not None:
        files = _listed(root, Path(listing))
    else:
        files = _found(root)
        if not files:
            what = "holds no images" if os.listdir(root) else "is empty"
            raise ValueError(f"image folder {str(root)!r} {what}; {_LAYOUT} ({' '.join(SUFFIXES)})")
    domains = tuple(sorted({parts[0] for parts in files}))
    classes = tuple(sorted({parts[1] for parts in files}))
    check_names("domain", domains)
    check_names("class", classes)
    if len(classes) < 2:
        raise ValueError(
            f"image folder {str(root)!r} has images of 1 class, {classes[0]!r}; at least 2 are "
            f"needed, and {_LAYOUT}"
        )
    words = domain_words or {}
    return ImageSet(
        root=root,
        classes=classes,
        domains=domains,
        domain_words=tuple(words.get(name, name.replace("_", " ")) for name in domains),
        paths=tuple(root.joinpath(*parts) for parts in files),
        class_index=_positions(classes, [parts[1] for parts in files]),
        domain_index=_positions(domains, [parts[0] for parts in files]),
    )


def few(image_set: ImageSet, each: int, seed: int = 0) -> ImageSet:
    """Draw at most so many images of every cell.

    Args:
        image_set: The images.
        each: Images a cell, at least 1; a cell with fewer keeps them all.
        seed: Another seed draws others; the draw in one cell does not depend on the other cells.

    Returns:
        The drawn images, in the set's order; classes and domains stay.

    Raises:
        ValueError: If `each` is not positive.
    """
    if each < 1:
        raise ValueError(f"at least 1 image a cell must be drawn, got {each}")
    drawn = [place for cell in shuffled_cells(image_set, seed) for place in cell[:each].tolist()]
    return image_set.subset(torch.tensor(sorted(drawn)))


def shuffled_cells(image_set: ImageSet, seed: int, *purpose: int) -> Iterator[Int[Tensor, " n"]]:
    """The images of each cell that has any, in an order drawn by the seed and the cell's name.

    Args:
        image_set: The images.
        seed: Another seed shuffles otherwise; one cell's order does not depend on the other cells.
        purpose: Numbers that make a draw independent of those for other purposes by one seed.

    Yields:
        `[n]` places in the set, cell by cell.
    """
    cells = image_set.class_index * len(image_set.domains) + image_set.domain_index
    for cell in cells.unique().tolist():
        of_cell = (cells == cell).nonzero()[:, 0]
        c, d = divmod(cell, len(image_set.domains))
        name = f"{image_set.classes[c]}/{image_set.domains[d]}"
        # A checksum of the names, unlike hash(), is the same in every process.
        random = np.random.default_rng([seed, zlib.crc32(name.encode()), *purpose])
        yield of_cell[torch.from_numpy(random.permutation(len(of_cell)))]


def load_batches(
    image_set: ImageSet,
    preprocess: Callable[[Image.Image], Float[Tensor, "3 rows columns"]],
    batch_size: int = 64,
    workers: int = 2,
) -> Iterator[Batch]:
    """Read, preprocess and batch the images of a set, in its order.

    Every image becomes RGB first: the first frame of an animation, turned as its EXIF tag says,
    transparent parts on white, 16-bit grey scaled to 8. A file that cannot be read that way
    (damaged, not an image, beyond Pillow's limit on pixels, thinner than 1:200) is skipped, named.

    Args:
        image_set: The images.
        preprocess: RGB image -> tensor, such as `Clip.preprocess`.
        batch_size: Files per batch.
        workers: Threads that read ahead.

    Yields:
        Batches of `batch_size` files; skipped ones leave a batch smaller, or empty.

    Raises:
        ValueError: If a number is not positive; or, once all are read, if a cell that has files has
            no readable image among them.
    """
    kept = [torch.empty(0, dtype=torch.int64)]
    skipped: list[Skipped] = []
    for batch in read_batches(image_set, preprocess, batch_size, workers):
        kept.append(batch.indices)
        skipped += batch.skipped
        yield batch
    check_cells(image_set, torch.cat(kept), skipped)


def read_batches(
    image_set: ImageSet,
    preprocess: Callable[[Image.Image], Float[Tensor, "3 rows columns"]],
    batch_size: int = 64,
    workers: int = 2,
) -> Generator[Batch, None, None]:
    """As `load_batches`, for a piece of a set: a cell may lose every image it has there.

    Args:
        image_set: The images.
        preprocess: RGB image -> tensor, such as `Clip.preprocess`.
        batch_size: Files per batch.
        workers: Threads that read ahead.

    Yields:
        Batches of `batch_size` files; skipped ones leave a batch smaller, or empty.

    Raises:
        ValueError: If a number is not positive.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size and workers must be at least 1, got {batch_size}, {workers}")
    results = _read_ahead(partial(_read, preprocess), image_set.paths, batch_size, workers)
    for number, batch in enumerate(results):
        read = [(i, r) for i, r in enumerate(batch, number * batch_size) if isinstance(r, Tensor)]
        yield Batch(
            images=torch.stack([r for _, r in read]) if read else torch.empty(0, 3, 0, 0),
            indices=torch.tensor([i for i, _ in read], dtype=torch.int64),
            skipped=tuple(result for result in batch if isinstance(result, Skipped)),
        )


def check_cells(image_set: ImageSet, kept: Int[Tensor, " k"], skipped: Sequence[Skipped]) -> None:
    """Refuse a set of which some cell has files and no readable image.

    Args:
        image_set: The images.
        kept: `[k]` which of them could be read.
        skipped: The others, and why.

    Raises:
        ValueError: Naming the first such cell and a file of it.
    """
    lost = ((image_set.subset(kept).counts == 0) & (image_set.counts > 0)).nonzero().tolist()
    if lost:
        c, d = lost[0]
        of_cell = (image_set.class_index == c) & (image_set.domain_index == d)
        files = {image_set.paths[i] for i in of_cell.nonzero()[:, 0].tolist()}
        first = next(one for one in skipped if one.path in files)
        raise ValueError(
            f"no readable image is left of class {image_set.classes[c]!r} in domain "
            f"{image_set.domains[d]!r} ({len(lost)} such cells), for instance {first.path}: "
            f"{first.reason}"
        )


def _found(root: Path) -> list[tuple[str, ...]]:
    """Path parts, below root, of every image."""
    try:
        return sorted(
            file.relative_to(root).parts
            for domain in _folders(root)
            for class_ in _folders(domain)
            for file in _images(class_)
        )
    except OSError as error:
        raise ValueError(
            f"image folder {str(error.filename)!r} cannot be read: {error.strerror}"
        ) from None


def _folders(parent: Path) -> list[Path]:
    return [p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _images(class_: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, below, names in os.walk(class_, onerror=_fail, followlinks=True):
        real = os.path.realpath(folder)
        # A link to a folder above would be followed for ever.
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            # A pipe is no file, and reading it would never end.
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and path.is_file():
                yield path


def _fail(error: OSError) -> None:
    raise error


def _listed(root: Path, listing: Path) -> list[tuple[str, ...]]:
    """Path parts, below root, of every image a listing names."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"listing {str(listing)!r} cannot be read: {error}") from None
    files = set()
    for number, line in enumerate(lines, 1):
        path = PurePosixPath(_LABEL.sub("", line.strip()))
        if path == PurePosixPath():
            continue
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 3 or "\0" in line:
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


def _positions(names: tuple[str, ...], given: list[str]) -> Int[Tensor, " n"]:
    where = {name: i for i, name in enumerate(names)}
    return torch.tensor([where[name] for name in given])


def _read_ahead(
    read: Callable[[ImageFile], Tensor | Skipped],
    paths: Sequence[ImageFile],
    batch_size: int,
    workers: int,
) -> Iterator[list[Tensor | Skipped]]:
    """Read batches in threads, always one more than the caller has taken."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[list[Future[Tensor | Skipped]]] = deque()
    try:
        for start in range(0, len(paths), batch_size):
            waiting.append([pool.submit(read, p) for p in paths[start : start + batch_size]])
            if len(waiting) == 2:
                yield [job.result() for job in waiting.popleft()]
        while waiting:
            yield [job.result() for job in waiting.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(preprocess: Callable[[Image.Image], Tensor], path: ImageFile) -> Tensor | Skipped:
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            image = _rgb(picture)
    except Exception as error:  # decoders raise anything at all on a damaged file
        return Skipped(path, _reason(error))
    if max(image.size) > _THINNEST * min(image.size):
        return Skipped(path, f"{image.width} x {image.height} pixels are too thin for a picture")
    return preprocess(image)


def _reason(error: Exception) -> str:
    """What is wrong, without the path or the address in memory that Pillow and Python add."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def _rgb(image: Image.Image) -> Image.Image:
    # What a person sees: turned upright, transparent parts on white.
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255, which leaves a white image.
        grey: Any = np.asarray(image)
        wide = image.mode != "I" or grey.max() > 255
        image = Image.fromarray((grey // 257 if wide else grey).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
