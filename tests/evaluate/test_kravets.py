"""The score of Kravets & Namboodiri, against sums over single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nullspace_unlearn.evaluate.kravets import kravets_score
from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid


def grids(seed: int) -> tuple[Grid, Grid, np.ndarray, np.ndarray, np.ndarray]:
    """A model before and after, with what it said of each image; the forgotten class is 0."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(4), random.integers(4, size=60)])
    before, after = (np.where(random.random(64) < p, labels, (labels + 1) % 4) for p in (0.8, 0.5))
    before[labels == 0] = 0
    made = [
        accuracy_grid(torch.tensor(said), torch.tensor(labels), None, 4) for said in (before, after)
    ]
    return made[0], made[1], labels, before, after


MASK = torch.tensor([[True], [False], [False], [False]])


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_mean_of_the_share_left_and_the_clipped_drops(seed: int) -> None:
    before, after, labels, said, says = grids(seed)
    right0, right = said == labels, says == labels
    others = [(0.9, 0.6), (0.5, 0.7), (0.8, 0.8)]
    terms = [right[labels == 0].mean() / right0[labels == 0].mean()]
    rest0, rest = right0[labels != 0].mean(), right[labels != 0].mean()
    terms += [max((rest0 - rest) / rest0, 0), 1 / 3, 0, 0]
    assert kravets_score(before, after, MASK, others) == pytest.approx(sum(terms) / 5)
    # Images count, not classes: their number differs, and so would the mean of the classes.
    by_class = [right[labels == c].mean() for c in (1, 2, 3)]
    assert np.mean(by_class) != pytest.approx(rest)


def test_the_best_is_0_and_doing_nothing_is_1_over_the_terms() -> None:
    before, _, _, _, _ = grids(0)
    perfect = Grid(before.accuracy.masked_fill(MASK, 0), before.count)
    assert kravets_score(before, perfect, MASK, [(0.5, 0.5)]) == 0
    assert kravets_score(before, before, MASK) == pytest.approx(1 / 2)
    assert kravets_score(before, before, MASK, [(0.5, 0.5)] * 3) == pytest.approx(1 / 5)


def test_a_data_set_never_got_right_lost_nothing() -> None:
    before, after, *_ = grids(0)
    without = kravets_score(before, after, MASK)
    assert kravets_score(before, after, MASK, [(0.0, 0.0)]) == pytest.approx(without * 2 / 3)


def test_what_cannot_be_told_is_refused() -> None:
    before, after, *_ = grids(0)
    nothing = Grid(torch.zeros_like(before.accuracy), before.count)
    with pytest.raises(ValueError, match="gets no image of what is forgotten right"):
        kravets_score(nothing, after, MASK)
    with pytest.raises(ValueError, match="no images of kept cells"):
        kravets_score(before, after, torch.ones(4, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"of one shape, got \[3, 1\]"):
        kravets_score(before, after, MASK[:3])
