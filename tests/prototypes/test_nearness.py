"""Nearness of two sets of features, against plain numpy and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from nullspace_unlearn.features import Features
from nullspace_unlearn.prototypes.nearness import nearness

CLASSES, DOMAINS = ("car", "cat", "tree"), ("photo", "sketch")
DIM, WIDTH = 10, 14


def features(seed: int, each: int, noise: float) -> Features:
    """Cells around centres that every set shares."""
    shared, random = np.random.default_rng(0), np.random.default_rng(seed)
    centres = shared.normal(size=(6, WIDTH)) + 2
    projection = shared.normal(size=(WIDTH, DIM))
    cell = random.permutation(np.arange(6).repeat(each))
    hidden = centres[cell] + noise * random.normal(size=(len(cell), WIDTH))
    hidden *= random.uniform(0.1, 9, size=(len(cell), 1))
    return Features(
        embeddings=torch.from_numpy(hidden @ projection),
        labels=torch.from_numpy(cell // 2),
        class_names=CLASSES,
        hidden=torch.from_numpy(hidden),
        domains=torch.from_numpy(cell % 2),
        domain_names=DOMAINS,
    )


def rows_of(made: Features) -> dict[str, np.ndarray]:
    z, h = made.embeddings.double().numpy(), made.hidden.double().numpy()
    length = np.linalg.norm(z, axis=1, keepdims=True)
    return {"embedding": z / length, "hidden": h / length}


def cell_means(rows: np.ndarray, made: Features) -> np.ndarray:
    cell = (2 * made.labels + made.domains).numpy()
    return np.stack([rows[cell == i].mean(0) for i in range(6)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("space", ["embedding", "hidden"])
def test_figures_by_hand(space):
    synthesised, real = features(1, 3, 1.0), features(2, 20, 0.7)
    found = getattr(nearness(synthesised, real, ridge=0.3), space)
    ours, theirs = rows_of(synthesised)[space], rows_of(real)[space]
    a, b = cell_means(ours, synthesised), cell_means(theirs, real)
    own, shifted, rank = [], [], []
    for i in range(6):
        cosines = [cosine(a[i] - a.mean(0), b[j] - b.mean(0)) for j in range(6)]
        own.append(cosines[i])
        rank.append(sorted(cosines, reverse=True).index(cosines[i]) + 1)
        shifted.append(cosine(a[i] - b.mean(0), b[i] - b.mean(0)))
    assert found.cosine == pytest.approx(np.mean(own))
    assert found.cosine_real_mean == pytest.approx(np.mean(shifted))
    assert found.rank == np.mean(rank)

    for transfer, labels, real_labels in (
        (found.class_transfer, synthesised.labels.numpy(), real.labels.numpy()),
        (found.domain_transfer, synthesised.domains.numpy(), real.domains.numpy()),
    ):
        centred = ours - ours.mean(0)
        alpha = 0.3 * len(ours) * (centred**2).mean()
        probe = Ridge(alpha=alpha).fit(ours, np.eye(labels.max() + 1)[labels])
        right = probe.predict(theirs).argmax(1) == real_labels
        expected = np.mean([right[real_labels == i].mean() for i in np.unique(real_labels)])
        assert transfer == pytest.approx(expected)
        assert 0.5 < expected < 1  # control: neither trivial nor hopeless


def test_the_same_features_are_as_near_as_can_be():
    same, real = features(1, 20, 0.05), features(2, 20, 0.05)
    for space in (nearness(same, same).hidden, nearness(same, real).hidden):
        assert space.cosine == pytest.approx(1, abs=1e-2) and space.rank == 1
        assert space.cosine_real_mean == pytest.approx(1, abs=1e-2)
        assert space.class_transfer == space.domain_transfer == 1
    swapped = replace(real, domains=1 - real.domains)  # control: every cell the wrong one
    space = nearness(same, swapped).hidden
    assert space.cosine < 0.8 and space.rank > 1.5 and space.domain_transfer == 0


def test_a_shift_that_all_cells_share_costs_only_against_the_real_mean():
    made, real = features(1, 4, 0.5), features(2, 4, 0.5)
    length = made.embeddings.double().norm(dim=-1, keepdim=True)
    moved = replace(made, hidden=made.hidden + (length * 3).float())
    plain, shifted = nearness(made, real).hidden, nearness(moved, real).hidden
    assert shifted.cosine == pytest.approx(plain.cosine, abs=1e-4)
    assert shifted.cosine_real_mean < plain.cosine_real_mean - 0.05


def test_without_hidden_features_only_the_embedding_is_compared():
    made, real = features(1, 2, 0.5), features(2, 2, 0.5)
    assert nearness(replace(made, hidden=None), real).hidden is None
    assert nearness(made, replace(real, hidden=None)).hidden is None
    assert nearness(made, real).hidden is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: replace(f, class_names=("a", "b", "c")), "class_names must be"),
        (lambda f: replace(f, domains=None, domain_names=()), "domain_names must be"),
        (lambda f: replace(f, labels=f.labels.clamp(max=1)), "no row of tree/photo"),
        (lambda f: replace(f, embeddings=f.embeddings[:, :5]), "10 dimensions and 5"),
    ],
)
def test_features_that_cannot_be_compared(change, message):
    made, real = features(1, 2, 0.5), features(2, 2, 0.5)
    nearness(made, real)  # control
    with pytest.raises(ValueError, match=message):
        nearness(made, change(real))


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_out_of_range(ridge):
    made = features(1, 2, 0.5)
    with pytest.raises(ValueError, match="ridge must be above 0"):
        nearness(made, made, ridge=ridge)
