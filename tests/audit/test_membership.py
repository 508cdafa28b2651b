"""Confidence attacks: oracles scikit-learn and scipy, and a planted giveaway."""

from __future__ import annotations

import planted
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from nullspace_unlearn.audit.membership import (
    MEMBERSHIP,
    auc,
    confidence,
    likelihood_ratio,
    true_positives,
)
from nullspace_unlearn.audit.question import FORGOTTEN, NAME_ONLY, NOT_FORGOTTEN


def scores(n=300):
    positive = torch.rand(n) < 0.4
    return (torch.randn(n, dtype=torch.float64) + positive).round(decimals=1), positive  # ties


def test_the_area_is_scikit_learns_weighted_too():
    score, positive = scores()
    assert float(auc(score, positive)) == pytest.approx(roc_auc_score(positive, score))
    weight = torch.randint(0, 4, (3, len(score))).double()
    for w, found in zip(weight, auc(score, positive, weight), strict=True):
        assert float(found) == pytest.approx(roc_auc_score(positive, score, sample_weight=w))
    assert float(auc(-score, positive)) == pytest.approx(1 - float(auc(score, positive)))  # control


@pytest.mark.parametrize("false", [0.01, 0.1])
def test_the_rate_is_scikit_learns_at_that_many_false_positives(false):
    score, positive = scores()
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    assert float(true_positives(score, positive, false)) == pytest.approx(tpr[fpr <= false].max())
    assert float(true_positives(-score, positive, false)) < tpr[fpr <= false].max()  # control


def test_the_ratio_is_of_two_normal_densities():
    known, member = scores()
    score = torch.linspace(-3, 3, 7, dtype=torch.float64)
    inside, outside = (
        norm(some.mean(), some.std(ddof=1)).logpdf(score)
        for some in (known[member].numpy(), known[~member].numpy())
    )
    assert likelihood_ratio(score, known, member).tolist() == pytest.approx(inside - outside)


def test_confidence_is_the_logit_of_the_largest_probability_of_what_is_listed():
    rows, text = torch.randn(5, 8), torch.randn(4, 8)
    listed = torch.tensor([False, True, True, True])
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], text[None, 1:], dim=-1)
    p = (10 * cosine).softmax(-1).amax(-1)
    assert torch.allclose(confidence(rows, text, listed, 10.0).float(), p.logit(), atol=1e-4)


def test_images_that_no_name_fits_are_told_by_that_and_others_are_not():
    each = 20
    edited, never = (planted.nameless(f) for f in
                     (planted.original(each), planted.among_others(planted.CAR, each)))  # fmt: skip
    answer = MEMBERSHIP.answer(planted.case(edited, each=each))
    assert answer.verdict == NAME_ONLY and answer.findings[0].values["edited"] > 0.95
    fresh = planted.case(edited, edited, each=each)
    assert MEMBERSHIP.answer(fresh).verdict == FORGOTTEN  # a model that never saw them: the same
    told = MEMBERSHIP.answer(planted.case(never, each=each, draws=100))
    assert told.verdict == FORGOTTEN
    low, high = told.findings[0].interval
    assert low < 0.55 and high > told.findings[0].values["edited"] > low
    named = planted.case(planted.original(each), each=each)
    assert MEMBERSHIP.answer(named).verdict == NOT_FORGOTTEN
