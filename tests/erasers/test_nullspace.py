"""Nullspace: a projector onto what the prototypes do not span."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nullspace_unlearn.erasers import nullspace


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_projects_the_span_out_and_nothing_else() -> None:
    forget = randn(3, 10)
    m = nullspace(forget).operator()
    assert torch.allclose(m @ m, m)
    assert torch.allclose(m, m.mT)
    assert torch.allclose(forget @ m, torch.zeros_like(forget), atol=1e-12)
    across = randn(4, 10, seed=1)
    across = across - across @ torch.linalg.pinv(forget) @ forget
    assert torch.allclose(across @ m, across)
    assert not torch.allclose(randn(4, 10, seed=1) @ m, randn(4, 10, seed=1), atol=1e-2)


def test_it_is_numpys_projector() -> None:
    forget = randn(3, 10)
    expected = torch.eye(10, dtype=torch.float64) - torch.linalg.pinv(forget) @ forget
    assert torch.allclose(nullspace(forget).operator(), expected)


@given(
    st.integers(0, 1000),
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from([1e-4, 1.0, 1e6]),
    st.booleans(),
)
def test_scale_duplicates_rank_and_half_precision(
    seed: int, m: int, rank: int, scale: float, half: bool
) -> None:
    forget = randn(m, rank, seed=seed) @ randn(rank, 8, seed=seed + 1)
    plain = nullspace(forget)
    assert plain.rank == min(m, rank)
    for same in (scale * forget, torch.cat([forget, forget]), forget.flip(0)):
        assert torch.allclose(nullspace(same).operator(), plain.operator(), atol=1e-5)
    if half and m <= 3 and rank > 2:
        rounded = forget.half()
        assert torch.equal(nullspace(rounded).read, nullspace(rounded.double()).read)


def test_a_batch_is_a_loop_whatever_the_ranks() -> None:
    forget = randn(2, 2, 3, 10)
    forget[0, 1, 1:] = forget[0, 1, :1]
    batch = nullspace(forget)
    for i in range(2):
        for j in range(2):
            one = nullspace(forget[i, j]).operator()
            assert torch.allclose(batch[i, j].operator(), one, atol=1e-10)


def test_energy_keeps_the_leading_directions() -> None:
    forget = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    assert [nullspace(forget, energy=e).rank for e in (0.5, 0.9, 1.0)] == [1, 2, 3]


def test_centring_leaves_what_all_share() -> None:
    common = randn(10)
    forget = common + 0.1 * randn(2, 10, seed=1)
    assert (common @ nullspace(forget, centre=common).operator()).norm() > 0.5 * common.norm()
    assert (common @ nullspace(forget).operator()).norm() < 0.5 * common.norm()
    apart = (forget - common) @ nullspace(forget, centre=common).operator()
    assert torch.allclose(apart, torch.zeros_like(apart), atol=1e-12)


@pytest.mark.parametrize(
    "forget, options, message",
    [
        (randn(12, 8), {}, "remove everything"),
        (torch.zeros(2, 8), {}, "remove nothing"),
        (torch.stack([randn(2, 8), torch.zeros(2, 8).double()]), {}, "remove nothing"),
        (randn(0, 8), {}, "m >= 1"),
        (randn(2, 8) / 0, {}, "NaN or Inf"),
        (randn(2, 8), {"energy": 0.0}, "energy"),
        (randn(2, 8), {"energy": 1.1}, "energy"),
    ],
)
def test_what_is_refused(forget: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nullspace(forget, **options)
