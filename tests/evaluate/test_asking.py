"""Ways of asking against brute force over lists, drawn lists and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from nullspace_unlearn.evaluate.asking import (
    ALL,
    FOUND,
    RECALL,
    Answers,
    Asking,
    chances,
    named,
    search,
)  # fmt: skip
from nullspace_unlearn.forget import Forget

CLASSES, DOMAINS = ("cat", "dog", "car", "bus"), ("photo", "sketch", "cartoon")


def won(own: float, others: list[float]) -> float:
    """1 where the name beats the others of its list, half where it shares the best score."""
    best = max(others, default=-np.inf)
    return 1.0 if own > best else 0.5 if own == best else 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.integers(0, 4), st.integers(1, 8))
def test_named_is_the_mean_over_all_lists(others: list[int], own: int, length: int) -> None:
    length = min(length, len(others) + 1)
    lists = list(itertools.combinations(others, length - 1))
    mean = sum(won(own, list(some)) for some in lists) / len(lists)
    above, ties = sum(o > own for o in others), sum(o == own for o in others)
    ours = named(torch.tensor(above), torch.tensor(ties), len(others), length)
    assert float(ours) == pytest.approx(mean, abs=1e-12)


def test_named_against_a_hundred_thousand_drawn_lists() -> None:
    draw = np.random.default_rng(0)
    scores = np.round(draw.normal(size=120), 1)
    for own, length in ((1.2, 5), (0.0, 2)):
        # The names of the smallest random numbers are a list drawn without replacement.
        lists = scores[draw.random((100_000, 120)).argpartition(length - 1)[:, : length - 1]]
        best = lists.max(1)
        drawn = np.mean((own > best) + (own == best) / 2)
        above, ties = int((scores > own).sum()), int((scores == own).sum())
        ours = named(torch.tensor(above), torch.tensor(ties), len(scores), length)
        assert float(ours) == pytest.approx(drawn, abs=5e-3) and ties > 0
        other = named(torch.tensor(above + ties), torch.tensor(0), len(scores), length)
        assert abs(float(other) - drawn) > 5e-3  # the control: every tie lost


def test_a_long_list_of_many_names_keeps_its_digits() -> None:
    from fractions import Fraction
    from math import comb

    table = chances(20_000, 50)
    for beaten in (0, 1, 200, 5_000, 19_950, 19_951, 19_952, 20_000):
        exact = float(Fraction(comb(20_000 - beaten, 49), comb(20_000, 49)))
        assert float(table[beaten]) == pytest.approx(exact, rel=1e-12, abs=0)
    assert chances(11, 12).tolist() == [1.0] + [0.0] * 11
    assert chances(1, 2).tolist() == [1.0, 0.0]
    for names, length in ((3, 5), (3, 0)):
        with pytest.raises(ValueError, match="cannot be drawn"):
            chances(names, length)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.booleans())
def test_average_precision_is_scikit_learns(seed: int, n: int, coarse: bool) -> None:
    random = np.random.default_rng(seed)
    score = random.integers(0, 4, (2, n)).astype(float) if coarse else random.normal(size=(2, n))
    positive = random.random(n) < 0.4
    positive[random.integers(n)] = True
    weight = random.integers(0, 3, (2, n)).astype(float)
    weight[:, positive.argmax()] += 1
    s, p, w = torch.tensor(score), torch.tensor(positive), torch.tensor(weight)
    ours, weighed, shared = search(s, p), search(s, p, w), search(s[0], p, w)
    for row in range(2):
        plain = average_precision_score(positive, score[row])
        assert float(ours.precision[row]) == pytest.approx(plain)
        for theirs, of in ((weighed, row), (shared, 0)):
            there = average_precision_score(positive, score[of], sample_weight=weight[row])
            assert float(theirs.precision[row]) == pytest.approx(there)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 6))
def test_by_chance_is_the_mean_over_all_ways_to_say_which(seed: int, n: int, few: int) -> None:
    random = np.random.default_rng(seed)
    score, few = random.integers(0, 4, n).astype(float), min(few, n)
    precision, recall = [], []
    for chosen in itertools.combinations(range(n), few):
        positive = np.isin(np.arange(n), chosen)
        precision.append(average_precision_score(positive, score))
        recall.append(float(search(torch.tensor(score), torch.tensor(positive)).recall))
    found = search(torch.tensor(score), torch.tensor(positive))
    assert float(found.precision_blind) == pytest.approx(np.mean(precision))
    assert float(found.recall_blind) == pytest.approx(np.mean(recall)) == few / n


def test_by_chance_tends_to_the_share() -> None:
    positive = torch.arange(20_000) % 50 == 0
    found = search(torch.rand(20_000), positive)
    assert float(found.precision_blind) == pytest.approx(1 / 50, abs=1e-3)
    equal = search(torch.zeros(20), positive[:20])
    assert float(equal.precision) == float(equal.precision_blind) == 1 / 20


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 6))
def test_recall_is_the_mean_over_all_orders_of_equal_scores(seed: int, n: int, k: int) -> None:
    random = np.random.default_rng(seed)
    score, positive = random.integers(0, 3, n), random.random(n) < 0.5
    positive[0], k = True, min(k, n)
    orders = [o for o in itertools.permutations(range(n)) if (np.diff(score[list(o)]) <= 0).all()]
    mean = np.mean([positive[list(o[:k])].sum() / positive.sum() for o in orders])
    given_ = torch.tensor(score).double(), torch.tensor(positive)
    assert float(search(*given_, k=k).recall) == pytest.approx(mean)
    own = search(*given_, k=int(positive.sum())).recall
    assert float(search(*given_).recall) == pytest.approx(float(own))


def grid(each: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and domains of as many images of each cell."""
    cells = torch.arange(12).repeat_interleave(each)
    return cells // 3, cells % 3


@pytest.mark.parametrize(
    ("forget", "listed", "beside"),
    [
        # Everywhere: among what stays, in every domain.
        (Forget(["cat"]), {"cat": "dog car bus"}, lambda c, d: c != "cat"),
        (Forget(["cat", "dog"]), {"cat": "car bus", "dog": "car bus"},
         lambda c, d: c in ("car", "bus")),
        # In a domain: among what stays there, against images of that domain.
        (Forget(["cat", "dog"], ["sketch"]), {"cat": "car bus", "dog": "car bus"},
         lambda c, d: c in ("car", "bus") and d == "sketch"),
        # A whole domain: nothing stays there, so each is asked among all others.
        (Forget([], ["sketch"]), {c: " ".join(o for o in CLASSES if o != c) for c in CLASSES},
         lambda c, d: d == "sketch"),
    ],
)  # fmt: skip
def test_who_is_asked_for_what(forget, listed, beside) -> None:
    labels, domains = grid()
    asking = Asking.of(forget.mask(CLASSES, DOMAINS), labels, domains)
    assert [CLASSES[c] for c in asking.classes] == list(listed)
    for j, (name, names) in enumerate(listed.items()):
        assert [CLASSES[i] for i in asking.listed[j].nonzero()[:, 0]] == names.split()
        for at, image in enumerate(asking.images.tolist()):
            c, d = CLASSES[labels[image]], DOMAINS[domains[image]]
            gone = c in (forget.classes or CLASSES) and d in (forget.domains or DOMAINS)
            assert bool(asking.own[j, at]) == (c == name and gone)
            assert bool(asking.others[j, at]) == (c != name and beside(c, d))
    counted = asking.own.sum(1) + asking.others.sum(1)
    assert counted.min() > 2 and asking.ways[-3:] == (ALL, FOUND, RECALL)


def test_cells_that_are_no_rectangle() -> None:
    """A cat goes in sketches and a dog in photos: each is asked in its own domain."""
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = True
    labels, domains = grid(1)
    asking = Asking.of(mask, labels, domains, names=6)
    assert asking.listed.int().tolist() == [[0, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1]]
    for j, domain in ((0, 1), (1, 0)):
        beside = asking.images[asking.others[j]]
        assert len(beside) == 3 and set(domains[beside].tolist()) == {domain}


def test_images_that_are_missing_and_one_kept_name() -> None:
    mask = Forget(["cat"], ["sketch"]).mask(CLASSES, DOMAINS)
    labels, domains = grid(1)
    without = (labels != 0) | (domains != 1)
    nothing = Asking.of(mask, labels[without], domains[without])
    told = Answers.of(nothing, torch.randn(11, 5), torch.randn(4, 5)).told()
    assert not len(nothing.classes) and told.value.shape == (0, 3)
    pair = Asking.of(torch.tensor([[True], [False]]), torch.tensor([0, 0, 1, 1]))
    assert pair.ways == ("named_2", ALL, FOUND, RECALL)
    axes = torch.eye(2)
    told = Answers.of(pair, axes[[0, 0, 1, 1]], axes).told()
    assert told.value.tolist() == [[1, 1, 1, 1]]
    # Two of four by chance, ranked in two pairs: (1 + 1/3) / 2 and (1 + 3/3) / 4, alike often.
    assert told.blind[0].tolist() == pytest.approx([0, 0, 7 / 12, 0.5])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 9]), st.booleans())
def test_answers_are_those_of_a_plain_loop(seed: int, gone: int, whole: bool) -> None:
    """Coarse scores, so that many tie; above and below what is compared one by one."""
    draw = torch.Generator().manual_seed(seed)
    names, n = 12, 30
    z = torch.randint(-1, 2, (2, n, 4), generator=draw).float()
    t = torch.randint(-1, 2, (names, 4), generator=draw).float()
    labels, domains = torch.randint(10, (n,), generator=draw), torch.arange(n) % 2
    mask = torch.zeros(10, 2, dtype=torch.bool)
    mask[slice(None) if whole else slice(gone), 0] = True
    asking = Asking.of(mask, labels, domains, names=12)
    answers = Answers.of(asking, z, t)
    for j, c in enumerate(asking.classes.tolist()):
        for at, i in enumerate(asking.images.tolist()):
            for e in range(2):
                length = max(1e-9, float(z[e, i].norm()))
                scores = [float(z[e, i] @ row / length / max(1e-9, row.norm())) for row in t]
                others = [scores[k] for k in asking.listed[j].nonzero()[:, 0].tolist()]
                own = scores[c]
                above = sum(o > own + 1e-6 for o in others)
                ties = sum(abs(o - own) <= 1e-6 for o in others)
                assert float(answers.score[e, j, at]) == pytest.approx(own, abs=1e-6)
                assert int(answers.above[e, j, at]) + int(answers.ties[e, j, at]) == above + ties
    one = Answers.of(asking, z[1], t).told()
    both = answers.told()
    assert torch.equal(both.value[1], one.value) and torch.equal(both.blind[1], one.blind)


def test_what_is_not_a_number_is_refused() -> None:
    asking = Asking.of(torch.tensor([[True], [False]]), torch.tensor([0, 1]))
    good, bad = torch.eye(2), torch.tensor([[1.0, torch.nan], [0, 1]])
    for z, t in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match="must be finite"):
            Answers.of(asking, z, t)
    with pytest.raises(ValueError, match="2 names need as many rows"):
        Answers.of(asking, good, torch.ones(3, 2))
