"""The bundled pictures as sources: drawn by seed, for purposes whose seeds never meet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from PIL import Image

from nullspace_unlearn.data import mini
from nullspace_unlearn.data.source import Source

BUNDLED = "nsu-mini"

# Seeds of training, of the model card and of the tests all lie below.
_REPORTED_FROM = 10_000_000
# A thousand for each seed, which nothing else sees.
_GIVEN_FROM, _VALIDATION_FROM = 16_000_000, 17_000_000


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture of a class in a domain, drawn when it is read.

    Attributes:
        class_name: One of `mini.CLASSES`.
        domain: One of `mini.DOMAINS`.
        seed: Of the drawing.
    """

    class_name: str
    domain: str
    seed: int

    @property
    def name(self) -> str:
        """What it shows, and which drawing of it this is."""
        return f"{self.domain}/{self.class_name}/{self.seed}"

    def open(self) -> BinaryIO:
        """What decides the drawing."""
        return io.BytesIO(f"nsu-mini {self.name}".encode())

    @property
    def holder(self) -> None:
        """It is in no file."""
        return None

    @property
    def place(self) -> None:
        """All of it."""
        return None

    def decode(self) -> Image.Image:
        """The image in RGB."""
        return mini.render(self.class_name, self.domain, self.seed)

    def __str__(self) -> str:
        return f"the bundled picture {self.name}"


def draw_bundled(
    first: int,
    each: int,
    classes: Sequence[str] = mini.CLASSES,
    domains: Sequence[str] = mini.DOMAINS,
) -> Source:
    """So many drawings of every cell.

    Args:
        first: The first seed.
        each: Pictures a cell, of that seed and those that follow.
        classes: The classes.
        domains: The domains.

    Returns:
        The pictures, by class, domain and seed.
    """
    seeds = range(first, first + each)
    cells = [(c, d, s) for c in range(len(classes)) for d in range(len(domains)) for s in seeds]
    index = torch.tensor(cells, dtype=torch.int64).reshape(-1, 3)
    span = f", seeds {seeds.start} to {seeds.stop - 1}" if each else ", none"
    return Source(
        name=f"bundled pictures{span}",
        kind="bundled pictures",
        classes=tuple(classes),
        domains=tuple(domains),
        domain_words=tuple(domains),
        class_index=index[:, 0],
        domain_index=index[:, 1],
        pictures=tuple(Drawing(classes[c], domains[d], s) for c, d, s in cells),
    )


def bundled_to_report(each: int = 20, seed: int = 0) -> Source:
    """Pictures to report on, of seeds that nothing was trained or chosen on.

    Args:
        each: Pictures a cell.
        seed: Another seed draws other pictures.
    """
    return draw_bundled(_REPORTED_FROM + seed * each, each)


def bundled_to_learn(
    shots: int,
    validation: int = 0,
    seed: int = 0,
    classes: Sequence[str] = mini.CLASSES,
    domains: Sequence[str] = mini.DOMAINS,
) -> tuple[Source, Source]:
    """Pictures to learn from and to choose by, of seeds that nothing else uses.

    Args:
        shots: Pictures a cell to learn from, at most 1,000.
        validation: Pictures a cell to choose by, at most 1,000.
        seed: From 0 to 999; another seed draws other pictures.
        classes: Classes to draw.
        domains: Domains to draw them in.

    Returns:
        Both; the latter may be empty.

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
    return (
        draw_bundled(_GIVEN_FROM + 1000 * seed, shots, classes, domains),
        draw_bundled(_VALIDATION_FROM + 1000 * seed, validation, classes, domains),
    )
