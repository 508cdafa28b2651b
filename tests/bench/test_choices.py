"""From requests to what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.bench.choices import choices
from nullspace_unlearn.bench.datasets import Pool
from nullspace_unlearn.bench.recipe import Request
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.forget import Forget

CLASSES, DOMAINS = tuple("abcdef"), ("photo", "sketch", "clipart")


def pool(without: tuple[int, int] | None = None) -> Pool:
    """A data set of 6 classes in 3 domains, of which one cell may have no image."""
    covered = torch.ones(len(CLASSES), len(DOMAINS), dtype=torch.bool)
    if without:
        covered[without] = False
    return pool_of(CLASSES, {d: d for d in DOMAINS}, covered)


def pool_of(classes: Sequence[str], domains: Mapping[str, str], covered: Tensor) -> Pool:
    rows, columns = covered.nonzero().T
    source = Source("", "", tuple(classes), tuple(domains), tuple(domains.values()), rows, columns)
    return Pool("", source, source.fingerprint)


def test_each_takes_every_choice_there_is() -> None:
    assert choices(Request("global"), pool()) == [Forget((c,)) for c in CLASSES]
    assert choices(Request("domain", size=2), pool()) == [
        Forget(domains=two) for two in combinations(DOMAINS, 2)
    ]
    cells = choices(Request("cell"), pool())
    assert cells == [Forget((c,), (d,)) for c in CLASSES for d in DOMAINS]
    assert choices(Request("cell", classes=("b",), domains=("sketch",)), pool()) == [
        Forget(("b",), ("sketch",))
    ]


def test_together_takes_all_that_is_listed_at_once() -> None:
    request = Request("cell", "together", classes=("a", "c"), domains=("sketch", "photo"))
    assert choices(request, pool()) == [Forget(("a", "c"), ("sketch", "photo"))]


@pytest.mark.parametrize(("kind", "size", "there"), [("global", 3, 20), ("cell", 2, 45)])
def test_random_choices_differ_and_come_again_with_their_seed(
    kind: Any, size: int, there: int
) -> None:
    def drawn(choose: int, seed: int) -> list[tuple[Any, Any]]:
        made = choices(Request(kind, choose, size=size, seed=seed), pool())
        return [(one.classes, one.domains) for one in made]

    some = drawn(8, seed=0)
    assert len(set(some)) == 8 and {len(classes) for classes, _ in some} == {size}
    assert some == drawn(8, seed=0) and some != drawn(8, seed=1)
    assert len(set(drawn(there, seed=0))) == there  # all of them can be drawn
    with pytest.raises(ValueError, match=f"there are {there}"):
        drawn(there + 1, seed=0)


def test_a_class_that_some_domain_lacks_is_not_chosen() -> None:
    chosen = choices(Request("global"), pool(without=(2, 1)))
    assert Forget(("c",)) not in chosen and len(chosen) == 5
    with pytest.raises(ValueError, match="class 'c' has no image to report on in some domain"):
        choices(Request("global", classes=("c",)), pool(without=(2, 1)))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("global", classes=("x",)), "the data have no class 'x'; they have a, b"),
        (Request("domain", domains=("oil",)), "the data have no domain 'oil'; they have photo"),
        (Request("domain", size=3), "3 of 3 domains cannot go at once"),
        (Request("global", size=7), "there are 0 choices of 7 among 6"),
    ],
)
def test_what_cannot_be_chosen_is_refused(request_: Request, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choices(request_, pool())


def test_too_many_choices_are_not_all_taken(tmp_path: Path) -> None:
    many = tuple(f"class {i}" for i in range(200))
    covered = torch.ones(200, 1, dtype=torch.bool)
    big = pool_of(many, {"all": "photo"}, covered)
    with pytest.raises(ValueError, match="19900 choices of 2 among 200: choose a number"):
        choices(Request("global", size=2), big)
    assert len(choices(Request("global", 5, size=2), big)) == 5
