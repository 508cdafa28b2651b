"""Zero-shot recognition: the nearest prototype, and how often it is right in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.linalg import unit


@dataclass(frozen=True, eq=False)
class Grid:
    """Accuracy in each cell of the class x domain grid.

    Attributes:
        accuracy: `[classes, domains]` float64; 0 where there are no images, never NaN.
        count: `[classes, domains]` int64, number of images.
    """

    accuracy: Float[Tensor, "classes domains"]
    count: Int[Tensor, "classes domains"]

    def mean(self, where: Tensor | None = None) -> float | None:
        """Accuracy over the images of some cells: the cells' mean, weighted by their counts.

        Args:
            where: `[classes, domains]` boolean, the cells; every cell if None.

        Returns:
            The accuracy, or None where those cells hold no images.
        """
        count = self.count if where is None else self.count * where
        total = int(count.sum())
        return float((self.accuracy * count).sum()) / total if total else None

    @property
    def acc1(self) -> float:
        """Accuracy over all images."""
        return self.mean() or 0.0

    @property
    def mean_per_class_recall(self) -> float:
        """Mean over classes, those with images, of the accuracy over the images of the class."""
        count = self.count.sum(1)
        recall = (self.accuracy * self.count).sum(1)[count > 0] / count[count > 0]
        return float(recall.mean()) if len(recall) else 0.0


def predict(
    embeddings: Float[Tensor, "*batch n dim"],
    prototypes: Float[Tensor, "*batch classes dim"],
    batch: int = 8192,
) -> Int[Tensor, "*batch n"]:
    """The class whose prototype has the largest cosine with each embedding, in float32.

    Args:
        embeddings: `[*batch, n, dim]`, any positive scale of a row.
        prototypes: `[*batch, classes, dim]`, any positive scale of a row.
        batch: Rows scored at once, which bounds the memory.

    Returns:
        `[*batch, n]` int64; of classes with an equal score, any one.

    Raises:
        ValueError: If dimensions differ, there is no class, or `batch` is not positive.
    """
    chunks = [scores.argmax(-1) for scores in _scores(embeddings, prototypes, batch)]
    return torch.cat(chunks, -1)


def top_k(
    embeddings: Float[Tensor, "n dim"],
    prototypes: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " n"],
    k: int = 5,
    batch: int = 8192,
) -> float:
    """Share of images whose own class is among the k that score highest.

    Args:
        embeddings: `[n, dim]`, any positive scale of a row.
        prototypes: `[classes, dim]`, any positive scale of a row.
        labels: `[n]`, index into the prototypes.
        k: How many classes an image may name.
        batch: Rows scored at once.

    Returns:
        The share.

    Raises:
        ValueError: If dimensions differ, or there are no k classes.
    """
    if not 1 <= k <= len(prototypes):
        raise ValueError(f"k must be from 1 to {len(prototypes)} classes, got {k}")
    named = torch.cat([s.topk(k, -1).indices for s in _scores(embeddings, prototypes, batch)])
    return float((named == labels.to(named.device)[:, None]).any(-1).double().mean())


def accuracy_grid(
    predicted: Int[Tensor, " n"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"] | None,
    n_classes: int,
    n_domains: int = 1,
) -> Grid:
    """Accuracy in each cell.

    Args:
        predicted: `[n]` predicted classes.
        labels: `[n]` true classes.
        domains: `[n]` domains, or None for a single one.
        n_classes: Rows of the grid.
        n_domains: Columns of the grid.

    Returns:
        The grid, on the CPU.

    Raises:
        ValueError: If lengths differ, or a label or domain is not in the grid.
    """
    predicted, labels = predicted.cpu(), labels.cpu()
    domains = torch.zeros_like(labels) if domains is None else domains.cpu()
    if not predicted.shape == labels.shape == domains.shape or labels.ndim != 1:
        raise ValueError(
            "predicted, labels and domains must be of one length, got "
            f"{list(predicted.shape)}, {list(labels.shape)}, {list(domains.shape)}"
        )
    for name, index, size in (("labels", labels, n_classes), ("domains", domains, n_domains)):
        if len(index) and (index.min() < 0 or index.max() >= size):
            raise ValueError(
                f"{name} must be from 0 to {size - 1}, got {int(index.min())} to {int(index.max())}"
            )
    cell = labels.long() * n_domains + domains.long()
    count = torch.bincount(cell, minlength=n_classes * n_domains)
    right = torch.bincount(cell[predicted == labels], minlength=n_classes * n_domains)
    accuracy = right.double() / count.clamp(min=1)
    shape = (n_classes, n_domains)
    return Grid(accuracy.reshape(shape), count.reshape(shape))


def grid_to_json(
    grid: Grid, classes: Sequence[str], domains: Sequence[str], acc5: float | None = None
) -> dict[str, Any]:
    """The grid and its summary as plain JSON values, in CLIP_benchmark's words.

    Args:
        grid: Accuracy in each cell.
        classes: Names of its rows.
        domains: Names of its columns.
        acc5: What `top_k` gives for k = 5; left out where there are not more than 5 classes.

    Returns:
        "classes", "domains", "accuracy" (null where there are no images), "count", and "metrics"
        with "acc1", "acc5" and "mean_per_class_recall".

    Raises:
        ValueError: If the names do not fit the grid.
    """
    if grid.count.shape != (len(classes), len(domains)):
        raise ValueError(
            f"a grid of {list(grid.count.shape)} cannot have {len(classes)} class names and "
            f"{len(domains)} domain names"
        )
    count = grid.count.tolist()
    accuracy = [
        [value if n else None for value, n in zip(*row, strict=True)]
        for row in zip(grid.accuracy.tolist(), count, strict=True)
    ]
    metrics = {"acc1": grid.acc1}
    if acc5 is not None and len(classes) > 5:
        metrics["acc5"] = acc5
    metrics["mean_per_class_recall"] = grid.mean_per_class_recall
    return {
        "classes": list(classes),
        "domains": list(domains),
        "accuracy": accuracy,
        "count": count,
        "metrics": metrics,
    }


def grid_of(said: Mapping[str, Any]) -> Grid:
    """A grid as `grid_to_json` wrote it.

    Args:
        said: "accuracy", null where there are no images, and "count".

    Raises:
        ValueError: If these are no grid.
    """
    accuracy = [[0.0 if value is None else value for value in row] for row in said["accuracy"]]
    return Grid(torch.tensor(accuracy, dtype=torch.float64), torch.tensor(said["count"]))


def _scores(embeddings: Tensor, prototypes: Tensor, batch: int) -> Iterator[Tensor]:
    """Cosines `[*batch, rows, classes]` up to a positive factor a row, some rows at a time."""
    if embeddings.ndim < 2 or prototypes.ndim < 2 or embeddings.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            "embeddings [n, dim] and prototypes [classes, dim] must have one dim, got "
            f"{list(embeddings.shape)} and {list(prototypes.shape)}"
        )
    if not prototypes.shape[-2] or batch < 1:
        raise ValueError(
            f"at least 1 class and 1 row at once are needed, got {prototypes.shape[-2]} and {batch}"
        )
    columns = unit(prototypes.double()).float().mT.to(embeddings.device)
    # At least one chunk, so that no rows give an empty result rather than none.
    for start in range(0, max(embeddings.shape[-2], 1), batch):
        yield embeddings[..., start : start + batch, :].float() @ columns
