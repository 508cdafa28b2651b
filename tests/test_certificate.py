"""The certificate: it holds where no image can show otherwise, and only there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from nullspace_unlearn.certificate import TOLERANCE, certify
from nullspace_unlearn.erasers import hull, nullspace
from nullspace_unlearn.linalg import unit

WIDTH, DIM, KEPT = 20, 12, 9


def draw(seed: int, m: int = 3, n: int = KEPT) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projection, bias, forgotten and kept unit prototypes, which share a direction."""
    random = torch.Generator().manual_seed(seed)
    matrix, bias, forget, keep = (
        torch.randn(*shape, generator=random, dtype=torch.float64)
        for shape in ((WIDTH, DIM), (DIM,), (m, DIM), (n, DIM))
    )
    return matrix, bias, unit(forget + 0.7), unit(keep + 0.7)


def hiddens(count: int = 20_000) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(count, WIDTH, generator=random, dtype=torch.float64) * 3


def lead(h: Tensor, matrix: Tensor, bias: Tensor | None, forget: Tensor, keep: Tensor) -> Tensor:
    """`[n, m]`: how far each forgotten score is above the best kept one."""
    z = h @ matrix + (0 if bias is None else bias)
    return z @ forget.mT - (z @ keep.mT).amax(-1, keepdim=True)


def nearest(point: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """The nearest point of a convex hull, by non-negative least squares of offsets and one row."""
    offsets = vertices - point
    system = np.vstack([offsets.T, np.ones(len(offsets))])
    weight, _ = nnls(system, np.eye(len(system))[-1], maxiter=10_000)
    return (weight / weight.sum()) @ vertices


def distance(point: np.ndarray, vertices: np.ndarray) -> float:
    return float(np.linalg.norm(point - nearest(point, vertices)))


def joined(matrix: Tensor, bias: Tensor | None) -> Tensor:
    return matrix if bias is None else torch.cat([matrix, bias[None]])


def spread(matrix: Tensor, bias: Tensor | None, keep: Tensor) -> float:
    rows = (keep @ joined(matrix, bias).mT).numpy()
    return float(np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_holds_where_no_image_shows_otherwise(strength, with_bias, seed):
    matrix, bias, forget, keep = draw(seed)
    operator = hull(forget, keep).scale(strength).operator()
    edited, b = matrix @ operator, bias @ operator if with_bias else None
    proof = certify(edited, b, forget, keep)
    above = lead(hiddens(), edited, b, forget, keep).amax(0)
    if strength == 1:
        assert proof.holds.all() and (proof.violation < 1e-9).all()
        assert (above <= 1e-9).all()
    else:
        assert not proof.holds.any()
        assert (above > 0).any()
    assert (lead(hiddens(), matrix, bias, forget, keep) > 0).any(0).all()  # control: untouched


@pytest.mark.parametrize("seed", range(3))
def test_where_it_fails_there_is_an_image_that_shows_it(seed):
    matrix, _, forget, keep = draw(seed)
    proof = certify(matrix, None, forget, keep)
    points = torch.stack(
        [weight @ keep[index] for index, weight in zip(proof.index, proof.weight, strict=True)]
    )
    # The hidden feature along u_c - x leads by exactly the square of the distance.
    witness = (forget - points) @ matrix.mT
    above = lead(witness, matrix, None, forget, keep).diagonal()
    torch.testing.assert_close(above, witness.square().sum(-1))
    assert not proof.holds.any() and (above > 0).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 1.3])
def test_the_violation_bounds_every_image(strength, seed):
    matrix, bias, forget, keep = draw(seed)
    operator = hull(forget, keep).scale(strength).operator()
    edited, b = matrix @ operator, bias @ operator
    proof = certify(edited, b, forget, keep)
    h = hiddens()
    length = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1).norm(dim=-1, keepdim=True)
    bound = length * proof.violation * spread(edited, b, keep)
    above = lead(h, edited, b, forget, keep)
    assert (above <= bound + 1e-9).all()
    assert not (above <= -bound).all()  # control: the bound is not empty


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_distance_is_that_of_non_negative_least_squares(with_bias, seed):
    matrix, bias, forget, keep = draw(seed)
    b = bias if with_bias else None
    proof = certify(matrix, b, forget, keep)
    rows = joined(matrix, b)
    points, vertices = (forget @ rows.mT).numpy(), (keep @ rows.mT).numpy()
    scale = spread(matrix, b, keep)
    for c, point in enumerate(points):
        expected = distance(point, vertices)
        assert float(proof.violation[c]) * scale == pytest.approx(expected, rel=1e-6)
        combined = proof.weight[c].numpy() @ vertices[proof.index[c].numpy()]
        assert np.linalg.norm(point - combined) == pytest.approx(expected, rel=1e-6)
    assert (proof.weight >= 0).all()
    torch.testing.assert_close(proof.weight.sum(-1), torch.ones(3, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-6, 1e6),
    n=st.integers(1, 30),
    m=st.integers(1, 4),
)
def test_units_do_not_matter(seed, scale, n, m):
    matrix, bias, forget, keep = draw(seed, m, n)
    one = certify(matrix, bias, forget, keep)
    other = certify(scale * matrix, scale * bias, forget, keep)
    torch.testing.assert_close(one.violation, other.violation, rtol=1e-5, atol=1e-9)
    assert torch.isfinite(one.violation).all()


def test_an_edit_that_forgets_the_bias_is_found_out():
    matrix, bias, forget, keep = draw(0)
    operator = hull(forget, keep).operator()
    edited = matrix @ operator
    assert certify(edited, bias @ operator, forget, keep).holds.all()
    assert certify(edited, None, forget, keep).holds.all()
    assert not certify(edited, bias, forget, keep).holds.any()
    # And rightly: where h is 0 the bias alone decides, and may decide for a forgotten class.
    towards = forget[0] - torch.from_numpy(nearest(forget[0].numpy(), keep.numpy()))
    assert lead(torch.zeros(1, WIDTH).double(), edited, towards, forget, keep)[0, 0] > 0
    assert not certify(edited, towards, forget, keep).holds[0]


def test_only_what_the_projection_lets_through_counts():
    matrix, _, forget, keep = draw(0)
    outside = torch.zeros_like(forget)
    outside[:, -1] = 5
    blind = torch.cat([matrix[:, :-1], torch.zeros(WIDTH, 1, dtype=torch.float64)], 1)
    inside = (keep[:3] + keep[3:6]) / 2
    assert certify(blind, None, inside + outside, keep).holds.all()
    assert not certify(matrix, None, inside + outside, keep).holds.any()  # control


def test_a_name_among_the_kept_ones_ties_and_the_vertices_say_so():
    matrix, bias, _, keep = draw(0)
    proof = certify(matrix, bias, keep[[4, 2]], keep)
    assert (proof.violation < 1e-9).all() and (proof.room < 1e-6).all()
    assert not proof.holds.any() and all("ties" in line for line in proof.means())
    largest = proof.index.gather(-1, proof.weight.argmax(-1, keepdim=True))[:, 0]
    assert largest.tolist() == [4, 2]


def test_one_kept_class_is_measured_by_its_own_length():
    matrix, _, forget, keep = draw(0, n=1)
    proof = certify(matrix, None, forget, keep)
    rows, vertex = forget @ matrix.mT, keep[0] @ matrix.mT
    torch.testing.assert_close(proof.violation, (rows - vertex).norm(dim=-1) / vertex.norm())
    assert (certify(matrix, None, keep, keep).violation < 1e-9).all()


def test_with_one_kept_name_rounding_decides_and_no_certificate_holds():
    matrix, _, forget, keep = draw(0, m=1, n=2)
    wins = {}
    for n in (1, 2):
        edited = (matrix @ hull(forget, keep[:n]).operator()).float()
        proof = certify(edited, None, forget, keep[:n])
        above = lead(hiddens(2000).float(), edited, None, forget.float(), keep[:n].float())
        wins[n] = float((above >= 0).double().mean())
        assert (proof.violation < TOLERANCE).all()
        assert bool(proof.holds.all()) == (n > 1) == (float(proof.room) > 0.1)
    assert wins[1] > 0.1 and wins[2] == 0


@pytest.mark.parametrize("depth", [0.0, 0.01, 0.5, 1.0])
def test_it_says_how_deep(depth):
    matrix, _, forget, keep = draw(0)
    proof = certify(matrix @ hull(forget, keep, depth=depth).operator(), None, forget, keep)
    torch.testing.assert_close(proof.depth, torch.full((3,), depth).double(), atol=1e-6, rtol=0)
    assert (proof.violation < 1e-9).all()
    for line in proof.means():
        assert ("the mean of the names that stay" in line) == (depth == 1)
    shallow = certify(matrix, None, forget, keep)
    assert shallow.depth.isnan().all() and "above every name" in shallow.means()[0]


def test_rounding_to_float32_holds_and_to_float16_does_not():
    matrix, bias, forget, keep = draw(0)
    edit = hull(forget, keep)
    for dtype, holds in ((torch.float32, True), (torch.float16, False)):
        operator = edit.operator()
        weights = [(part @ operator).to(dtype) for part in (matrix, bias)]
        proof = certify(weights[0], weights[1], forget, keep)
        assert proof.holds.tolist() == [holds] * 3
        assert ((proof.violation > TOLERANCE) != holds).all()


def test_another_method_has_none():
    matrix, bias, forget, keep = draw(0)
    operator = nullspace(forget).operator()
    proof = certify(matrix @ operator, bias @ operator, forget, keep)
    # Every score of a forgotten class is 0, which wins where all kept scores are below 0.
    assert not proof.holds.any()
    assert (lead(hiddens(), matrix @ operator, bias @ operator, forget, keep) > 0).any(0).all()


@pytest.mark.parametrize("what", ["matrix", "bias", "forget", "keep"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(what, bad):
    parts = dict(zip(("matrix", "bias", "forget", "keep"), draw(0), strict=True))
    parts[what].view(-1)[0] = bad
    with pytest.raises(ValueError, match=what):
        certify(**parts)


def test_nothing_kept_proves_nothing(unchecked):
    matrix, bias, forget, keep = draw(0)
    with unchecked(), pytest.raises(ValueError):
        certify(matrix, bias, forget, keep[:0])
