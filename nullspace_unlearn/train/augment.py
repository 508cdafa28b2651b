"""The usual variations of a training image: mirrored, and a crop of it at the full size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SMALLEST = 0.6
"""Least share of the area that a crop keeps; subjects of few-shot sets mostly fill the image."""


def augment(
    images: Float[Tensor, "b 3 rows columns"], generator: torch.Generator
) -> Float[Tensor, "b 3 rows columns"]:
    """Mirror half of the images, and cut and enlarge a random square of each (bilinear).

    Args:
        images: `[b, 3, rows, columns]`.
        generator: Source of randomness, on the CPU.

    Returns:
        `[b, 3, rows, columns]` on the same device.
    """

    def uniform() -> Tensor:
        return torch.rand(len(images), generator=generator)

    side = (SMALLEST + (1 - SMALLEST) * uniform()).sqrt()
    mirror = torch.where(uniform() < 0.5, -1.0, 1.0)
    right, down = ((1 - side) * (2 * uniform() - 1) for _ in range(2))
    zero = torch.zeros_like(side)
    rows = [torch.stack([side * mirror, zero, right], 1), torch.stack([zero, side, down], 1)]
    where = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, where.to(images), padding_mode="border", align_corners=False)
