"""Colours of things, before a domain draws them its own way."""

from __future__ import annotations

import colorsys

import numpy as np

from nullspace_unlearn.data.mini.geometry import Colour

BLACK: Colour = (28, 28, 32)
WHITE: Colour = (244, 244, 240)
GLASS: Colour = (120, 165, 195)
METAL: Colour = (175, 178, 184)
_FURS: tuple[Colour, ...] = (
    (122, 82, 50),
    (172, 122, 72),
    (205, 165, 115),
    (78, 66, 58),
    (150, 145, 140),
    (220, 212, 200),
    (196, 112, 52),
    (48, 44, 46),
)


def from_hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in [0, 255] from a hue, saturation and value in [0, 1]."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return (255 * r, 255 * g, 255 * b)


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter (factor > 1) version of a colour."""
    r, g, b = (min(255.0, c * factor) for c in colour)
    return (r, g, b)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` with a ``share`` of ``b`` in it."""
    r, g, v = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return (r, g, v)


def stretch(colour: Colour, saturation: float, value: float) -> Colour:
    """Multiplies the saturation and the value of a colour."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    return from_hsv(h, min(1.0, s * saturation), min(1.0, v * value))


def paint(rng: np.random.Generator) -> Colour:
    """Any colour that people paint things in."""
    if rng.random() < 0.2:
        return shade(WHITE, rng.uniform(0.35, 1.0))
    return from_hsv(rng.random(), rng.uniform(0.45, 0.9), rng.uniform(0.45, 0.95))


def fur(rng: np.random.Generator) -> Colour:
    """Any colour that a furry animal has."""
    return shade(_FURS[rng.integers(len(_FURS))], rng.uniform(0.85, 1.15))


def leaf(rng: np.random.Generator) -> Colour:
    """Green, now and then autumnal."""
    hue = rng.uniform(0.22, 0.4) if rng.random() < 0.8 else rng.uniform(0.04, 0.13)
    return from_hsv(hue, rng.uniform(0.5, 0.85), rng.uniform(0.35, 0.7))


def luminance(colour: Colour) -> float:
    """Perceived brightness in [0, 1]."""
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255
