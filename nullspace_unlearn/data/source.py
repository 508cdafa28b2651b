"""`Source`: labelled images of a class x domain grid, of whatever kind, for every command."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from nullspace_unlearn.data.picture import Picture, naming, reason
from nullspace_unlearn.features.features import Features
from nullspace_unlearn.fingerprint import Fingerprint, code_of, contents_in_use

NO_DOMAIN = "all"
"""The domain of images that have none."""
NO_DOMAIN_WORD = "picture"
"""The word that prompts use for it."""

_ALIKE = 1 - 1e-6  # cosine of two rows of one image
_ROWS = 1 << 16  # of a file that may exceed the memory

Preprocess = Callable[[Image.Image], Float[Tensor, "3 rows columns"]]


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images, or features of such, and the cell of the grid that each belongs to.

    Attributes:
        name: What reports call it; says nothing of where it lies.
        kind: What it was taken for, for the reader.
        classes: Names of the classes as prompts have them. Two may be of one name, as ImageNet's
            cranes are: they stay two classes, and what is said of the name is said of both.
        domains: Keys of the domains, none twice; empty where a feature file names none.
        domain_words: The word that prompts use for each domain.
        class_index: `[n]` int64, index into `classes`.
        domain_index: `[n]` int64, index into `domains`; 0 where there are none.
        pictures: The images, in an order that depends on their names alone; empty where there are
            features instead.
        features: Features in place of images, of the model that their provenance names.
        templates: Class templates that come with the images, each holding `{class}` once.
        notes: Lines about how the source was read that its user should see.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    domain_words: tuple[str, ...]
    class_index: Int[Tensor, " n"]
    domain_index: Int[Tensor, " n"]
    pictures: tuple[Picture, ...] = ()
    features: Features | None = None
    templates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.class_index)

    def __repr__(self) -> str:
        what = "features" if self.features is not None else "images"
        return (
            f"Source({self.name!r}, {self.kind}: {len(self)} {what} of {len(self.classes)} classes "
            f"in {len(self.domains)} domains)"
        )

    @property
    def words(self) -> dict[str, str]:
        """Domain -> the word that prompts use for it."""
        return dict(zip(self.domains, self.domain_words, strict=True))

    @cached_property
    def counts(self) -> Int[Tensor, "classes domains"]:
        """Number of images in each cell; one column where there are no domains."""
        rows = len(self.classes) or int(self.class_index.max()) + 1
        grid = torch.zeros(rows, max(1, len(self.domains)), dtype=torch.int64)
        one = torch.ones(len(self), dtype=torch.int64)
        return grid.index_put((self.class_index, self.domain_index), one, accumulate=True)

    @property
    def absent(self) -> tuple[tuple[str, str], ...]:
        """The (class, domain) cells that hold no image, where domains differ in their classes."""
        empty = (self.counts == 0).nonzero().tolist()
        return tuple((self.classes[c], self.domains[d]) for c, d in empty)

    @property
    def twice(self) -> tuple[str, ...]:
        """Names that several classes share."""
        return tuple(name for name, times in Counter(self.classes).items() if times > 1)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What features of these images depend on; not where they lie or what their files are
        called.

        Facts: "count"; "cells", a hash of classes, domains and labels; "contents", one of what the
        images hold, in order. Files are read, but for those that `contents_in_use` knows.
        """
        held = self.features
        contents = self.contents() if held is None else [held.fingerprint.digest]
        joined = hashlib.sha256("\n".join(contents).encode()).hexdigest()
        return Fingerprint({"count": len(self), "cells": self._cells, "contents": joined})

    def contents(self) -> list[str]:
        """What each image holds, in order: the hash of its file and its place there."""
        held = [picture.holder for picture in self.pictures]
        files: dict[Path, dict[Path, str]] = {}
        for holder in held:
            if holder is not None:
                files.setdefault(holder[0], {})[holder[1]] = ""
        for root, some in files.items():
            some.update(zip(some, contents_in_use().of(root, list(some)), strict=True))
        return [
            json.dumps(["drawn", picture.name, code_of("data.mini")["source"]])
            if holder is None
            else json.dumps([files[holder[0]][holder[1]], picture.place])
            for picture, holder in zip(self.pictures, held, strict=True)
        ]

    @cached_property
    def _cells(self) -> str:
        digest = hashlib.sha256(json.dumps([self.classes, self.domains]).encode())
        for index in (self.class_index, self.domain_index):
            digest.update(index.contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, chosen: Int[Tensor, " k"]) -> Source:
        """Some of the images; the names of classes and domains stay.

        Args:
            chosen: `[k]` which images, ascending.
        """
        return replace(
            self,
            class_index=self.class_index[chosen],
            domain_index=self.domain_index[chosen],
            pictures=tuple(self.pictures[i] for i in chosen.tolist()) if self.pictures else (),
            features=None if self.features is None else self.features.subset(chosen),
        )

    def cut(self, classes: Sequence[int], domains: Sequence[int]) -> Source:
        """The images of a part of the grid, which is all there is then.

        Args:
            classes: Which classes stay, ascending.
            domains: Which domains stay, ascending.

        Raises:
            ValueError: If the source is of features.
        """
        if self.features is not None:
            raise ValueError(f"{self.name} holds features, of which no part can be cut out")
        rows, columns = torch.full((len(self.classes),), -1), torch.full((len(self.domains),), -1)
        rows[list(classes)] = torch.arange(len(classes))
        columns[list(domains)] = torch.arange(len(domains))
        row, column = rows[self.class_index], columns[self.domain_index]
        some = self.subset(((row >= 0) & (column >= 0)).nonzero()[:, 0])
        return replace(
            some,
            classes=tuple(self.classes[c] for c in classes),
            domains=tuple(self.domains[d] for d in domains),
            domain_words=tuple(self.domain_words[d] for d in domains),
            class_index=rows[some.class_index],
            domain_index=columns[some.domain_index],
        )

    def few(self, each: int, seed: int = 0) -> Source:
        """Draw at most so many images of every cell.

        Args:
            each: Images a cell, at least 1; a cell with fewer keeps them all.
            seed: Another seed draws others; the draw in one cell does not depend on other cells.

        Returns:
            The drawn images, in the source's order; classes and domains stay.

        Raises:
            ValueError: If `each` is not positive.
        """
        if each < 1:
            raise ValueError(f"at least 1 image a cell must be drawn, got {each}")
        drawn = [place for cell in self._shuffled(seed) for place in cell[:each].tolist()]
        return self.subset(torch.tensor(sorted(drawn)))

    def split(self, shots: int, validation: int = 0, seed: int = 0) -> Parts:
        """Draw images of every cell to learn from and to choose by.

        Args:
            shots: Images a cell to learn from, at least 1.
            validation: Others to choose by.
            seed: Another seed draws others; the draw in one cell does not depend on other cells,
                and the images to learn from not on how many are drawn for validation.

        Returns:
            Three sources that share no image, each in this one's order.

        Raises:
            ValueError: If a number is too small, the classes differ between domains, or a cell has
                fewer images than are asked for.
        """
        if shots < 1 or validation < 0:
            raise ValueError(
                f"at least 1 training and 0 validation images a cell are needed, got {shots} and "
                f"{validation}"
            )
        if self.absent:
            name, domain = self.absent[0]
            raise ValueError(
                f"the classes differ between domains: there is no image of {name!r} in {domain!r} "
                f"({len(self.absent)} such cells); use --list to leave classes or domains out"
            )
        wanted = shots + validation
        thin = (self.counts < wanted).nonzero().tolist()
        if thin:
            c, d = thin[0]
            raise ValueError(
                f"domain {self.domains[d]!r} has {int(self.counts[c, d])} images of "
                f"{self.classes[c]!r} ({len(thin)} such cells), and {shots} shots and "
                f"{validation} for validation are asked for"
            )
        parts: tuple[list[int], ...] = ([], [], [])
        for cell in self._shuffled(seed, 1):
            drawn = cell.tolist()
            for part, some in zip(
                parts, (drawn[:shots], drawn[shots:wanted], drawn[wanted:]), strict=True
            ):
                part += some
        return Parts(*(self.subset(torch.tensor(sorted(p), dtype=torch.int64)) for p in parts))

    def held_out(self, share: float) -> tuple[Source, Source]:
        """Part a share of every cell, at least one image, from the others.

        Args:
            share: Of the images of each cell, from 0 to 1.

        Returns:
            That share, and the others, each in the source's order.
        """
        apart: list[int] = []
        for cell in self._shuffled(0, 2):
            apart += cell[: max(1, round(share * len(cell)))].tolist()
        others = sorted(set(range(len(self))) - set(apart))
        return tuple(  # type: ignore[return-value]
            self.subset(torch.tensor(part, dtype=torch.int64)) for part in (sorted(apart), others)
        )

    def batches(
        self, preprocess: Preprocess, batch_size: int = 64, workers: int = 2, part: bool = False
    ) -> Generator[Batch, None, None]:
        """Read, preprocess and batch the images, in order.

        Every image becomes RGB first (`picture.decode`). One that cannot be read is skipped, named.

        Args:
            preprocess: RGB image -> tensor, such as `Clip.preprocess`.
            batch_size: Images per batch.
            workers: Threads that read ahead.
            part: Whether this is a part of a source, of which a cell may lose every image.

        Yields:
            Batches of `batch_size` images; skipped ones leave a batch smaller, or empty.

        Raises:
            ValueError: If a number is not positive or the source is of features; or, once all are
                read, if a cell that has images has no readable one and `part` is false.
        """
        if batch_size < 1 or workers < 1:
            raise ValueError(
                f"batch_size and workers must be at least 1, got {batch_size}, {workers}"
            )
        if self.features is not None:
            raise ValueError(f"{self.name} holds features, and images are needed here")
        kept = [torch.empty(0, dtype=torch.int64)]
        skipped: list[Skipped] = []
        results = _read_ahead(partial(_read, preprocess), self.pictures, batch_size, workers)
        for number, batch in enumerate(results):
            places = enumerate(batch, number * batch_size)
            read = [(i, image) for i, image in places if isinstance(image, Tensor)]
            lost = tuple(result for result in batch if isinstance(result, Skipped))
            indices = torch.tensor([i for i, _ in read], dtype=torch.int64)
            kept.append(indices)
            skipped += lost
            images = torch.stack([image for _, image in read]) if read else torch.empty(0, 3, 0, 0)
            yield Batch(images, indices, lost)
        if not part:
            self.check_cells(torch.cat(kept), skipped)

    def check_cells(self, kept: Int[Tensor, " k"], skipped: Sequence[Skipped]) -> None:
        """Refuse a source of which some cell has images and no readable one.

        Args:
            kept: `[k]` which of them could be read.
            skipped: The others, and why.

        Raises:
            ValueError: Naming the first such cell and an image of it.
        """
        lost = ((self.subset(kept).counts == 0) & (self.counts > 0)).nonzero().tolist()
        if lost:
            c, d = lost[0]
            of_cell = (self.class_index == c) & (self.domain_index == d)
            pictures = {self.pictures[i] for i in of_cell.nonzero()[:, 0].tolist()}
            first = next(one for one in skipped if one.picture in pictures)
            raise ValueError(
                f"no readable image is left of class {self.classes[c]!r} in domain "
                f"{self.domains[d]!r} ({len(lost)} such cells), for instance {first.picture}: "
                f"{first.reason}"
            )

    def _shuffled(self, seed: int, *purpose: int) -> Iterator[Int[Tensor, " n"]]:
        """The places of each cell's images in an order drawn by the seed and the cell's names.

        `purpose` makes a draw independent of those for other purposes by one seed.
        """
        times = {name: 0 for name in self.classes}
        keys = []
        for name in self.classes:  # of two classes of one name each has its own draw
            keys.append(f"{name}#{times[name]}" if times[name] else name)
            times[name] += 1
        columns = self.domains or (NO_DOMAIN,)
        cells = self.class_index * len(columns) + self.domain_index
        for cell in cells.unique().tolist():
            of_cell = (cells == cell).nonzero()[:, 0]
            c, d = divmod(cell, len(columns))
            name = f"{keys[c] if keys else c}/{columns[d]}"
            # A checksum of the names, unlike hash(), is the same in every process.
            random = np.random.default_rng([seed, zlib.crc32(name.encode()), *purpose])
            yield of_cell[torch.from_numpy(random.permutation(len(of_cell)))]


class Parts(NamedTuple):
    """Three sources that share no image.

    Attributes:
        given: So many images of every cell, to learn from.
        validation: So many others, to choose by; may be empty.
        rest: All others, to be reported on.
    """

    given: Source
    validation: Source
    rest: Source


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    picture: Picture
    reason: str


class Batch(NamedTuple):
    """Some images of a source, in its order.

    Attributes:
        images: `[b, 3, rows, columns]` float32, preprocessed.
        indices: `[b]` int64, which images of the source they are.
        skipped: Those among them that could not be read, which `images` lacks.
    """

    images: Float[Tensor, "b 3 rows columns"]
    indices: Int[Tensor, " b"]
    skipped: tuple[Skipped, ...]


def apart(reported: Source, *learned: Source | None) -> tuple[Source, int]:
    """The images to report on without those that something was learned from.

    Images are told by their bytes, whatever their names and wherever they lie.

    Args:
        reported: The images to report on.
        *learned: What a method is given, and what its settings are chosen by.

    Returns:
        The others, and how many were left out.

    Raises:
        ValueError: If nothing is left.
    """
    given = [picture for some in learned if some is not None for picture in some.pictures]
    # Only images of one size can be the same: few are read for this.
    sizes = {_size(picture) for picture in given} - {None}
    alike = [(i, p) for i, p in enumerate(reported.pictures) if _size(p) in sizes]
    seen = {_digest(picture) for picture in given} if alike else set()
    out = {i for i, picture in alike if _digest(picture) in seen}
    if not out:
        return reported, 0
    if len(out) == len(reported):
        raise ValueError(
            f"all {len(out)} images to report on are also what is learned from: no image is left "
            "to report on"
        )
    left = torch.tensor([i for i in range(len(reported)) if i not in out], dtype=torch.int64)
    return reported.subset(left), len(out)


def rows_apart(reported: Source, learned: Features) -> tuple[Source, int]:
    """Features to report on without those of images that something was learned from.

    A feature file does not hold its images. Two rows are of one image where they point the same way
    up to rounding: half precision and another machine move a row by some 1e-7, another image by far
    more.

    Args:
        reported: What is reported on; images are left as they are, for `apart`.
        learned: Features of the images learned from, by the same model.

    Returns:
        The others, and how many were left out.

    Raises:
        ValueError: If nothing is left.
    """
    if reported.features is None:
        return reported, 0
    given = F.normalize(learned.embeddings.double(), dim=-1)
    blocks = reported.features.embeddings.split(_ROWS)
    cosines = torch.cat([(F.normalize(b.double(), dim=-1) @ given.mT).amax(-1) for b in blocks])
    kept = (cosines <= _ALIKE).nonzero()[:, 0]
    if not len(kept):
        raise ValueError(
            f"all {len(reported)} images to report on are also what is learned from: no image is "
            "left to report on"
        )
    out = len(reported) - len(kept)
    return (reported.subset(kept), out) if out else (reported, 0)


def _size(picture: Picture) -> int | None:
    """How many bytes a picture has; None where it will be skipped when it is read."""
    try:
        if picture.place is not None:
            return picture.place[1]
        if picture.holder is not None:
            return picture.holder[1].stat().st_size
        return len(picture.open().read())
    except OSError:
        return None


def _digest(picture: Picture) -> bytes:
    try:
        with picture.open() as file:
            return hashlib.sha256(file.read()).digest()
    except (OSError, ValueError):  # it will be skipped where it is read
        return str(picture).encode()


def _read_ahead(
    read: Callable[[Picture], Tensor | Skipped],
    pictures: Sequence[Picture],
    batch_size: int,
    workers: int,
) -> Iterator[list[Tensor | Skipped]]:
    """Read batches in threads, always one more than the caller has taken."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[list[Future[Tensor | Skipped]]] = deque()
    try:
        for start in range(0, len(pictures), batch_size):
            waiting.append([pool.submit(read, p) for p in pictures[start : start + batch_size]])
            if len(waiting) == 2:
                yield [job.result() for job in waiting.popleft()]
        while waiting:
            yield [job.result() for job in waiting.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(preprocess: Preprocess, picture: Picture) -> Tensor | Skipped:
    try:
        with naming(picture):
            image = picture.decode()
    except Exception as error:  # decoders raise anything at all on a damaged file
        return Skipped(picture, reason(error))
    return preprocess(image)
