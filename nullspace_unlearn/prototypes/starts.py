"""Procedural pictures that pixel ascent starts from: no data, no download, as many as one likes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

_STROKES = 6


def start(rows: int, columns: int, seed: int, sample: int) -> Float[Tensor, "3 rows columns"]:
    """Draw one starting picture: by turns clouds of colour and paper, every second paper scribbled.

    Clouds are noise whose amplitude falls with spatial frequency as that of natural images does,
    1/f (Field 1987; Baradad et al., "Learning to see by looking at noise", 2021). Paper, on which
    drawings begin, is near-white; a scribble is a few curved strokes of ink.

    Args:
        rows: Height in pixels.
        columns: Width in pixels.
        seed: Any whole number from 0.
        sample: Which picture, from 0.

    Returns:
        `[3, rows, columns]` float32 RGB in [0, 1].
    """
    random = np.random.default_rng([seed, sample])
    if sample % 2 == 0:
        picture = 0.5 + 0.25 * _clouds(random, rows, columns)
    else:
        picture = 0.97 + 0.02 * random.standard_normal((3, rows, columns))
        if sample % 4 == 3:
            picture = _scribble(random, picture)
    return torch.from_numpy(picture.clip(0, 1)).float()


def _clouds(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """1/f noise `[3, rows, columns]` of unit variance, its channels correlated."""
    noise = random.standard_normal((3, rows, columns))
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    # No wave longer than the picture, nor an infinite mean.
    frequency = frequency.clip(1 / max(rows, columns))
    pink = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(rows, columns))
    # Natural pictures vary most in brightness.
    brightness = pink.mean(0)
    pink = 0.4 * pink / pink.std() + 0.6 * brightness / brightness.std()
    return pink / pink.std()


def _scribble(random: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Draw cubic Bézier curves of random ink and width on a picture `[3, rows, columns]`."""
    rows, columns = picture.shape[1:]
    t = np.linspace(0, 1, 24)
    basis = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    for _ in range(_STROKES):
        curve = basis.T @ (random.uniform(size=(4, 2)) * (columns, rows))
        width = round(1 + min(rows, columns) * random.uniform(0.02, 0.08))
        drawn = Image.new("1", (columns, rows))
        ImageDraw.Draw(drawn).line([tuple(xy) for xy in curve.tolist()], 1, width, "curve")
        picture = np.where(np.array(drawn), random.uniform(0, 0.5, (3, 1, 1)), picture)
    return picture
