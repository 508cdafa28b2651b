"""The shared terms of the losses, against loops, scipy, and what they are least at."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nullspace_unlearn.train.losses import BANDWIDTHS, classify, confuse, divergence, mmd2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 5))
def test_classify_is_a_loop(seed: int, n: int, classes: int) -> None:
    logits, labels = 4 * randn(n, classes, seed=seed), torch.arange(n) % classes
    rows = [
        math.log(sum(math.exp(x) for x in row)) - row[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    expected = sum(rows) / n
    assert math.isclose(float(classify(logits, labels)), expected, rel_tol=1e-10, abs_tol=1e-12)
    wrong = float(classify(logits, (labels + 1) % classes))
    assert not math.isclose(wrong, expected, rel_tol=1e-6)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 9))
def test_confusion_is_least_where_every_class_is_as_likely(seed: int, n: int, classes: int) -> None:
    level = randn(n, 1, seed=seed).expand(n, classes).clone().requires_grad_()
    least = confuse(level)
    assert math.isclose(least.item(), math.log(classes), rel_tol=1e-12)
    (slope,) = torch.autograd.grad(least, level)
    assert slope.abs().max() < 1e-12
    other = randn(n, classes, seed=seed)
    assert confuse(other) > math.log(classes)
    # What it exceeds that by is the divergence of the uniform distribution from the softmax.
    uniform = torch.full((classes,), 1 / classes)
    excess = [scipy.stats.entropy(uniform, row) for row in other.softmax(-1)]
    assert math.isclose(float(confuse(other)), math.log(classes) + sum(excess) / n, rel_tol=1e-6)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 9))
def test_divergence_is_that_of_scipy(seed: int, n: int, classes: int) -> None:
    of, from_ = 3 * randn(n, classes, seed=seed), 3 * randn(n, classes, seed=seed + 1)
    p, q = of.softmax(-1).numpy(), from_.softmax(-1).numpy()
    expected = scipy.stats.entropy(p, q, axis=-1).mean()
    assert math.isclose(float(divergence(of, from_)), expected, rel_tol=1e-9)
    assert not math.isclose(float(divergence(from_, of)), expected, rel_tol=1e-6)
    assert abs(float(divergence(of, of + 5))) < 1e-12  # a level has no probability


def pairwise(features: Tensor, groups: Tensor) -> float:
    """The oracle: every pair of groups, every pair of rows, every bandwidth."""

    def kernel(x: list[float], y: list[float]) -> float:
        squared = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
        return sum(math.exp(-squared / (2 * s * s)) for s in BANDWIDTHS) / len(BANDWIDTHS)

    def mean(first: list[list[float]], second: list[list[float]]) -> float:
        return sum(kernel(x, y) for x in first for y in second) / (len(first) * len(second))

    of = [features[groups == group].tolist() for group in sorted(set(groups.tolist()))]
    pairs = [(x, y) for i, x in enumerate(of) for y in of[i + 1 :]]
    return sum(mean(x, x) + mean(y, y) - 2 * mean(x, y) for x, y in pairs) / len(pairs)


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 3))
def test_mmd_is_a_double_loop(seed: int, count: int, dim: int) -> None:
    groups = torch.tensor([0, 2, 5, 7])[torch.arange(11) % count]  # unequal sizes, gaps
    features = 2 * randn(11, dim, seed=seed)
    assert math.isclose(float(mmd2(features, groups)), pairwise(features, groups), rel_tol=1e-9)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
    shuffled = mmd2(features[order], groups[order])
    assert math.isclose(float(shuffled), pairwise(features, groups), rel_tol=1e-9)


def test_mmd_is_zero_for_equal_samples_and_for_no_other() -> None:
    features = randn(6, 3)
    groups = torch.tensor([0] * 6 + [1] * 6)
    assert abs(float(mmd2(torch.cat([features, features[[3, 1, 0, 5, 4, 2]]]), groups))) < 1e-14
    for shift in (0.1, 1.0):
        assert mmd2(torch.cat([features, features + shift]), groups) > 1e-4
    # Same mean, other spread: what a difference of means would miss.
    centred = features - features.mean(0)
    assert mmd2(torch.cat([centred, 3 * centred]), groups) > 1e-2


@pytest.mark.parametrize("term", ["classify", "confuse", "divergence", "mmd2"])
def test_where_there_is_nothing_the_loss_is_zero_and_so_is_its_slope(term: str) -> None:
    def loss(features: Tensor, rows: slice) -> Tensor:
        some, index = features[rows], torch.tensor([0, 1, 2, 1])[rows]
        if term == "divergence":
            return divergence(some.detach().flip(-1), some)
        if term == "confuse":
            return confuse(some)
        return (classify if term == "classify" else mmd2)(some, index)

    features = randn(4, 3).requires_grad_()
    for rows in (slice(0), *([slice(1)] if term == "mmd2" else [])):  # no row; no pair of groups
        nothing = loss(features, rows)
        assert nothing == 0
        (slope,) = torch.autograd.grad(nothing, features)
        assert torch.equal(slope, torch.zeros_like(features))
    (slope,) = torch.autograd.grad(loss(features, slice(None)), features)
    assert slope.abs().max() > 1e-3 and torch.isfinite(slope).all()
