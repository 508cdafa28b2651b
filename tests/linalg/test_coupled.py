"""Heads that write together. Oracle: the normal equations in all unknowns, one dense system."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.linalg import CoupledRidge, Ridge

N, HEADS, SOURCE, DIM, SIZE = 9, 3, 5, 6, 2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def problem() -> tuple[CoupledRidge, Tensor]:
    bases = torch.linalg.qr(randn(HEADS, DIM, SIZE)).Q
    weight = randn(N, seed=1).abs() + 0.1
    return CoupledRidge(randn(N, HEADS, SOURCE, seed=2), weight, bases), randn(N, DIM, seed=3)


def dense(one: CoupledRidge, target: Tensor, strength: float) -> Tensor:
    """Row by row, a column an unknown: weighted least squares with rows of the ridge below."""
    heads, dim, size = one.bases.shape
    n, _, source = one.rows.shape
    design = torch.zeros(n, dim, heads, source, size, dtype=torch.float64)
    for i in range(n):
        for h in range(heads):
            design[i, :, h] = torch.einsum("s,dr->dsr", one.rows[i, h], one.bases[h])
    design = (one.weight.sqrt()[:, None, None, None, None] * design).reshape(n * dim, -1)
    right = (one.weight.sqrt()[:, None] * target).reshape(-1)
    normal = design.T @ design + strength * torch.eye(design.shape[1], dtype=torch.float64)
    return torch.linalg.solve(normal, design.T @ right).reshape(heads, source, size)


def strength(one: CoupledRidge, ridge: float) -> float:
    size = (one.weight[:, None, None] * one.rows.square()).sum() / one.rows.shape[-1]
    return float(ridge * size * one.bases.square().sum() / (len(one.bases) * one.bases.shape[1]))


@pytest.mark.parametrize("ridge", [1e-3, 0.6, 30.0])
def test_it_is_the_least_of_the_sum(problem, ridge: float) -> None:
    one, target = problem
    exact = dense(one, target, strength(one, ridge))
    found = one.solve(target, ridge)
    assert (found - exact).norm() < 1e-6 * exact.norm()
    # Controls: another ridge, and each head fitted by itself, are other solutions.
    assert (found - one.solve(target, 2 * ridge)).norm() > 1e-3 * exact.norm()
    alone = [
        dense(CoupledRidge(one.rows[:, [h]], one.weight, one.bases[[h]]), target,
              strength(one, ridge))
        for h in range(HEADS)
    ]  # fmt: skip
    assert (torch.cat(alone) - exact).norm() > 1e-2 * exact.norm()


def test_a_head_that_leads_nowhere_writes_nothing(problem) -> None:
    one, target = problem
    bases = one.bases.clone()
    bases[1, :, 1] = 0
    closed = CoupledRidge(one.rows, one.weight, bases)
    found = closed.solve(target, 0.6)
    exact = dense(closed, target, strength(closed, 0.6))
    assert (found - exact).norm() < 1e-6 * exact.norm()
    assert found[1, :, 1].abs().max() < 1e-12 < found[1, :, 0].abs().max()
    assert not closed.solve(torch.zeros_like(target), 0.6).any()


def test_heads_that_write_everywhere_are_one_ridge(problem) -> None:
    """Oracle: `Ridge` on the rows side by side; left out, too, by refitting without them."""
    one, target = problem
    whole = torch.eye(DIM, dtype=torch.float64).expand(HEADS, -1, -1)
    wide = CoupledRidge(one.rows, one.weight, whole)
    side_by_side = Ridge(one.rows.flatten(1), one.weight)
    found = wide.solve(target, 0.6).flatten(0, 1)
    plain = side_by_side.solve(target, 0.6 * HEADS)  # relative to all dimensions, not to a head's
    assert (found - plain).norm() < 1e-6 * plain.norm()
    group = torch.arange(N) % 4
    held = one.held_out(target, 0.6, group)  # whatever the heads write
    expected = side_by_side.held_out(target, 0.6 * HEADS, group)
    assert (held - expected).norm() < 1e-8 * expected.norm()
    rest = group != 0
    scale = (one.weight[:, None, None] * one.rows.square()).sum() / SOURCE
    rows = one.rows.flatten(1) * one.weight.sqrt()[:, None]
    normal = rows[rest].T @ rows[rest] + 0.6 * scale * torch.eye(HEADS * SOURCE).double()
    fitted = torch.linalg.solve(normal, rows[rest].T @ (one.weight.sqrt()[:, None] * target)[rest])
    assert (held[~rest] - one.rows.flatten(1)[~rest] @ fitted).norm() < 1e-8 * held.norm()
    assert (held - one.rows.flatten(1) @ plain).norm() > 0.1 * held.norm()  # control: not left out
