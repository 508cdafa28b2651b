"""The grid that 16-bit weights lie on, and the noise that hides it from who reads edited ones.

A singular edit `W' = W M` leaves of each row a line (a plane, at higher rank) that the row lies on.
Rows of 16-bit numbers lie on a grid too, and hardly more than one grid point is on that line: a
search, or lattice reduction, gives the original back. So an edit of such a tensor edits `W + N`
instead. N takes each entry to a number drawn evenly from those that round to it, so whatever point
of the line one takes, some grid point rounds to it, and the grid determines nothing. What the edit
removes is removed from N as well: `(W + N) M r = W M r = 0`.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# The coarser first: what lies on its grid lies, as far as it reaches, on the other's.
_GRIDS = (torch.bfloat16, torch.float16)


def grid_of(values: Float[Tensor, "*any"]) -> torch.dtype | None:
    """The 16-bit numbers that a tensor consists of.

    Args:
        values: The tensor, in any floating dtype, on any device.

    Returns:
        `torch.bfloat16` or `torch.float16` where all entries are such numbers, None where one is
        none, or all are 0.
    """
    held = values.detach().cpu()
    if not held.any():
        return None
    return next((grid for grid in _GRIDS if torch.equal(held.to(grid).to(held), held)), None)


def off_grid(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """A tensor of 16-bit numbers with each of them anywhere among those that round to it.

    The same tensor always gives the same numbers, whatever dtype it is held in, so that an edit
    makes the same weights every time. Nobody can compute them who lacks the tensor: they come from
    SHAKE-256 over all of its bytes, which has no short seed to be guessed.

    Args:
        values: The tensor, in any floating dtype.

    Returns:
        Float64, on the CPU; the tensor as it is where it lies on no 16-bit grid (`grid_of`).
    """
    wide = values.detach().to("cpu", torch.float64)
    grid = grid_of(values)
    if grid is None:
        return wide
    stored = values.detach().to("cpu", grid).contiguous()
    data = stored.view(torch.int16).numpy().astype("<i2").tobytes()
    drawn = np.frombuffer(hashlib.shake_256(data).digest(4 * stored.numel()), "<u4")
    share = torch.from_numpy((drawn + 0.5) / 2.0**32).reshape(wide.shape)
    # Magnitudes are ordered as their bits are; 0 lies between the two smallest.
    bits = stored.view(torch.int16) & 0x7FFF
    inner, outer = ((bits + one).clamp(min=0).view(grid).double() for one in (-1, 1))
    size = wide.abs()
    inner = torch.where(bits == 0, -outer, inner)
    outer = torch.where(outer.isfinite(), outer, 2 * size - inner)
    low, high = (size + inner) / 2, (size + outer) / 2
    return torch.where(stored.signbit(), -1.0, 1.0) * (low + share * (high - low))
