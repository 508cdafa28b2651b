"""What images let one learn: planted truths, chance, and that no image is in both halves."""

from __future__ import annotations

from dataclasses import replace

import planted
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from nullspace_unlearn.audit.probes import MOST_CLASSES, Named, interval, nearest_mean, split
from nullspace_unlearn.audit.question import FORGOTTEN, NAME_ONLY, NOT_FORGOTTEN, NOT_MEASURED
from nullspace_unlearn.audit.relearning import RELEARNING, recovered_by
from nullspace_unlearn.audit.retention import RETENTION

MANY = 24
AS_OTHERS = planted.nameless(planted.among_others(planted.CAR, MANY))
NAMELESS = planted.nameless(planted.original(MANY))


def halves(case, **given):
    return split(case.mask, case.labels, case.domains, torch.Generator().manual_seed(0), **given)


@pytest.mark.parametrize(
    ("edited", "retained", "relearned"),
    [
        (planted.original(MANY), NOT_FORGOTTEN, "recoverable with 1 image"),
        (NAMELESS, NAME_ONLY, "recoverable with 1 image"),
        (AS_OTHERS, FORGOTTEN, FORGOTTEN),
        (planted.zero(MANY), FORGOTTEN, FORGOTTEN),
    ],
)
def test_probes_find_what_was_planted(edited, retained, relearned):
    case = planted.case(edited, each=MANY)
    case = replace(case, random=case.original)
    answer = RETENTION.answer(case)
    assert answer.verdict == retained, answer.sentence
    assert RELEARNING.answer(case).verdict == relearned
    named = {finding.name: finding for finding in answer.findings}
    shown = named["embedding_logistic"]
    assert shown.values["original"] == shown.values["random"] == 1.0
    assert shown.interval[0] <= shown.values["edited"] <= shown.interval[1]
    control = named["shuffled"].values  # it may find nothing, in the untouched model neither
    assert abs(control["edited"] - control["chance"]) < 0.25


def test_what_a_model_that_never_saw_it_tells_as_well_is_not_held_against_it():
    case = planted.case(NAMELESS, NAMELESS, each=MANY)
    assert RETENTION.answer(case).verdict == RELEARNING.answer(case).verdict == FORGOTTEN
    case = planted.case(NAMELESS, AS_OTHERS, each=MANY)  # control
    assert RETENTION.answer(case).verdict == NAME_ONLY


def test_no_image_is_learned_from_and_tested_on():
    case = planted.case(planted.original(9), each=9)
    parts = halves(case)
    both = torch.cat([parts.shots, parts.tests])
    assert torch.equal(both.sort().values, torch.arange(len(case.labels)))
    few = parts.few(case.labels, 2, 0)
    assert case.labels[few].bincount().tolist() == [2] * 6 and torch.isin(few, parts.shots).all()
    assert not torch.equal(few, parts.few(case.labels, 2, 1))  # another draw
    thin = parts.thinned(8)
    assert torch.isin(thin.tests, parts.tests).all() and len(thin.tests) == 8
    assert (case.labels[thin.tests[thin.asking.images[thin.asking.own[0]]]] == 0).all()
    assert (case.labels[thin.tests[thin.asking.images[thin.asking.others[0]]]] != 0).all()


def test_only_domains_in_which_something_was_forgotten_are_looked_at():
    labels, domains = (
        t.flatten() for t in torch.meshgrid(*[torch.arange(3).repeat(6)] * 2, indexing="ij")
    )
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[0, 1] = True
    parts = split(mask, labels, domains, torch.Generator())
    assert (domains[torch.cat([parts.shots, parts.tests])] == 1).all()
    mask = torch.zeros(200, 1, dtype=torch.bool)
    mask[7] = True
    labels = torch.arange(200).repeat(4)
    many = split(mask, labels, torch.zeros_like(labels), torch.Generator())
    assert len(labels[many.shots].unique()) == MOST_CLASSES and (labels[many.shots] == 7).any()


def test_too_few_images_are_said_to_be():
    answer = RETENTION.answer(planted.case(planted.original(1), each=1))
    assert answer.verdict == NOT_MEASURED and "at least 2 of each" in answer.sentence
    two = planted.case(planted.original(2), each=2)
    assert RETENTION.answer(two).verdict != NOT_MEASURED  # control
    case = planted.case(planted.original())
    with pytest.raises(ValueError, match="at least 50 of each forgotten cell, and there are 12"):
        halves(case, each=50)


def test_the_nearest_mean_is_scikit_learns_on_directions_about_the_middle():
    rows = torch.nn.functional.normalize(torch.randn(60, 8, dtype=torch.float64), dim=1)
    labels = torch.arange(60) % 3
    means = torch.stack([rows[labels == c].mean(0) for c in range(3)])

    def turned(some):
        return torch.nn.functional.normalize(some - means.mean(0), dim=1).numpy()

    oracle = NearestCentroid().fit(turned(means), range(3))
    found = nearest_mean(rows, labels, rows)
    assert torch.equal(found, torch.from_numpy(oracle.predict(turned(rows))))
    assert not torch.equal(found, nearest_mean(rows, labels, -rows))  # control


def test_shares_are_counts_and_their_interval_shrinks_with_images():
    widths = []
    for each in (10, 160):
        case = planted.case(planted.original(each), each=each)
        parts = halves(case)
        asking = parts.asking
        predicted = torch.arange(len(parts.tests)) % 2  # half of all are given the name
        named = Named.of(predicted, asking)
        own = predicted[asking.images[asking.own[0]]] == 0
        assert named.value == own.double().mean() and abs(float(named.chance) - 0.5) < 0.05
        low, high = interval(predicted, asking, 200, 0)
        assert low < named.value < high
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 8  # 1 / sqrt(n) says 4


def test_recovered_is_half_of_what_the_name_told_and_more_than_a_new_model_learns():
    assert recovered_by((1, 2, 4), (0.1, 0.5, 0.9), 1.0) == 2
    assert recovered_by((1, 2, 4), (0.1, 0.5, 0.9), 1.0, (0.1, 0.45, 0.7)) == 4
    assert recovered_by((1, 2, 4), (0.1, 0.4, 0.4), 1.0) is None
