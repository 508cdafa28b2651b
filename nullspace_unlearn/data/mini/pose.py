"""Where and how a figure stands in the picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nullspace_unlearn.data.mini.geometry import Part, turn


def place(figure: list[Part], side: float, rng: np.random.Generator) -> list[Part]:
    """Mirrors, turns, stretches, sizes and shifts a figure into pixels of a square canvas.

    Args:
        figure: Parts in the figure's own coordinates.
        side: Side of the canvas in pixels.
        rng: Source of the pose.

    Returns:
        The same parts, in pixels.
    """
    mirror = rng.choice([-1.0, 1.0])
    angle = rng.normal(0.0, 0.08)
    size = rng.uniform(0.4, 0.52) * side
    stretch = np.array([mirror * rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1)]) * size
    points = np.concatenate([part.points for part in figure])
    centre = (points.min(0) + points.max(0)) / 2
    room = side * (0.5 + rng.uniform(-0.06, 0.06, 2))
    return [
        replace(
            part,
            points=turn((part.points - centre) * stretch, angle) + room,
            width=part.width * size,
        )
        for part in figure
    ]
