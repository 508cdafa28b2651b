"""Covariances, duals and ridge regressions against numpy, scipy and scikit-learn."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_rows import randn
from sklearn.linear_model import Ridge
from torch import Tensor

from nullspace_unlearn.linalg import (
    covariance,
    oblique_dual,
    one_sided_ridge,
    regularised,
    solve_covariance_of_kept,
    solve_definite,
    solve_moment_of_kept,
    weighted_ridge,
)
from nullspace_unlearn.linalg import ridge as ridges


@pytest.mark.parametrize("n, dim", [(6, 15), (40, 15), (15, 15)])
def test_weighted_ridge_is_scikit_learns(n: int, dim: int) -> None:
    rows, weight, target = randn(n, dim), randn(3, n, seed=1).abs(), randn(3, n, seed=2)
    weight[:, 0] = 0
    ridge = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    ours = weighted_ridge(rows, weight, target, ridge)
    for i in range(3):
        alpha = float(ridge[i] * rows.square().sum(-1).mean() / dim)
        peer = Ridge(alpha=alpha, fit_intercept=False, solver="svd")
        peer.fit(rows.numpy(), target[i].numpy(), sample_weight=weight[i].numpy())
        assert np.allclose(ours[i].numpy(), peer.coef_, atol=1e-10)


def test_both_ridge_branches_agree() -> None:
    rows, weight, target = randn(6, 8), randn(6, seed=1).abs(), randn(6, seed=2)
    ridge = torch.tensor(0.5, dtype=torch.float64)
    few_rows = weighted_ridge(rows, weight, target, ridge)
    # Three rows of weight 0 force the other branch; they change the relative ridge, so undo that.
    more = torch.cat([rows, randn(3, 8, seed=3)])
    undo = rows.square().sum(-1).mean() / more.square().sum(-1).mean()
    pad = torch.nn.functional.pad
    many_rows = weighted_ridge(more, pad(weight, (0, 3)), pad(target, (0, 3)), ridge * undo)
    assert torch.allclose(few_rows, many_rows, atol=1e-10)


def test_covariance_is_numpys() -> None:
    rows, weight = randn(20, 5), randn(3, 20, seed=1).abs()
    assert np.allclose(covariance(rows).numpy(), np.cov(rows.numpy().T, bias=True))
    for i, ours in enumerate(covariance(rows, weight)):
        peer = np.cov(rows.numpy().T, aweights=weight[i].numpy(), bias=True)
        assert np.allclose(ours.numpy(), peer)


def test_weights_of_zero_and_one_are_a_slice() -> None:
    rows, kept = randn(20, 5), randn(20, seed=1) > 0
    assert torch.allclose(covariance(rows, kept.double()), covariance(rows[kept]))


def test_copies_of_one_row_have_no_covariance() -> None:
    rows = randn(1, 5).repeat(3, 1)
    assert (rows - rows.mean(0)).abs().max() > 0  # though their mean is rounded
    assert (covariance(rows) == 0).all()
    assert (covariance(torch.cat([rows, 1.001 * rows])) != 0).all()


def test_regularised_adds_a_relative_ridge() -> None:
    matrix = covariance(randn(4, 6))
    assert torch.linalg.matrix_rank(matrix) < 6  # what the ridge is for
    ridged = regularised(matrix, 0.1)
    expected = matrix.numpy() + 0.1 * np.trace(matrix.numpy()) / 6 * np.eye(6)
    assert np.allclose(ridged.numpy(), expected)
    assert torch.allclose(regularised(1e9 * matrix, 0.1), 1e9 * ridged)
    assert torch.linalg.matrix_rank(regularised(torch.zeros_like(matrix), 0.1)) == 6


def test_solve_definite_is_solve() -> None:
    matrix, right = regularised(covariance(randn(2, 9, 5)), 0.1), randn(2, 5, 3)
    assert torch.allclose(solve_definite(matrix, right), torch.linalg.solve(matrix, right))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n", [7, 40])
def test_the_covariance_of_what_is_kept_is_solved_without_forming_it(n: int, shared: bool) -> None:
    """Oracle: the covariance of the sliced rows, solved densely, one member at a time."""
    random = torch.Generator().manual_seed(n)
    rows = torch.randn(*(() if shared else (6,)), n, 12, dtype=torch.float64, generator=random)
    kept = torch.rand(6, n, generator=random) > torch.tensor([0, 0.1, 0.3, 0.5, 0.7, 0.8])[:, None]
    kept[:, 0] = kept[:, 1] = True
    right = torch.randn(6, 12, 3, dtype=torch.float64, generator=random)
    ours = solve_covariance_of_kept(rows, kept, 0.01, right)
    for i in range(6):
        own = (rows if shared else rows[i])[kept[i]]
        dense = torch.linalg.solve(regularised(covariance(own), 0.01), right[i]) / len(own)
        torch.testing.assert_close(ours[i], dense, rtol=1e-9, atol=1e-12)
        everything = solve_covariance_of_kept(rows, torch.ones_like(kept), 0.01, right)[i]
        assert kept[i].all() or not torch.allclose(ours[i], everything, rtol=1e-3)  # the control


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("n_kept", [2, 5, 60])
def test_few_near_rows_keep_their_digits_among_many(n_kept: int, ridge: float) -> None:
    """Oracle: the kept rows alone, in numbers of 50 digits; the control is the plain downdate."""
    dim, plain_is_off = 6, []
    for apart in (1.0, 1e-2, 1e-4, 1e-5, 1e-6, 1e-8):
        rows = randn(80, dim)
        rows[:n_kept] = rows[0] + apart * randn(n_kept, dim, seed=1)
        kept, right = torch.arange(80) < n_kept, randn(dim, 1, seed=2)
        expected = exact_solution(rows[:n_kept], ridge, right)
        batch = torch.stack([kept, torch.ones_like(kept)])
        ours = solve_covariance_of_kept(rows, batch, ridge, right.expand(2, dim, 1))
        assert (ours[0] - expected).norm() < 1e-8 * expected.norm()
        everything = torch.linalg.solve(regularised(covariance(rows), ridge), right) / 80
        assert (ours[1] - everything).norm() < 1e-8 * everything.norm()
        centred = rows - rows.mean(0)
        gone, mean = centred[n_kept:], centred[:n_kept].mean(0)
        moment = centred.T @ centred - gone.T @ gone - n_kept * mean[:, None] * mean
        plain = torch.linalg.solve(regularised(moment, ridge), right)
        plain_is_off.append(float((plain - expected).norm() / expected.norm()))
    assert plain_is_off[0] < 1e-8 and min(plain_is_off[-2:]) > 1e-5


def exact_solution(rows: Tensor, ridge: float, right: Tensor) -> Tensor:
    """`(n cov + ridge tr/dim)⁻¹ right` by Gauss's elimination in fifty digits."""
    with mpmath.workdps(50):
        columns = [[mpmath.mpf(x) for x in column] for column in rows.T.tolist()]
        means = [mpmath.fsum(column) / len(column) for column in columns]
        centred = [[x - mean for x in c] for c, mean in zip(columns, means, strict=True)]
        moment = mpmath.matrix([[mpmath.fdot(a, b) for b in centred] for a in centred])
        dim = len(columns)
        moment += ridge * sum(moment[i, i] for i in range(dim)) / dim * mpmath.eye(dim)
        solved = mpmath.lu_solve(moment, mpmath.matrix(right.tolist()))
        return torch.tensor([[float(x)] for x in solved], dtype=torch.float64)


def test_one_kept_row_leaves_the_right_side_alone() -> None:
    rows, right = torch.randn(5, 4, dtype=torch.float64), torch.randn(1, 4, 2, dtype=torch.float64)
    kept = torch.tensor([[False, False, True, False, False]])
    assert torch.equal(solve_covariance_of_kept(rows, kept, 0.01, right), right)


def test_the_oblique_dual_is_dual_and_least_in_its_metric() -> None:
    basis, spread = randn(2, 9, 3), regularised(covariance(randn(2, 30, 9, seed=1)), 0.01)
    basis[1, :, 2] = 0  # a column that this member does not need
    dual = oblique_dual(basis, solve_definite(spread, basis))
    identity = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    identity[1, 2, 2] = 0
    torch.testing.assert_close(dual.mT @ basis, identity, atol=1e-12, rtol=0)
    assert dual[1, :, 2].eq(0).all()
    own = np.linalg.pinv(basis[0].numpy()).T  # the control: dual too, but not least
    one, metric = dual[0].numpy(), spread[0].numpy()
    assert np.trace(one.T @ metric @ one) < 0.99 * np.trace(own.T @ metric @ own)
    assert np.allclose(own.T @ basis[0].numpy(), np.eye(3))


# Ridge regression onto intervals.


def intervals(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Rows, weights, bounds (some open on a side, or on both) and ridge of very unequal sizes."""
    sizes = torch.Generator().manual_seed(seed)
    n, dim = (int(torch.randint(low, high, (), generator=sizes)) for low, high in ((2, 14), (1, 8)))
    rows = randn(n, dim, seed=seed) * randn(n, 1, seed=seed + 1).mul(2).exp()
    weight = randn(n, seed=seed + 2).mul(2).exp()
    middle, half = 3 * randn(n, seed=seed + 3), randn(n, seed=seed + 4).abs()
    openness = randn(2, n, seed=seed + 5)
    low = (middle - half).masked_fill(openness[0] < -0.5, -torch.inf)
    high = (middle + half).masked_fill(openness[1] > 0.5, torch.inf)
    return rows, weight, low, high, 10.0 ** float(torch.randint(-6, 1, (), generator=sizes))


def misfit(g: Tensor, rows: Tensor, weight: Tensor, low: Tensor, high: Tensor, ridge: float):
    """The objective as its docstring has it, by two hinges."""
    value = rows @ g
    distance = (low - value).clamp(min=0) + (value - high).clamp(min=0)
    return (weight * distance**2).sum() + ridge * (rows**2).mean() * (g**2).sum()


def slope(g: Tensor, *problem) -> Tensor:
    g = g.clone().requires_grad_()
    return torch.autograd.grad(misfit(g, *problem), g)[0]


def test_the_gradient_onto_intervals_vanishes() -> None:
    """Convex and differentiable, so a zero gradient is the optimum, by autograd of the objective.

    The problems are hard enough: on some of them the same steps, always taken whole, go in circles,
    and on most they raise the objective on the way.
    """
    noticed = circling = raising = 0
    for seed in range(150):
        problem = intervals(seed)
        rows, weight, low, high, ridge = problem
        ours, zero = one_sided_ridge(*problem), torch.zeros_like(rows[0])
        none = 1e-7 * slope(zero, *problem).norm()
        assert slope(ours, *problem).norm() <= none, seed
        noticed += bool(slope(1.01 * ours, *problem).norm() > none)  # the control
        g, pieces, costs = zero, [], [misfit(zero, *problem)]
        while len(pieces) < 60:
            value = rows @ g
            piece = ((value > high).int() - (value < low).int()).tolist()
            if piece in pieces[-1:]:
                break
            pieces.append(piece)
            sign = torch.tensor(piece)
            target = torch.where(sign > 0, high, low).masked_fill(sign == 0, 0)
            strength = torch.tensor(ridge, dtype=torch.float64)
            g = weighted_ridge(rows, weight * (sign != 0), target, strength)
            costs.append(misfit(g, *problem))
        circling += len(pieces) == 60
        raising += any(b > a * (1 + 1e-9) for a, b in zip(costs, costs[1:], strict=False))
    assert noticed > 100 and circling > 0 and raising > 30


@pytest.mark.parametrize("n, dim", [(5, 12), (30, 6)])
def test_ridge_onto_intervals_is_scipys(n: int, dim: int) -> None:
    for seed in range(8):
        rows, weight = randn(n, dim, seed=seed), randn(n, seed=seed + 1).abs()
        low = randn(n, seed=seed + 2)
        high = low + randn(n, seed=seed + 3).abs()
        low[::3], high[1::3] = -torch.inf, torch.inf
        problem = (rows, weight, low, high, 0.05)

        def value_and_slope(x, problem=problem):
            g = torch.from_numpy(x)
            return float(misfit(g, *problem)), slope(g, *problem).numpy()

        solved = scipy.optimize.minimize(
            value_and_slope,
            np.zeros(dim),
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 5000, "maxfun": 20_000},
        )
        ours = one_sided_ridge(*problem)
        assert np.allclose(ours.numpy(), solved.x, atol=1e-6)
        middle = (low.clamp(min=-1) + high.clamp(max=1)) / 2  # the control: squares on both sides
        plain = weighted_ridge(rows, weight, middle, torch.tensor(0.05, dtype=torch.float64))
        assert not np.allclose(plain.numpy(), solved.x, atol=1e-2)


@pytest.mark.parametrize("n, dim", [(5, 12), (30, 6)])
@pytest.mark.parametrize("ridge", [1e-9, 1e-3, 10.0])
def test_intervals_of_one_point_are_plain_ridge(n: int, dim: int, ridge: float) -> None:
    rows, weight, target = randn(n, dim), randn(n, seed=1).abs(), randn(n, seed=2)
    strength = torch.tensor(ridge, dtype=torch.float64)
    expected = weighted_ridge(rows, weight, target, strength)
    ours = one_sided_ridge(rows, weight, target, target, ridge)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    upwards = one_sided_ridge(rows, weight, target, torch.full_like(target, torch.inf), ridge)
    assert not torch.allclose(upwards, expected, rtol=1e-3)  # the control


def test_bounds_that_hold_at_zero_ask_for_nothing() -> None:
    rows, weight = randn(6, 4), randn(6, seed=1).abs()
    infinite = torch.full((6,), torch.inf, dtype=torch.float64)
    for low, high in ((-infinite, infinite), (-infinite, 0 * weight), (-weight, weight)):
        assert one_sided_ridge(rows, weight, low, high, 0.1).eq(0).all()
    assert one_sided_ridge(rows, weight, weight, infinite, 0.1).any()  # the control
    none = torch.zeros_like(weight)
    assert one_sided_ridge(rows, none, weight, infinite, 0.1).eq(0).all()


def test_a_row_that_ends_upon_its_bound_is_no_reason_not_to_end() -> None:
    """Of orthonormal rows one must rise; the others stay at 0, their bound, up to rounding."""
    for seed in range(20):
        rows = torch.linalg.qr(randn(8, 8, seed=seed))[0][:6]
        low = torch.tensor([1.0] + 5 * [-torch.inf], dtype=torch.float64)
        high = torch.tensor([torch.inf] + 5 * [0.0], dtype=torch.float64)
        ours = one_sided_ridge(rows, torch.ones_like(low), low, high, 0.8)
        # By hand: min (1 - a)² + 0.8 · a²/8 along the one row.
        assert torch.allclose(ours, rows[0] / 1.1, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 25])
@pytest.mark.parametrize("n, dim", [(5, 12), (30, 6)])
def test_a_batch_of_intervals_is_a_loop_whatever_the_chunk(
    monkeypatch, n: int, dim: int, chunk: int
) -> None:
    monkeypatch.setattr(ridges, "_CHUNK", chunk)
    rows, weight = randn(n, dim), randn(2, 3, n, seed=1).abs()
    low = randn(2, 3, n, seed=2)
    high = low + randn(2, 3, n, seed=3).abs()
    batch = one_sided_ridge(rows, weight, low, high, 0.01)
    assert batch.shape == (2, 3, dim)
    for i in range(2):
        for j in range(3):
            one = one_sided_ridge(rows, weight[i, j], low[i, j], high[i, j], 0.01)
            assert torch.allclose(batch[i, j], one, atol=1e-11)
    assert not torch.allclose(batch[0, 0], batch[1, 2], atol=1e-3)  # the control


@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1e-2, 1e3, 1e8]))
def test_intervals_scale_with_their_rows(seed: int, scale: float) -> None:
    """The ridge is relative: `g` for rows times s is `g/s`, and bounds times s give `g·s`."""
    rows, weight, low, high, ridge = intervals(seed)
    plain = one_sided_ridge(rows, weight, low, high, 0.01 + ridge)
    longer = one_sided_ridge(scale * rows, weight, low, high, 0.01 + ridge)
    wider = one_sided_ridge(rows, weight, scale * low, scale * high, 0.01 + ridge)
    torch.testing.assert_close(scale * longer, plain, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(wider / scale, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("n", "dim"), [(12, 30), (40, 30), (200, 30)])
def test_rows_without_weight_cost_nothing_and_count_for_nothing(n: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rows, target = (torch.randn(*s, generator=generator).double() for s in ((n, dim), (3, n)))
    weight = torch.rand(3, n, generator=generator).double()
    weight[0, 5:] = 0  # fewer rows than dimensions, and another number in each problem
    weight[1, 9:] = 0
    ridge = torch.tensor([0.1, 1.0, 10.0]).double()
    scale = ridge * rows.square().sum(-1).mean() / dim
    for problems in (slice(0, 2), slice(0, 3)):
        given = rows, weight[problems], target[problems], ridge[problems]
        expected = [
            np.linalg.solve(
                (rows.T * weight[k]) @ rows + scale[k] * torch.eye(dim).double(),
                rows.T @ (weight[k] * target[k]),
            )
            for k in range(problems.stop)
        ]
        for gram in (None, rows @ rows.T):
            assert np.allclose(weighted_ridge(*given, gram), expected, rtol=1e-9, atol=1e-12)
    kept = weighted_ridge(rows, torch.ones_like(weight), target, ridge)
    assert not np.allclose(kept[:1], expected[0])  # the control


@pytest.mark.parametrize("kept_all", [True, False])
def test_a_moment_is_a_covariance_and_a_mean(kept_all: bool) -> None:
    """Oracle: the second moment itself, solved in float64."""
    random = torch.Generator().manual_seed(3)
    rows = torch.randn(40, 6, generator=random, dtype=torch.float64) + 2
    right = torch.randn(3, 6, 2, generator=random, dtype=torch.float64)
    kept = torch.rand(3, 40, generator=random) > (-1 if kept_all else 0.4)
    ours = solve_moment_of_kept(rows, kept, 0.01, right)
    about_mean = solve_covariance_of_kept(rows, kept, 0.01, right)
    for i in range(3):
        some = rows[kept[i]]
        spread = torch.cov(some.T, correction=0)
        moment = some.T @ some / len(some) + 0.01 * spread.trace() / 6 * torch.eye(6).double()
        oracle = torch.linalg.solve(moment, right[i]) / len(some)
        torch.testing.assert_close(ours[i], oracle, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(about_mean[i], oracle, rtol=0.1)  # the control
