"""Random fields: what skies, grounds, paper and canvas are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nullspace_unlearn.data.mini.geometry import Colour

Field = NDArray[np.float32]


def clouds(side: int, cells: int, rng: np.random.Generator) -> Field:
    """Smooth noise ``[side, side]`` of about unit spread, with ``cells`` bumps along each side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def grain(side: int, rng: np.random.Generator) -> Field:
    """Noise without any smoothness, ``[side, side]``."""
    return rng.standard_normal((side, side), dtype=np.float32)


def gradient(side: int, top: Colour, bottom: Colour) -> Field:
    """Vertical blend of two colours, ``[side, side, 3]``."""
    t = np.linspace(0.0, 1.0, side, dtype=np.float32)[:, None, None]
    blend = np.array(top, np.float32) * (1 - t) + np.array(bottom, np.float32) * t
    return np.broadcast_to(blend, (side, side, 3)).copy()


def scenery(side: int, top: Colour, bottom: Colour, horizon: float, rough: float,
            rng: np.random.Generator) -> Field:  # fmt: skip
    """A sky above a textured ground, ``[side, side, 3]``.

    Args:
        side: Side in pixels.
        top: Colour of the sky.
        bottom: Colour of the ground.
        horizon: Height of the horizon as a share of the side, from the top.
        rough: Strength of the ground's texture.
        rng: Source of the noise.

    Returns:
        The picture of the place with nobody in it.
    """
    sky = gradient(side, top, tuple(0.5 * c + 120 for c in top))  # type: ignore[arg-type]
    sky += (clouds(side, 4, rng) * 12)[..., None]
    land = clouds(side, side // 5, rng) * 0.6 + clouds(side, 5, rng) * 0.5
    ground = np.array(bottom, np.float32) * (1 + rough * land)[..., None]
    edge = horizon * side + clouds(side, 5, rng)[0] * side * 0.03
    below = np.arange(side, dtype=np.float32)[:, None] > edge[None]
    return np.where(below[..., None], ground, sky)


def to_image(field: Field) -> Image.Image:
    """An RGB picture of a ``[side, side, 3]`` field in [0, 255]."""
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
