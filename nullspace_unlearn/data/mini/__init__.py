"""nsu-mini: a small CLIP that ships with the package, and a renderer of the pictures it knows.

Twelve classes in four domains, every picture drawn afresh from its class, domain and seed: enough
to forget, keep, measure and audit with no download, no data set and no accelerator.

    >>> from nullspace_unlearn.data.mini import render
    >>> render("car", "sketch", seed=0).size
    (64, 64)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nullspace_unlearn.data.mini.pose import place
from nullspace_unlearn.data.mini.shapes import FIGURES
from nullspace_unlearn.data.mini.styles import STYLES

CLASSES: tuple[str, ...] = tuple(FIGURES)
DOMAINS: tuple[str, ...] = tuple(STYLES)
SIZE = 64
MODEL_FOLDER: Path = Path(__file__).parent / "model"
_SUPERSAMPLE = 2

__all__ = ["CLASSES", "DOMAINS", "MODEL_FOLDER", "SIZE", "render", "write_images"]


def render(class_name: str, domain: str, seed: int, size: int = SIZE) -> Image.Image:
    """Draws one picture; the same arguments always give the same picture.

    Args:
        class_name: One of ``CLASSES``.
        domain: One of ``DOMAINS``.
        seed: Any whole number from 0; another seed is another picture of the same thing.
        size: Side of the square picture in pixels.

    Returns:
        An RGB picture.

    Raises:
        ValueError: The class or domain is unknown, or the seed or size out of range.
    """
    _check("class", class_name, CLASSES)
    _check("domain", domain, DOMAINS)
    if seed < 0:
        raise ValueError(f"seed out of range: {seed}; allowed: whole numbers from 0")
    if size < 16:
        raise ValueError(f"size out of range: {size}; allowed: whole numbers from 16")
    # A checksum of the names, unlike hash(), is the same in every process.
    names = zlib.crc32(f"{class_name}/{domain}".encode())
    rng = np.random.default_rng([names, seed])
    side = size * _SUPERSAMPLE
    figure = place(FIGURES[class_name](rng), side, rng)
    return STYLES[domain](figure, side, rng).reduce(_SUPERSAMPLE)


def write_images(
    root: str | Path,
    classes: Sequence[str] = CLASSES,
    domains: Sequence[str] = DOMAINS,
    seeds: Iterable[int] = range(32),
) -> int:
    """Writes pictures as ``root/<domain>/<class>/<seed>.png``.

    Args:
        root: Folder to write into; made where missing.
        classes: Classes to draw.
        domains: Domains to draw them in.
        seeds: Seeds to draw of each cell.

    Returns:
        How many pictures were written.

    Raises:
        ValueError: A class or domain is unknown; nothing has been written then.
    """
    for name in classes:
        _check("class", name, CLASSES)
    for name in domains:
        _check("domain", name, DOMAINS)
    seeds = list(seeds)
    for domain in domains:
        for name in classes:
            folder = Path(root) / domain / name
            folder.mkdir(parents=True, exist_ok=True)
            for seed in seeds:
                render(name, domain, seed).save(folder / f"{seed}.png")
    return len(domains) * len(classes) * len(seeds)


def _check(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"unknown {what}: {given!r}; allowed: {', '.join(allowed)}")
