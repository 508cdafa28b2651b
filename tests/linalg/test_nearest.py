"""The nearest point of a hull against scipy, and by its optimality condition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_rows import randn
from torch import Tensor

from nullspace_unlearn.linalg import nearest as hulls
from nullspace_unlearn.linalg import nearest_in_hull, unit


def optimality(points: Tensor, vertices: Tensor, nearest: Tensor) -> Tensor:
    """`max_v (p - x)·(v - x)`: at most 0 if and only if x, in the hull, is the nearest to p."""
    residual = points - nearest
    return (residual @ vertices.mT).amax(-1) - (residual * nearest).sum(-1)


def scipy_distance(point: Tensor, vertices: Tensor) -> float:
    """Distance by non-negative least squares: `min |Σ w (v - p)|² + (Σ w - 1)²` over `w >= 0`.

    For weights `w = s a` that sum to s the sum is `s² |a V - p|² + (s - 1)²`: whatever s > 0, least
    where the point is nearest (Lawson & Hanson 1974, chapter 23).
    """
    offsets = (vertices - point).numpy()
    system = np.vstack([offsets.T, np.ones(len(offsets))])
    weights, _ = scipy.optimize.nnls(system, np.eye(len(system))[-1], maxiter=10_000)
    return float(np.linalg.norm(weights @ offsets) / weights.sum())


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
    monkeypatch.setattr(hulls, "_FRESH", fresh)
    monkeypatch.setattr(hulls, "_CHUNK", chunk)
    monkeypatch.setattr(hulls, "_CACHE", chunk)
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
