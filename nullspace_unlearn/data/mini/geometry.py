"""Points and outlines: the few primitives every picture is built of.

Coordinates are a figure's own: x to the right and y down, both roughly within [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """One piece of a figure.

    Attributes:
        points: Outline of a region, or the course of a line, ``[n, 2]``.
        fill: RGB colour, each channel in [0, 255].
        width: 0 for a filled region; else the thickness of a line along ``points``.
        outline: Whether a style that outlines things should outline this one.
    """

    points: Points
    fill: Colour
    width: float = 0.0
    outline: bool = True


def polygon(*corners: tuple[float, float]) -> Points:
    """Straight-edged outline through the given corners."""
    return np.array(corners, dtype=np.float64)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Upright rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0, n: int = 20) -> Points:
    """Ellipse around ``(x, y)``, turned clockwise by ``angle`` radians."""
    t = np.linspace(0.0, 2.0 * np.pi, n, endpoint=False)
    return turn(np.stack([rx * np.cos(t), ry * np.sin(t)], axis=1), angle) + (x, y)


def turn(points: Points, angle: float) -> Points:
    """Rotates points about the origin, clockwise on the screen for a positive angle."""
    c, s = np.cos(angle), np.sin(angle)
    turned: Points = points @ np.array([[c, s], [-s, c]])
    return turned


def curve(*knots: tuple[float, float], closed: bool = True, per_knot: int = 5) -> Points:
    """Smooth (Catmull-Rom) curve through the given points."""
    k = np.array(knots, dtype=np.float64)
    if closed:
        k = np.concatenate([k[-1:], k, k[:2]])
    else:
        k = np.concatenate([2 * k[:1] - k[1:2], k, 2 * k[-1:] - k[-2:-1]])
    p0, p1, p2, p3 = (k[i : len(k) - 3 + i, None] for i in range(4))
    t = np.linspace(0.0, 1.0, per_knot, endpoint=False)[None, :, None]
    spans = 0.5 * (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    points = spans.reshape(-1, 2)
    return points if closed else np.concatenate([points, k[-2:-1]])


def densify(points: Points, step: float, closed: bool) -> Points:
    """Resamples an outline at about equal spacing, so that a style can bend straight edges."""
    if closed:
        points = np.concatenate([points, points[:1]])
    lengths = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.linspace(0.0, along[-1], max(3, int(along[-1] / step) + 1))
    return np.stack([np.interp(at, along, points[:, i]) for i in (0, 1)], axis=1)
