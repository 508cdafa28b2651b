"""A few labelled images of every cell: what a trained method may look at, and what it is judged on.

Splits are drawn by seed and never share an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.folders import ImageSet, load_batches, shuffled_cells

# Bundled pictures that training, its validation, and nothing else sees: a thousand for each seed.
_SHOTS_FROM, _VALIDATION_FROM = 16_000_000, 17_000_000
_IN_MEMORY = 2 << 30  # bytes


@dataclass(frozen=True, eq=False)
class Shots:
    """Labelled images, preprocessed.

    Attributes:
        labels: `[n]` int64 classes.
        domains: `[n]` int64 domains.
        read: Indices -> `[b, 3, rows, columns]` float32 images on the CPU; the same every time.
        source: Where they come from and which they are; plain JSON values.
    """

    labels: Int[Tensor, " n"]
    domains: Int[Tensor, " n"]
    read: Callable[[Int[Tensor, " b"]], Float[Tensor, "b 3 rows columns"]]
    source: Mapping[str, object]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: Int[Tensor, " k"]) -> Shots:
        """Some of the images.

        Args:
            chosen: `[k]` which.
        """
        return replace(
            self,
            labels=self.labels[chosen],
            domains=self.domains[chosen],
            read=lambda index: self.read(chosen[index]),
            source={"of": self.source, "chosen": chosen.tolist()},
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Three sets of images that share none.

    Attributes:
        train: So many of every cell.
        validation: So many others, for early stopping; may be empty.
        rest: All others, to be reported on.
    """

    train: ImageSet
    validation: ImageSet
    rest: ImageSet


def split(image_set: ImageSet, shots: int, validation: int = 0, seed: int = 0) -> Split:
    """Draw images of every cell for training and validation.

    Args:
        image_set: The images.
        shots: Training images a cell, at least 1.
        validation: Validation images a cell.
        seed: Another seed draws others; the draw in one cell does not depend on the other cells,
            and the training images not on how many are drawn for validation.

    Returns:
        The three sets, each in the set's order.

    Raises:
        ValueError: If a number is too small, the classes differ between domains, or a cell has
            fewer images than are asked for.
    """
    if shots < 1 or validation < 0:
        raise ValueError(
            f"at least 1 training and 0 validation images a cell are needed, got {shots} and "
            f"{validation}"
        )
    if image_set.absent:
        name, domain = image_set.absent[0]
        raise ValueError(
            f"the classes differ between domains: there is no image of {name!r} in {domain!r} "
            f"({len(image_set.absent)} such cells); use --list to leave classes or domains out"
        )
    wanted = shots + validation
    thin = (image_set.counts < wanted).nonzero().tolist()
    if thin:
        c, d = thin[0]
        raise ValueError(
            f"domain {image_set.domains[d]!r} has {int(image_set.counts[c, d])} images of "
            f"{image_set.classes[c]!r} ({len(thin)} such cells), and {shots} shots and "
            f"{validation} for validation are asked for"
        )
    parts: tuple[list[int], ...] = ([], [], [])
    for cell in shuffled_cells(image_set, seed, 1):
        drawn = cell.tolist()
        for part, some in zip(
            parts, (drawn[:shots], drawn[shots:wanted], drawn[wanted:]), strict=True
        ):
            part += some
    sets = (image_set.subset(torch.tensor(sorted(part), dtype=torch.int64)) for part in parts)
    return Split(*sets)


def from_images(clip: Clip, image_set: ImageSet, workers: int = 2) -> Shots:
    """Shots from image files, read once where they fit into 2 GiB, else whenever they are needed.

    Args:
        clip: The model, for its preprocessing.
        image_set: The images; its class and domain numbers become those of the shots.
        workers: Threads that read ahead.

    Returns:
        The shots.

    Raises:
        ValueError: If a file cannot be read as an image; where they are not read at once, it is
            raised when that file is.
    """

    def load(some: ImageSet) -> Tensor:
        parts = []
        for batch in load_batches(some, clip.preprocess, 64, workers):
            if batch.skipped:
                path, reason = batch.skipped[0]
                raise ValueError(f"image {str(path)!r} cannot be read: {reason}; take it out")
            parts.append(batch.images)
        return torch.cat(parts) if parts else torch.empty(0, 3, *clip.image_size)

    files = [path.relative_to(image_set.root).as_posix() for path in image_set.paths]
    rows, columns = clip.image_size
    source: dict[str, object] = {"images": image_set.root.name, "files": files}
    if len(image_set) * rows * columns * 12 > _IN_MEMORY:
        read = lambda index: load(image_set.subset(index))  # noqa: E731
    else:
        images = load(image_set)
        read = lambda index: images[index]  # noqa: E731
    return Shots(image_set.class_index, image_set.domain_index, read, source)


def from_bundled(
    clip: Clip,
    classes: Sequence[str],
    domains: Sequence[str],
    shots: int,
    validation: int = 0,
    seed: int = 0,
) -> tuple[Shots, Shots]:
    """Shots and validation images from the bundled pictures, on seeds that nothing else uses.

    Args:
        clip: The model, for its preprocessing.
        classes: Classes to draw.
        domains: Domains to draw.
        shots: Training pictures a cell, at most 1,000.
        validation: Validation pictures a cell, at most 1,000.
        seed: From 0 to 999; another seed draws other pictures.

    Returns:
        Training and validation shots; the latter may be empty.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 1 <= shots <= 1000 or not 0 <= validation <= 1000:
        raise ValueError(
            "1 to 1000 training and 0 to 1000 validation pictures a cell can be drawn, got "
            f"{shots} and {validation}"
        )
    if not 0 <= seed <= 999:
        raise ValueError(f"the seed of a draw of bundled pictures must be 0 to 999, got {seed}")

    def draw(first: int, each: int) -> Shots:
        seeds = range(first + 1000 * seed, first + 1000 * seed + each)
        cells = [(c, d, s) for c in range(len(classes)) for d in range(len(domains)) for s in seeds]
        images = [clip.preprocess(mini.render(classes[c], domains[d], s)) for c, d, s in cells]
        drawn = torch.stack(images) if images else torch.empty(0, 3, *clip.image_size)
        index = torch.tensor(cells, dtype=torch.int64).reshape(-1, 3)
        what = f"bundled pictures, seeds {seeds.start} to {seeds.stop - 1}" if each else "none"
        source = {"images": what, "classes": list(classes), "domains": list(domains)}
        return Shots(index[:, 0], index[:, 1], lambda chosen: drawn[chosen], source)

    return draw(_SHOTS_FROM, shots), draw(_VALIDATION_FROM, validation)


def from_tensors(
    images: Float[Tensor, "n 3 rows columns"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    source: Mapping[str, object] | None = None,
) -> Shots:
    """Shots from preprocessed images in memory.

    Args:
        images: `[n, 3, rows, columns]`, as `Clip.preprocess` gives them.
        labels: `[n]` classes.
        domains: `[n]` domains.
        source: Where they come from; absent: their hash.

    Returns:
        The shots.

    Raises:
        ValueError: If lengths differ.
    """
    if not len(images) == len(labels) == len(domains):
        raise ValueError(
            "images, labels and domains must be of one length, got "
            f"{len(images)}, {len(labels)}, {len(domains)}"
        )
    held, labels, domains = images.float().cpu(), labels.cpu(), domains.cpu()
    if source is None:
        digest = hashlib.sha256()
        for part in (held, labels, domains):
            digest.update(part.detach().contiguous().numpy().data)
        source = {"images": "tensors", "sha256": digest.hexdigest()}
    return Shots(labels, domains, lambda index: held[index], source)
