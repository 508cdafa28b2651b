"""Weighted ridge regression at any ridge, and held-out rows: scikit-learn, and refitting."""

import pytest
import torch
from sklearn.linear_model import Ridge as Oracle

from nullspace_unlearn.linalg import Ridge

RANDOM = torch.Generator().manual_seed(3)


def problem(n: int, dim: int, k: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = torch.randn(n, dim, dtype=torch.float64, generator=RANDOM)
    weight = 0.1 + torch.rand(n, dtype=torch.float64, generator=RANDOM)
    target = torch.randn(n, k, dtype=torch.float64, generator=RANDOM)
    return rows, weight, target


@pytest.mark.parametrize(("n", "dim"), [(40, 9), (12, 30)])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_is_scikit_learns_weighted_ridge(n: int, dim: int, ridge: float) -> None:
    rows, weight, target = problem(n, dim)
    own = Ridge(rows, weight)
    scale = float((weight[:, None] * rows.square()).sum() / dim)
    oracle = Oracle(alpha=ridge * scale, fit_intercept=False, solver="cholesky")
    oracle.fit(rows.numpy(), target.numpy(), sample_weight=weight.numpy())
    expected = torch.from_numpy(oracle.coef_.T)
    torch.testing.assert_close(own.solve(target, ridge), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("n", "dim"), [(40, 9), (12, 30)])
@pytest.mark.parametrize("size", [1, 3])
def test_held_out_is_the_loop_that_refits_without_each_group(n: int, dim: int, size: int) -> None:
    rows, weight, target = problem(n, dim)
    group = torch.randperm(n, generator=RANDOM) // size
    own, ridge = Ridge(rows, weight), 0.1
    expected = torch.empty_like(target)
    for one in group.unique():
        out = group == one
        moment = rows[~out].mT @ (weight[~out, None] * rows[~out])
        moment += ridge * own.scale * torch.eye(dim, dtype=torch.float64)
        right = rows[~out].mT @ (weight[~out, None] * target[~out])
        expected[out] = rows[out] @ torch.linalg.solve(moment, right)
    found = own.held_out(target, ridge, group)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    # Control: what is fitted with the rows in is something else.
    assert (rows @ own.solve(target, ridge) - expected).norm() > 0.01 * expected.norm()


def test_scale_of_weights_and_rows_does_not_matter() -> None:
    rows, weight, target = problem(20, 6)
    plain = rows @ Ridge(rows, weight).solve(target, 0.1)
    scaled = 1e-3 * rows @ Ridge(1e-3 * rows, 7 * weight).solve(target, 0.1)
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-12)
