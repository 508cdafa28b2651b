"""The linear algebra against scipy, scikit-learn, numpy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from nullspace_unlearn import linalg
from nullspace_unlearn.linalg import (
    as_float64,
    covariance,
    leading_basis,
    nearest_in_hull,
    oblique_dual,
    one_sided_ridge,
    regularised,
    solve_covariance_of_kept,
    solve_definite,
    unit,
    weighted_ridge,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Input.


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match="keep holds NaN or Inf"):
        as_float64("keep", torch.tensor([1.0, bad]))


def test_integers_are_refused(unchecked) -> None:
    with unchecked(), pytest.raises(ValueError, match="keep must be a floating point tensor"):
        as_float64("keep", torch.ones(2, dtype=torch.int64))


def test_unit_rows_have_norm_one_and_a_zero_row_stays() -> None:
    rows = torch.cat([randn(5, 3), torch.zeros(1, 3, dtype=torch.float64)])
    norms = unit(rows).norm(dim=-1)
    assert torch.allclose(norms, torch.tensor([1.0] * 5 + [0.0], dtype=torch.float64))


# The nearest point of a hull.


def optimality(points: Tensor, vertices: Tensor, nearest: Tensor) -> Tensor:
    """`max_v (p - x)·(v - x)`: at most 0 if and only if x, in the hull, is the nearest to p."""
    residual = points - nearest
    return (residual @ vertices.mT).amax(-1) - (residual * nearest).sum(-1)


def scipy_distance(point: Tensor, vertices: Tensor) -> float:
    """Distance by non-negative least squares, the sum held at 1 by a heavy row."""
    heavy = 1e5
    system = np.vstack([vertices.numpy().T, heavy * np.ones(len(vertices))])
    weights, _ = scipy.optimize.nnls(system, np.append(point.numpy(), heavy), maxiter=10_000)
    weights /= weights.sum()
    return float(np.linalg.norm(point.numpy() - weights @ vertices.numpy()))


def problem(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Points and vertices of random sizes, fewer or more vertices than dimensions."""
    sizes = torch.Generator().manual_seed(seed)
    n, dim, m = (int(torch.randint(1, high, (), generator=sizes)) for high in (40, 25, 6))
    vertices, points = randn(n, dim, seed=seed), randn(m, dim, seed=seed + 1000)
    if kind == "one vertex":
        vertices = vertices[:1]
    elif kind == "rank one":
        vertices = vertices[:, :1] * vertices[:1]
    elif kind == "duplicates":
        vertices = vertices.repeat(3, 1)
    elif kind == "near duplicates":
        vertices = torch.cat([vertices, vertices + 1e-9 * randn(n, dim, seed=seed + 2000)])
    elif kind == "lattice":
        vertices, points = vertices.round(), points.round()
    elif kind == "cone":
        vertices, points = unit(vertices + 3), unit(points + 3)
    elif kind == "inside":
        points = torch.softmax(randn(m, n, seed=seed), -1) @ vertices
    elif kind == "near a vertex":
        points = vertices[:1] + 10.0 ** -(seed % 17) * points
    return points, vertices


KINDS = (
    "plain,one vertex,rank one,duplicates,near duplicates,lattice,cone,inside,near a vertex"
).split(",")


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_point_of_many_hulls(kind: str) -> None:
    for seed in range(40):
        points, vertices = problem(kind, seed)
        found = nearest_in_hull(points, vertices)
        weights = found.dense(len(vertices))
        assert (found.weight >= 0).all()
        assert torch.allclose(weights.sum(-1), torch.ones_like(weights[:, 0]))
        assert torch.allclose(weights @ vertices, found.point, atol=1e-12)
        assert (optimality(points, vertices, found.point) < 1e-8).all()
        distance = (points - found.point).norm(dim=-1)
        if kind == "inside":
            assert (distance < 1e-5).all()
        if seed < 8:
            for point, ours in zip(points, distance, strict=True):
                assert abs(scipy_distance(point, vertices) - float(ours)) < 1e-4


def test_the_optimality_condition_can_fail() -> None:
    points, vertices = problem("plain", 7)
    nearest = nearest_in_hull(points, vertices).point
    middle = vertices.mean(0).expand_as(nearest)
    assert (optimality(points, vertices, middle) > 1e-3).all()


def test_weights_against_a_quadratic_programme() -> None:
    points, vertices = randn(1, 4, seed=1), randn(6, 4, seed=2)
    v, p = vertices.numpy(), points[0].numpy()
    solved = scipy.optimize.minimize(
        lambda a: ((p - a @ v) ** 2).sum(),
        np.full(6, 1 / 6),
        jac=lambda a: -2 * v @ (p - a @ v),
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    ours = nearest_in_hull(points, vertices)
    assert np.allclose(ours.point[0].numpy(), solved.x @ v, atol=1e-5)


def test_a_mask_is_a_slice() -> None:
    points, vertices = randn(5, 8), unit(randn(30, 8, seed=1) + 1)
    allowed = randn(5, 30, seed=2) > 0
    masked = nearest_in_hull(points, vertices, allowed)
    assert not (masked.dense(30) > 0)[~allowed].any()
    for i in range(5):
        sliced = nearest_in_hull(points[i : i + 1], vertices[allowed[i]])
        assert torch.allclose(masked.point[i], sliced.point[0], atol=1e-10)


@pytest.mark.parametrize("own", [True, False], ids=["vertices each", "vertices shared"])
def test_a_batch_is_a_loop(own: bool) -> None:
    points = randn(2, 3, 4, 10)
    vertices = randn(2, 3, 15, 10, seed=1) if own else randn(15, 10, seed=1)
    allowed = randn(2, 3, 4, 15, seed=2) > -1
    batch = nearest_in_hull(points, vertices, allowed)
    for i in range(2):
        for j in range(3):
            one = nearest_in_hull(points[i, j], vertices[i, j] if own else vertices, allowed[i, j])
            assert torch.allclose(batch.point[i, j], one.point, atol=1e-10)
            assert torch.allclose(batch.dense(15)[i, j], one.dense(15), atol=1e-8)


@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1e-2, 1e3, 1e8]), st.sampled_from(KINDS))
def test_the_nearest_point_scales(seed: int, scale: float, kind: str) -> None:
    points, vertices = problem(kind, seed)
    plain = nearest_in_hull(points, vertices).point
    scaled = nearest_in_hull(points * scale, vertices * scale).point
    assert torch.allclose(scaled / scale, plain, atol=1e-4)


@pytest.mark.parametrize("fresh", [1, 3])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_few_vertices_at_a_time_find_the_same_point(
    fresh: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, vertices = randn(3, 2, 12), unit(randn(200, 12, seed=1) + 1)
    allowed = randn(3, 1, 200, seed=2) > -1
    whole = nearest_in_hull(points, vertices, allowed)
    monkeypatch.setattr(linalg, "_FRESH", fresh)
    monkeypatch.setattr(linalg, "_CHUNK", chunk)
    monkeypatch.setattr(linalg, "_CACHE", chunk)
    parts = nearest_in_hull(points, vertices, allowed)
    assert torch.allclose(parts.point, whole.point, atol=1e-10)
    assert (parts.gap <= 1e-10).all()
    # The control: the few nearest vertices alone do not hold the point.
    nearest = torch.cdist(points, vertices).masked_fill(~allowed, torch.inf).argsort(-1)[..., :12]
    few = torch.zeros(3, 2, 200, dtype=torch.bool).scatter(-1, nearest, True)
    assert (nearest_in_hull(points, vertices, few).point - whole.point).abs().max() > 1e-3


def test_a_mask_that_a_member_s_points_share() -> None:
    points, vertices = randn(4, 3, 8), unit(randn(30, 8, seed=1) + 1)
    allowed = randn(4, 1, 30, seed=2) > 0
    one, each = (nearest_in_hull(points, vertices, a) for a in (allowed, allowed.expand(4, 3, 30)))
    assert torch.equal(one.point, each.point)
    assert not torch.allclose(one.point, nearest_in_hull(points, vertices).point, atol=1e-3)


@pytest.mark.parametrize("own", [True, False], ids=["vertices each", "vertices shared"])
def test_the_same_combination_of_other_rows(own: bool) -> None:
    points, batch = randn(2, 3, 5), (2,) if own else ()
    vertices, others = randn(*batch, 9, 5, seed=1), randn(*batch, 9, 4, seed=2)
    found = nearest_in_hull(points, vertices)
    assert torch.allclose(found.of(others), found.dense(9) @ others, atol=1e-14)
    assert torch.allclose(found.of(vertices), found.point, atol=1e-14)


def test_threads_do_not_change_the_result() -> None:
    points, vertices = randn(50, 32), unit(randn(300, 32, seed=1) + 1)
    one = nearest_in_hull(points, vertices).point
    torch.set_num_threads(2)
    try:
        two = nearest_in_hull(points, vertices).point
    finally:
        torch.set_num_threads(1)
    assert torch.allclose(one, two, rtol=0, atol=1e-10)


def test_no_vertex_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is kept"):
        nearest_in_hull(randn(2, 3), randn(0, 3))
    allowed = torch.tensor([[True, True], [False, False]])
    with pytest.raises(ValueError, match="nothing is kept"):
        nearest_in_hull(randn(2, 3), randn(2, 3), allowed)


# Bases.


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


# Duals, ridges, covariances.


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
    monkeypatch.setattr(linalg, "_CHUNK", chunk)
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
