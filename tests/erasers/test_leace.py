"""LEACE through its package: the covariance with the concept is gone."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.erasers import leace
from nullspace_unlearn.linalg import unit

concept_erasure = pytest.importorskip("concept_erasure")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FORGET, KEEP = unit(randn(3, 12) + 1), unit(randn(60, 12, seed=1) + 1)


def cross(samples: Tensor, labels: Tensor) -> Tensor:
    """Cross-covariance of the samples with one indicator a class, as a plain product."""
    indicator = torch.nn.functional.one_hot(labels + 1)[:, 1:].double()  # -1 is kept
    return (samples - samples.mean(0)).T @ (indicator - indicator.mean(0)) / len(samples)


def erased(edit, samples: Tensor, side: str) -> Tensor:
    m = edit.operator()
    return samples @ (m.T if side == "text" else m)


@pytest.mark.parametrize("side", ["text", "visual"])
@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("n", [60, 5])  # more and fewer samples than dimensions
def test_the_concept_and_the_samples_no_longer_vary_together(
    side: str, shrinkage: bool, n: int
) -> None:
    samples = torch.cat([FORGET, KEEP[:n]])
    labels = torch.tensor([0, 1, 2] + [-1] * n)
    edit = leace(FORGET, KEEP[:n], side=side, shrinkage=shrinkage)
    left = cross(erased(edit, samples, side), labels).norm() / cross(samples, labels).norm()
    assert left < 1e-6
    other = "visual" if side == "text" else "text"
    assert cross(erased(edit, samples, other), labels).norm() > 1e-3 * cross(samples, labels).norm()


def test_a_forgotten_name_scores_the_mean_of_the_kept_ones() -> None:
    edit, images = leace(FORGET, KEEP), randn(50, 12, seed=2)
    scores = edit.apply(images) @ torch.cat([FORGET, KEEP]).T
    mean = scores[:, 3:].mean(-1, keepdim=True).expand(-1, 3)
    assert torch.allclose(scores[:, :3], mean, atol=1e-9)
    before = images @ torch.cat([FORGET, KEEP]).T
    assert not torch.allclose(before[:, :3], before[:, 3:].mean(-1, keepdim=True), atol=1e-2)


def test_it_is_the_packages_own_projection() -> None:
    samples = torch.cat([FORGET, KEEP])
    indicator = torch.zeros(63, 3).double()
    indicator[:3] = torch.eye(3)
    peer = concept_erasure.LeaceEraser.fit(samples, indicator, svd_tol=1e-6)
    edit = leace(FORGET, KEEP, side="visual")
    assert torch.allclose(edit.operator(), peer.P.T, atol=1e-9)
    constant = peer(samples) - edit.apply(samples)
    assert torch.allclose(constant, constant[:1].expand_as(constant), atol=1e-9)


def test_the_packages_default_tolerance_would_erase_nothing() -> None:
    keep = unit(randn(4000, 12, seed=3) + 1)
    with pytest.raises(ValueError, match="would not remove the concept: svd_tol=0.01"):
        leace(FORGET[:1], keep, svd_tol=0.01)
    assert leace(FORGET[:1], keep).rank == 1


def test_rows_of_one_class_may_differ() -> None:
    labels = torch.tensor([4, 4, 9])
    edit = leace(FORGET, KEEP, labels=labels)
    assert edit.rank == 2
    left = erased(edit, torch.cat([FORGET, KEEP]), "text")
    classes = torch.tensor([0, 0, 1] + [-1] * 60)
    assert cross(left, classes).norm() < 1e-9
    assert (left[0] - left[1]).norm() > 1e-3  # the class is gone, its rows are not one point


@pytest.mark.parametrize("own", [True, False], ids=["keep each", "keep shared"])
def test_a_batch_is_a_loop(own: bool) -> None:
    forget = unit(randn(2, 2, 3, 12) + 1)
    keep = unit(randn(2, 2, 60, 12, seed=1) + 1) if own else KEEP
    batch = leace(forget, keep)
    for i in range(2):
        for j in range(2):
            one = leace(forget[i, j], keep[i, j] if own else keep)
            assert torch.allclose(batch[i, j].operator(), one.operator(), atol=1e-10)


def test_half_precision_is_widened_first() -> None:
    half = leace(FORGET.half(), KEEP.half())
    wide = leace(FORGET.half().double(), KEEP.half().double())
    assert torch.equal(half.operator(), wide.operator())


def test_what_is_refused(unchecked, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="one to forget|at least one prototype"):
        leace(FORGET, KEEP[:0])
    with pytest.raises(ValueError, match="NaN or Inf"):
        leace(FORGET / 0, KEEP)
    with pytest.raises(ValueError, match="would not remove"):
        leace(KEEP[:1].repeat(2, 1), KEEP[:1].repeat(5, 1))
    with unchecked():
        with pytest.raises(ValueError, match=r"expected forget"):
            leace(FORGET, KEEP[:, :11])
        with pytest.raises(ValueError, match=r"labels must be \[3\]"):
            leace(FORGET, KEEP, labels=torch.tensor([1, 2]))
        with pytest.raises(ValueError, match="must be 'text' or 'visual'"):
            leace(FORGET, KEEP, side="image")
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(ValueError, match=r"pip install 'nullspace-unlearn\[leace\]'"):
        leace(FORGET, KEEP)
