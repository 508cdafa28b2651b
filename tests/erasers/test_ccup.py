"""CCUP: the closed form against its own objective and a direct solve."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nullspace_unlearn.erasers import ccup, nullspace
from nullspace_unlearn.linalg import unit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FORGET, KEEP = unit(randn(3, 10)), unit(randn(20, 10, seed=1))


def direct(forget: Tensor, keep: Tensor, lam: float, mu: float) -> Tensor:
    """The stationary M of the objective: `M (I + lam FFᵀ + mu RRᵀ) = I + mu RRᵀ`."""
    eye = torch.eye(forget.shape[-1], dtype=torch.float64)
    kept = eye + mu * keep.mT @ keep
    return torch.linalg.solve(kept + lam * forget.mT @ forget, kept, left=False)


def objective(m: Tensor, lam: float, mu: float) -> float:
    eye = torch.eye(m.shape[-1], dtype=torch.float64)
    change, forgotten = (m - eye).square().sum(), (m @ FORGET.mT).square().sum()
    return float(change + lam * forgotten + mu * ((m - eye) @ KEEP.mT).square().sum())


@given(
    st.integers(0, 1000),
    st.integers(1, 15),
    st.integers(1, 15),
    st.sampled_from([1e-2, 1.0, 1e4]),
    st.sampled_from([0.0, 1.0, 1e3]),
)
def test_it_is_the_direct_solve(seed: int, m: int, n: int, lam: float, mu: float) -> None:
    forget, keep = unit(randn(m, 8, seed=seed)), unit(randn(n, 8, seed=seed + 1))
    forget = torch.cat([forget, forget[:1]])  # an alias that is the same vector
    ours = ccup(forget, keep, lam=lam, mu=mu).operator()
    assert torch.allclose(ours, direct(forget, keep, lam, mu), atol=1e-7)


@pytest.mark.parametrize("lam, mu", [(1.0, 0.0), (100.0, 10.0), (1e4, 1.0)])
def test_nothing_near_it_is_better(lam: float, mu: float) -> None:
    m = ccup(FORGET, KEEP, lam=lam, mu=mu).operator()
    best = objective(m, lam, mu)
    for seed in range(50):
        for size in (1e-1, 1e-3):
            assert objective(m + size * randn(10, 10, seed=seed), lam, mu) > best
    assert objective(nullspace(FORGET).operator(), lam, mu) > best


def test_without_keeping_it_tends_to_nullspace() -> None:
    target = nullspace(FORGET).operator()
    far, near = (
        (ccup(FORGET, KEEP, lam=lam, mu=0.0).operator() - target).norm() for lam in (1e2, 1e8)
    )
    assert near < 1e-6 < far


def test_the_weights_pull_their_way() -> None:
    def forgotten_and_moved(lam: float, mu: float) -> tuple[float, float]:
        m = ccup(FORGET, KEEP, lam=lam, mu=mu).operator()
        return float((m @ FORGET.mT).norm()), float((m @ KEEP.mT - KEEP.mT).norm())

    forgotten, moved = forgotten_and_moved(10.0, 1.0)
    assert forgotten_and_moved(100.0, 1.0)[0] < forgotten
    assert forgotten_and_moved(10.0, 10.0)[1] < moved


@pytest.mark.parametrize("own", [True, False], ids=["keep each", "keep shared"])
def test_a_batch_is_a_loop(own: bool) -> None:
    forget = unit(randn(2, 3, 4, 10))
    keep = unit(randn(2, 3, 20, 10, seed=1)) if own else KEEP
    batch = ccup(forget, keep)
    for i in range(2):
        for j in range(3):
            one = ccup(forget[i, j], keep[i, j] if own else keep)
            assert torch.allclose(batch[i, j].operator(), one.operator(), atol=1e-10)


def test_half_precision_is_widened_first() -> None:
    half = ccup(FORGET.half(), KEEP.half())
    assert half.read.dtype == torch.float64
    assert torch.equal(half.write, ccup(FORGET.half().double(), KEEP.half().double()).write)


def test_what_is_refused(unchecked) -> None:
    for options in ({"lam": 0.0}, {"mu": -1.0}, {"lam": float("nan")}):
        with pytest.raises(ValueError, match="lam must be above 0 and mu at least 0"):
            ccup(FORGET, KEEP, **options)
    with pytest.raises(ValueError, match="forget holds NaN"):
        ccup(FORGET / 0, KEEP)
    with unchecked(), pytest.raises(ValueError, match="forget has 10 dimensions and keep 9"):
        ccup(FORGET, KEEP[:, :9])
