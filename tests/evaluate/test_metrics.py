"""Figures of a request against plain loops over images; the ideal is the best one."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullspace_unlearn.evaluate.metrics import figures, ideal_grid, report, subgroup_score
from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid, predict
from nullspace_unlearn.forget import Forget, harmonic_mean

CLASSES, DOMAINS = ("cat", "dog", "car", "bus"), ("photo", "sketch", "cartoon")
REQUESTS = {
    "global": Forget(classes=["cat"]),
    "cell": Forget(classes=["cat"], domains=["sketch"]),
    "cells": Forget(classes=["cat", "bus"], domains=["sketch", "photo"]),
    "domain": Forget(domains=["sketch"]),
}


def task(seed: int, n: int = 200) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings that lean to their class, prototypes, labels, domains; every cell has images."""
    random = torch.Generator().manual_seed(seed)
    cells = torch.cat([torch.arange(12), torch.randint(12, (n - 12,), generator=random)])
    labels, domains = cells // 3, cells % 3
    prototypes = torch.randn(4, 8, generator=random)
    embeddings = prototypes[labels] + 1.5 * torch.randn(n, 8, generator=random)
    return embeddings, prototypes, labels, domains


def mask_of(kind: str) -> Tensor:
    return REQUESTS[kind].mask(CLASSES, DOMAINS)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
@pytest.mark.parametrize("kind", REQUESTS)
def test_figures_are_means_over_the_cells_of_each_group(kind: str, seed: int) -> None:
    embeddings, prototypes, labels, domains = task(seed)
    request = REQUESTS[kind]
    predicted = predict(embeddings, prototypes)
    found = figures(accuracy_grid(predicted, labels, domains, 4, 3), mask_of(kind))

    by_cell: dict[tuple[int, int], list[bool]] = {}
    for guess, c, d in zip(predicted.tolist(), labels.tolist(), domains.tolist(), strict=True):
        by_cell.setdefault((c, d), []).append(guess == c)
    groups: dict[str, list[float]] = {"forgotten": [], "same": [], "domain": [], "rest": []}
    for (c, d), hits in by_cell.items():
        class_hit = not request.classes or CLASSES[c] in request.classes
        domain_hit = not request.domains or DOMAINS[d] in request.domains
        if class_hit and domain_hit:
            group = "forgotten"
        else:
            group = "same" if class_hit else "domain" if domain_hit else "rest"
        groups[group].append(statistics.fmean(hits))
    means = {name: statistics.fmean(hits) if hits else None for name, hits in groups.items()}
    assert found.forgotten == pytest.approx(means["forgotten"])
    for ours, name in ((found.same_class, "same"), (found.same_domain, "domain")):
        assert ours == (None if means[name] is None else pytest.approx(means[name]))
    assert found.rest == (None if means["rest"] is None else pytest.approx(means["rest"]))
    kept = groups["same"] + groups["domain"] + groups["rest"]
    assert found.kept == pytest.approx(statistics.fmean(kept))
    parts = [1 - statistics.fmean(groups["forgotten"])]
    parts += [m for name, m in means.items() if name != "forgotten" and m is not None]
    assert len(parts) == {"global": 2, "domain": 2, "cell": 4, "cells": 4}[kind]
    assert found.h4 == pytest.approx(statistics.harmonic_mean(parts))
    if len(parts) == 2:
        assert found.h4 == pytest.approx(
            statistics.harmonic_mean([1 - found.forgotten, found.kept])
        )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_harmonic_mean(values: list[float]) -> None:
    ours = harmonic_mean(values)
    assert ours == pytest.approx(statistics.harmonic_mean(values), rel=1e-9, abs=1e-300)
    assert min(values) * (1 - 1e-12) <= ours <= statistics.fmean(values) * (1 + 1e-12) or not ours


def test_every_cell_counts_once() -> None:
    grid = Grid(
        torch.tensor([[1.0, 0.0], [0.8, 0.2]], dtype=torch.float64), torch.tensor([[3, 1], [1, 3]])
    )
    mask = torch.tensor([[True, True], [False, False]])
    assert figures(grid, mask).forgotten == 0.5 and figures(grid, mask).kept == 0.5
    assert grid.mean(mask) == 0.75  # the control: by images the full cell would hide the other


def test_an_empty_cell_changes_nothing() -> None:
    accuracy = torch.tensor([[0.5, 0.0], [0.8, 0.2]], dtype=torch.float64)
    grid = Grid(accuracy, torch.tensor([[3, 0], [1, 3]]))
    found = figures(grid, torch.tensor([[True, True], [False, False]]))
    assert found.forgotten == 0.5
    absent = figures(grid, torch.tensor([[True, False], [False, False]]))
    assert absent.same_class is None and absent.same_domain == 0.8


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
@pytest.mark.parametrize("kind", REQUESTS)
def test_the_ideal_is_its_definition(kind: str, seed: int) -> None:
    embeddings, prototypes, labels, domains = task(seed)
    mask = mask_of(kind)
    before = accuracy_grid(predict(embeddings, prototypes), labels, domains, 4, 3)
    ideal = ideal_grid(embeddings, prototypes, labels, domains, mask)
    assert torch.equal(ideal.count, before.count)
    assert not ideal.accuracy[mask].any()
    if kind == "global":
        kept = [c for c in range(4) if not mask[c].all()]
        hits: dict[tuple[int, int], list[bool]] = {}
        for z, c, d in zip(embeddings, labels.tolist(), domains.tolist(), strict=True):
            scores = {k: float(z @ prototypes[k] / prototypes[k].norm()) for k in kept}
            hits.setdefault((c, d), []).append(max(scores, key=scores.__getitem__) == c)
        for (c, d), cell in hits.items():
            assert float(ideal.accuracy[c, d]) == pytest.approx(statistics.fmean(cell))
        # Fewer names to confuse: no image that was right can turn wrong.
        assert (ideal.accuracy >= before.accuracy)[~mask].all()
    else:
        assert torch.equal(ideal.accuracy[~mask], before.accuracy[~mask])
    assert figures(ideal, mask).h4 >= figures(before, mask).h4


def test_striking_off_helps_the_others_and_zeroing_alone_does_not() -> None:
    embeddings, prototypes, labels, domains = task(3)
    mask = mask_of("global")
    before = accuracy_grid(predict(embeddings, prototypes), labels, domains, 4, 3)
    ideal = ideal_grid(embeddings, prototypes, labels, domains, mask)
    assert figures(ideal, mask).kept > figures(before, mask).kept + 0.01


def test_a_class_forgotten_in_every_domain_there_is_is_forgotten_everywhere() -> None:
    embeddings, prototypes, labels, domains = task(5)
    named = Forget(classes=["cat"], domains=list(DOMAINS)).mask(CLASSES, DOMAINS)
    a, b = (
        ideal_grid(embeddings, prototypes, labels, domains, mask)
        for mask in (named, mask_of("global"))
    )
    assert torch.equal(a.accuracy, b.accuracy)
    one = ideal_grid(embeddings, prototypes, labels, None, torch.tensor([[True]] + [[False]] * 3))
    assert one.count.shape == (4, 1) and one.accuracy[0] == 0


def test_a_ruined_group_cannot_hide() -> None:
    mask = mask_of("cell")
    accuracy = torch.ones(4, 3).double().masked_fill(mask, 0)
    count = torch.full((4, 3), 10)
    assert figures(Grid(accuracy, count), mask).h4 == 1
    accuracy[0] = 0  # the class is gone from its kept domains too
    ruined = figures(Grid(accuracy, count), mask)
    assert ruined.h4 == 0 and ruined.kept > 0.8


def test_the_report_is_json() -> None:
    embeddings, prototypes, labels, domains = task(0)
    mask = mask_of("domain")
    before = accuracy_grid(predict(embeddings, prototypes), labels, domains, 4, 3)
    ideal = ideal_grid(embeddings, prototypes, labels, domains, mask)
    three = report(figures(before, mask), figures(before, mask), figures(ideal, mask))
    assert json.loads(json.dumps(three, allow_nan=False)) == three
    assert list(three) == ["before", "after", "ideal"]
    assert three["before"] == dataclasses.asdict(figures(before, mask)) != three["ideal"]
    assert three["ideal"]["rest"] is None


def test_errors(unchecked: Callable[[], AbstractContextManager[None]]) -> None:
    grid = Grid(torch.ones(2, 2), torch.tensor([[0, 1], [1, 1]]))
    first = torch.tensor([[True, False], [False, False]])
    for mask, message in (
        (first, "no images of forgotten cells"),
        (~first, "no images of kept cells"),
        (first[:1], r"mask must be boolean \[2, 2\]"),
        (first.long(), "mask must be boolean"),
    ):
        with unchecked(), pytest.raises(ValueError, match=message):
            figures(grid, mask)
    ones = torch.ones(2, 2)
    for mask in (torch.ones(2, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)):
        with unchecked(), pytest.raises(ValueError, match=r"mask must be \[2, domains\]"):
            ideal_grid(ones, ones, torch.tensor([0, 1]), None, mask)


@pytest.mark.parametrize("kind", REQUESTS)
def test_subgroup_score_is_the_mean_over_columns(kind: str) -> None:
    mask = mask_of(kind)
    random = torch.Generator().manual_seed(1)
    before, after = torch.rand(2, *mask.shape, generator=random, dtype=torch.float64)
    before[3, 1] = 0  # never right: no ratio, so no column
    grids = [Grid(accuracy, torch.full(mask.shape, 5)) for accuracy in (before, after)]
    columns = []
    for c in range(len(CLASSES)):
        for d in range(len(DOMAINS)):
            if (c, d) != (3, 1):
                ratio = float(after[c, d] / before[c, d])
                columns.append(1 - ratio if mask[c, d] else min(1.0, ratio))
    assert subgroup_score(*grids, mask) == pytest.approx(100 * statistics.mean(columns))


def test_subgroup_score_of_the_ideal_and_of_doing_nothing(
    unchecked: Callable[[], AbstractContextManager[None]],
) -> None:
    mask = mask_of("cells")
    before = Grid(torch.full(mask.shape, 0.5, dtype=torch.float64), torch.full(mask.shape, 5))
    ideal = Grid(before.accuracy.masked_fill(mask, 0), before.count)
    assert subgroup_score(before, ideal, mask) == 100
    assert subgroup_score(before, before, mask) == pytest.approx(
        100 * float((~mask).float().mean())
    )
    with pytest.raises(ValueError, match="no image of a forgotten cell right"):
        subgroup_score(ideal, before, mask)
    with unchecked(), pytest.raises(ValueError, match="one shape"):
        subgroup_score(before, before, mask[:2])
