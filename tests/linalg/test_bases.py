"""Bases and norms against scipy, by their theorems."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_rows import randn

from nullspace_unlearn.linalg import as_float64, leading_basis, unit


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_random_rowsthat_are_none_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match="keep holds NaN or Inf"):
        as_float64("keep", torch.tensor([1.0, bad]))


def test_integers_are_refused(unchecked) -> None:
    with unchecked(), pytest.raises(ValueError, match="keep must be a floating point tensor"):
        as_float64("keep", torch.ones(2, dtype=torch.int64))


def test_unit_rows_have_norm_one_and_a_zero_row_stays() -> None:
    rows = torch.cat([randn(5, 3), torch.zeros(1, 3, dtype=torch.float64)])
    norms = unit(rows).norm(dim=-1)
    assert torch.allclose(norms, torch.tensor([1.0] * 5 + [0.0], dtype=torch.float64))


@pytest.mark.parametrize("n, dim", [(4, 9), (9, 4), (5, 5)])
def test_leading_basis_is_scipys(n: int, dim: int) -> None:
    rows = randn(n, dim)
    basis, singular = leading_basis(rows)
    assert torch.allclose(singular, torch.from_numpy(scipy.linalg.svdvals(rows.numpy())))
    assert torch.allclose(basis.mT @ basis, torch.eye(min(n, dim), dtype=torch.float64))
    assert torch.allclose(rows @ basis @ basis.mT, rows)


def test_the_rank_rule_is_relative() -> None:
    rows = torch.diag(torch.tensor([1.0, 1e-5, 1e-8, 0.0], dtype=torch.float64))
    for scale in (1e-9, 1.0, 1e9):
        assert leading_basis(scale * rows)[0].shape[-1] == 2
    assert leading_basis(torch.zeros(3, 4, dtype=torch.float64))[0].shape[-1] == 0


def test_energy_takes_the_fewest_directions() -> None:
    rows = torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0], dtype=torch.float64))  # 9, 4, 1, 1 of 15
    ranks = [leading_basis(rows, energy)[0].shape[-1] for energy in (0.5, 0.61, 0.9, 1.0)]
    assert ranks == [1, 2, 3, 4]


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))
def test_the_basis_finds_the_rank_and_ignores_duplicates(
    seed: int, n: int, dim: int, rank: int
) -> None:
    rows = randn(n, rank, seed=seed) @ randn(rank, dim, seed=seed + 1)
    basis, _ = leading_basis(rows)
    assert basis.shape[-1] <= min(n, dim, rank)
    assert torch.allclose(rows @ basis @ basis.mT, rows, atol=1e-5)
    again, _ = leading_basis(torch.cat([rows, rows, rows[:1]]))
    assert torch.allclose(again @ again.mT, basis @ basis.mT, atol=1e-6)


def test_a_batch_of_bases_pads_with_zero_columns() -> None:
    rows = randn(2, 3, 6)
    rows[0, 1:] = rows[0, :1]
    basis, _ = leading_basis(rows)
    assert basis.shape == (2, 6, 3)
    assert (basis[0, :, 1:] == 0).all()
    for i in range(2):
        one, _ = leading_basis(rows[i])
        assert torch.allclose(basis[i] @ basis[i].mT, one @ one.mT)
