"""A few labelled images, as a model sees them: what a trained method looks at, and is chosen by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.fingerprint import Fingerprint, of_tensors

_IN_MEMORY = 2 << 30  # bytes


@dataclass(frozen=True, eq=False)
class Shots:
    """Labelled images, preprocessed.

    Attributes:
        labels: `[n]` int64 classes.
        domains: `[n]` int64 domains.
        read: Indices -> `[b, 3, rows, columns]` float32 images on the CPU; the same every time.
        source: Where they come from and which they are; plain JSON values.
        fingerprint: What they hold.
    """

    labels: Int[Tensor, " n"]
    domains: Int[Tensor, " n"]
    read: Callable[[Int[Tensor, " b"]], Float[Tensor, "b 3 rows columns"]]
    source: Mapping[str, object]
    fingerprint: Fingerprint

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
            fingerprint=Fingerprint({"of": self.fingerprint, "chosen": chosen.tolist()}),
        )


def from_source(clip: Clip, source: Source, workers: int = 2) -> Shots:
    """Shots of a source, read once where they fit into 2 GiB, else whenever they are needed.

    Args:
        clip: The model, for its preprocessing.
        source: The images; its class and domain numbers become those of the shots.
        workers: Threads that read ahead.

    Returns:
        The shots.

    Raises:
        ValueError: If an image cannot be read; where they are not read at once, it is raised when
            that image is.
    """

    def load(some: Source) -> Tensor:
        parts = []
        for batch in some.batches(clip.preprocess, 64, workers):
            if batch.skipped:
                picture, reason = batch.skipped[0]
                raise ValueError(f"image {str(picture)!r} cannot be read: {reason}; take it out")
            parts.append(batch.images)
        return torch.cat(parts) if parts else torch.empty(0, 3, *clip.image_size)

    rows, columns = clip.image_size
    of: dict[str, object] = {
        "images": source.name,
        "files": [picture.name for picture in source.pictures],
        "contents": dict(source.fingerprint.facts),
    }
    if len(source) * rows * columns * 12 > _IN_MEMORY:
        read = lambda index: load(source.subset(index))  # noqa: E731
    else:
        images = load(source)
        read = lambda index: images[index]  # noqa: E731
    return Shots(source.class_index, source.domain_index, read, of, source.fingerprint)


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
    contents = of_tensors({"images": held, "labels": labels, "domains": domains})
    source = {"images": "tensors", "sha256": contents} if source is None else source
    read = lambda index: held[index]  # noqa: E731
    return Shots(labels, domains, read, source, Fingerprint({"contents": contents}))
