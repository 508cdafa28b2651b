"""Searches by names that stay, against scikit-learn and against models that lists cannot tell."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.figures import FIGURES
from nullspace_unlearn.evaluate.kept_search import Searching
from nullspace_unlearn.evaluate.measure import Model, measure
from nullspace_unlearn.evaluate.told import MOST_NAMES, Shared
from nullspace_unlearn.forget import Forget

CLASSES, DOMAINS = tuple("abcdefgh"), ("photo", "sketch", "cartoon")
REQUESTS = (Forget(["a", "c"]), Forget(["b"], ["sketch"]), Forget(domains=["sketch"]))


def world(n: int = 300) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    labels, domains = (torch.randint(k, (n,), generator=random) for k in (8, 3))
    texts = torch.randn(8, 16, generator=random)
    images = texts[labels] + 1.5 * torch.randn(n, 16, generator=random)
    return images, texts, labels, domains


def by_sklearn(score, labels, domains, mask, weight=None) -> float:
    """Mean over the classes that stay somewhere; a class's forgotten images are left out."""
    found = []
    for c in range(len(mask)):
        own = labels == c
        gone = own & mask[labels, domains]
        if not (own & ~gone).any():
            continue
        some = weight if weight is None else weight[~gone]
        found.append(average_precision_score(own[~gone], score[~gone, c], sample_weight=some))
    return sum(found) / len(found)


@pytest.mark.parametrize("request_", REQUESTS)
def test_it_is_scikit_learns(request_: Forget) -> None:
    images, texts, labels, domains = world()
    mask = request_.mask(CLASSES, DOMAINS)
    score = (
        torch.nn.functional.normalize(images, dim=1).double()
        @ (texts / texts.norm(dim=1, keepdim=True)).double().mT
    )
    found = measure(Model(images, texts), Model(images, texts), labels, domains, mask)
    assert float(found.figures()["kept_search"]) == pytest.approx(
        by_sklearn(score, labels, domains, mask), abs=1e-5
    )
    random = torch.Generator().manual_seed(1)
    weight = torch.randint(0, 4, (5, len(labels)), generator=random).double()
    searched = Searching.of(mask, labels, domains).find(images, texts, weight)
    for w, ours in zip(weight, searched.value, strict=True):
        theirs = by_sklearn(score, labels, domains, mask, w)
        assert float(ours) == pytest.approx(theirs, abs=1e-5)
    other = mask.roll(1, 0).roll(1, 1)  # the control: who is left out matters
    assert abs(by_sklearn(score, labels, domains, other) - float(searched.value[0])) > 1e-4


def test_chance_is_the_mean_over_names_that_say_nothing() -> None:
    images, texts, labels, domains = world(60)
    searching = Searching.of(REQUESTS[1].mask(CLASSES, DOMAINS), labels, domains)
    noise = torch.randn(3000, 60, 16, generator=torch.Generator().manual_seed(2))
    found = searching.find(noise, texts)
    assert float(found.value.mean()) == pytest.approx(float(found.blind[0]), abs=3e-3)
    share = float(searching.sought.double().mean(1).mean())
    assert float(found.blind[0]) > share + 0.02  # of few images, chance is more than their share
    constant = searching.find(torch.ones(60, 16), texts)
    assert float(constant.value) == pytest.approx(float(constant.blind))
    assert float(constant.blind) < float(found.blind[0]) - 0.02


def test_what_no_list_shows() -> None:
    """Each image moved along what all names share: all lists read the same, searches do not."""
    images, texts, labels, domains = world()
    random = torch.Generator().manual_seed(3)
    images, texts = (torch.nn.functional.normalize(one, dim=1) for one in (images, texts))
    texts = torch.cat([texts, torch.ones(8, 1)], 1)
    before = torch.cat([images, torch.zeros(300, 1)], 1)
    after = torch.cat([images, 6 * torch.randn(300, 1, generator=random)], 1)
    mask = REQUESTS[0].mask(CLASSES, DOMAINS)
    found = measure(Model(before, texts), Model(after, texts), labels, domains, mask)
    was, now = found.before(), found.figures()
    assert float(now["cost"]) == 0 and float(now["named_all"]) == float(was["named_all"])
    assert float(was["kept_search"]) > 0.8 and float(now["kept_search"]) < 0.5
    ends = found.intervals(50)["kept_search"]
    assert ends[0] < ends[1] < 0.6


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_sweep_finds_what_each_edited_model_does(request_: Forget) -> None:
    images, texts, labels, domains = world()
    mask = request_.mask(CLASSES, DOMAINS)
    random = torch.Generator().manual_seed(4)
    edits = Edit(*(torch.randn(4, 16, 2, generator=random) for _ in range(2))).scale(0.2)
    shared = Shared.of(images, texts, labels, domains)
    found, untouched = shared.searched(mask, edits), shared.searched(mask, None)
    after = Model(torch.stack([edits[i].apply(images.double()) for i in range(4)]), texts)
    whole = measure(Model(images, texts), after, labels, domains, mask)
    expected = whole.figures()["kept_search"]
    assert torch.allclose(found.value, expected, atol=1e-9)
    assert torch.allclose(untouched.value, whole.before()["kept_search"], atol=1e-9)
    assert (found.value - untouched.value).abs().max() > 0.05  # the control: edits do something


def test_of_many_names_some_are_searched_for() -> None:
    labels = torch.arange(400) % 100
    mask = torch.zeros(100, 1, dtype=torch.bool)
    mask[:50] = True
    some = Searching.of(mask, labels, most=MOST_NAMES)
    assert len(some.classes) == MOST_NAMES and int(some.classes.min()) == 50
    assert len(Searching.of(mask, labels).classes) == 50


def test_where_nothing_can_be_searched_for() -> None:
    mask = torch.tensor([[True], [False]])
    alone = Searching.of(mask, torch.ones(4).long())
    assert bool(alone.find(torch.ones(4, 2), torch.eye(2)).value.isnan())
    gone = Searching.of(mask, torch.zeros(4).long())
    assert not len(gone.classes)
    both = Searching.of(mask, torch.tensor([0, 1, 1]))  # the control
    assert float(both.find(torch.eye(2)[[0, 1, 1]], torch.eye(2)).value) == 1
    assert FIGURES["kept_search"].written(None) == "-"
