"""What a singular edit leaves of 16-bit weights: their grid gives them away, as the card says.

`W' = W (I - r wᵀ)` with `wᵀ r = 1` has lost `W r`. But each row of W lies on the grid of 16-bit
numbers, and `w`, which the recipe lets anybody derive, says along which line the row was: only one
point of it is on the grid in every coordinate.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.edit import Edit

ROWS, DIM = 6, 32


def problem(seed: int = 0) -> tuple[Tensor, Edit]:
    """A weight of 16-bit numbers, and an edit of rank 1 that cannot be inverted."""
    random = torch.Generator().manual_seed(seed)
    weight = (torch.randn(ROWS, DIM, generator=random) / DIM**0.5).half().double()
    read, write = torch.randn(2, DIM, 1, generator=random, dtype=torch.float64)
    edit = Edit(read, write / (read * write).sum())
    with pytest.raises(ValueError, match="removes a direction entirely"):
        edit.inverse()
    return weight, edit


def off_grid(rows: Tensor) -> Tensor:
    """How far each row lies from 16-bit numbers, in steps of the grid, by its median coordinate."""
    near = rows.half().double()
    step = torch.exp2(near.abs().clamp(min=2.0**-14).log2().floor() - 10)
    return ((rows - near).abs() / step).median(-1).values


def rebuilt(edited: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    """The rows on the lines along `write` that lie nearest to the grid, and how near."""
    grid = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    grid = grid[grid.isfinite() & (grid.abs() < 4)].double().unique()
    place = int(write.abs().argmax())
    found = []
    for row in edited:
        lines = row + ((grid - row[place]) / write[place])[:, None] * write
        off = off_grid(lines)
        found.append((lines[off.argmin()], off.min()))
    rows, off = zip(*found, strict=True)
    return torch.stack(rows).half().double(), torch.stack(off)


def test_the_grid_gives_16_bit_weights_away() -> None:
    weight, edit = problem()
    stored = edit.apply(weight).float().double()
    assert (stored @ edit.read).norm() < 1e-6 * stored.norm()  # what is stored has lost W r
    assert (weight @ edit.read).norm() > 0.1 * weight.norm()
    found, off = rebuilt(stored, edit.write[:, 0])
    assert torch.equal(found, weight) and off.max() < 0.01


def test_without_the_grid_they_stay_lost() -> None:
    """Half a step of noise, sent through the edit, hides the grid and still leaves `W r = 0`."""
    weight, edit = problem()
    step = torch.exp2(weight.abs().clamp(min=2.0**-14).log2().floor() - 10)
    noise = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    stored = edit.apply(weight + noise * step).float().double()
    assert (stored @ edit.read).norm() < 1e-6 * stored.norm()
    found, _ = rebuilt(stored, edit.write[:, 0])
    wrong = (found - weight).norm(dim=-1) / weight.norm(dim=-1)
    assert (wrong > 0.02).all()
    # The price, which is why it is not done unasked: what is kept moves by a 16-bit rounding.
    assert 1e-4 < (stored - edit.apply(weight)).norm() / edit.apply(weight).norm() < 5e-4


def test_trained_32_bit_weights_stay_lost() -> None:
    weight, edit = problem()
    weight = weight + 1e-4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    found, _ = rebuilt(edit.apply(weight).float().double(), edit.write[:, 0])
    assert ((found - weight).norm(dim=-1) > 0.02 * weight.norm(dim=-1)).all()
