"""The figures of the papers against plain loops over images; names struck off one list."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullspace_unlearn.evaluate.figures import (
    FIGURES,
    Evidence,
    blind_figures,
    evidence_of,
    figures,
    grid_figures,
)
from nullspace_unlearn.evaluate.ideal import ideal_grid
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
    found = grid_figures(accuracy_grid(predicted, labels, domains, 4, 3), mask_of(kind))

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
    assert found["forgotten"] == pytest.approx(means["forgotten"])
    for ours, name in ((found["same_class"], "same"), (found["same_domain"], "domain")):
        assert ours == (None if means[name] is None else pytest.approx(means[name]))
    assert found["rest"] == (None if means["rest"] is None else pytest.approx(means["rest"]))
    kept = groups["same"] + groups["domain"] + groups["rest"]
    assert found["kept"] == pytest.approx(statistics.fmean(kept))
    parts = [1 - statistics.fmean(groups["forgotten"])]
    parts += [m for name, m in means.items() if name != "forgotten" and m is not None]
    assert len(parts) == {"global": 2, "domain": 2, "cell": 4, "cells": 4}[kind]
    assert found["h4"] == pytest.approx(statistics.harmonic_mean(parts))
    if len(parts) == 2:
        assert found["h4"] == pytest.approx(
            statistics.harmonic_mean([1 - found["forgotten"], found["kept"]])
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
    assert grid_figures(grid, mask)["forgotten"] == 0.5 and grid_figures(grid, mask)["kept"] == 0.5
    assert grid.mean(mask) == 0.75  # the control: by images the full cell would hide the other


def test_an_empty_cell_changes_nothing() -> None:
    accuracy = torch.tensor([[0.5, 0.0], [0.8, 0.2]], dtype=torch.float64)
    grid = Grid(accuracy, torch.tensor([[3, 0], [1, 3]]))
    found = grid_figures(grid, torch.tensor([[True, True], [False, False]]))
    assert found["forgotten"] == 0.5
    absent = grid_figures(grid, torch.tensor([[True, False], [False, False]]))
    assert absent["same_class"] is None and absent["same_domain"] == 0.8


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
    assert grid_figures(ideal, mask)["h4"] >= grid_figures(before, mask)["h4"]


def test_striking_off_helps_the_others_and_zeroing_alone_does_not() -> None:
    embeddings, prototypes, labels, domains = task(3)
    mask = mask_of("global")
    before = accuracy_grid(predict(embeddings, prototypes), labels, domains, 4, 3)
    ideal = ideal_grid(embeddings, prototypes, labels, domains, mask)
    assert grid_figures(ideal, mask)["kept"] > grid_figures(before, mask)["kept"] + 0.01


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
    assert grid_figures(Grid(accuracy, count), mask)["h4"] == 1
    accuracy[0] = 0  # the class is gone from its kept domains too
    ruined = grid_figures(Grid(accuracy, count), mask)
    assert ruined["h4"] == 0 and ruined["kept"] > 0.8


def test_plain_values_and_what_cannot_be_told() -> None:
    grid = Grid(torch.ones(2, 2), torch.tensor([[0, 1], [1, 1]]))
    first = torch.tensor([[True, False], [False, False]])
    said = grid_figures(grid, first, grid)
    assert json.loads(json.dumps(said, allow_nan=False)) == said and list(said) == list(FIGURES)
    assert said["forgotten"] is None and said["h4"] is None and said["kept"] == 1
    assert said["kravets"] is None and said["subgroup"] is None and said["left"] is None
    other = grid_figures(grid, ~first, grid)
    assert other["kept"] is other["worst_kept"] is other["cost"] is other["paid"] is None
    alone = grid_figures(grid, ~first.flip(0))
    assert alone["cost"] is alone["subgroup"] is alone["kravets"] is None and alone["kept"] == 1


def test_errors(unchecked: Callable[[], AbstractContextManager[None]]) -> None:
    grid = Grid(torch.ones(2, 2), torch.tensor([[0, 1], [1, 1]]))
    first = torch.tensor([[True, False], [False, False]])
    for mask in (first[:1], first.long()):
        with unchecked(), pytest.raises(ValueError, match=r"mask must be boolean \[2, 2\], got"):
            grid_figures(grid, mask)
    with unchecked(), pytest.raises(ValueError, match=r"got torch.bool \[2, 2\], \[3, 2\]"):
        grid_figures(grid, first, Grid(torch.ones(3, 2), torch.ones(3, 2).long()))
    ones = torch.ones(2, 2)
    for mask in (torch.ones(2, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)):
        with unchecked(), pytest.raises(ValueError, match=r"mask must be \[2, domains\]"):
            ideal_grid(ones, ones, torch.tensor([0, 1]), None, mask)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_figures_of_many_grids_are_those_of_each(data: st.DataObject) -> None:
    """Every figure of accuracies, over two leading dimensions, one with its own mask."""
    seed = data.draw(st.integers(0, 10**6))
    random = torch.Generator().manual_seed(seed)
    count = torch.randint(0, 4, (4, 3), generator=random)
    right = (torch.rand(2, 3, 4, 3, generator=random) * (count + 1)).long()
    before = (torch.rand(4, 3, generator=random) * (count + 1)).long()
    masks = torch.rand(3, 4, 3, generator=random) < 0.3
    many = count.clamp(min=1).double()
    others = torch.rand(2, 3, 2, 2, generator=random).double()
    all_ = figures(Evidence(masks, count, right / many, before / many, others=others, seconds=2.0))
    for s in range(2):
        for b in range(3):
            one = grid_figures(
                Grid(right[s, b] / many, count), masks[b], Grid(before / many, count),
                [(float(x), float(y)) for x, y in others[s, b]],
            )  # fmt: skip
            for name, value in one.items():
                ours = float(all_[name].expand(2, 3)[s, b])
                expected = 2 if name == "seconds" else torch.nan if value is None else value
                assert ours == pytest.approx(expected, nan_ok=True), name


def test_every_figure_is_declared_whole() -> None:
    for name, one in FIGURES.items():
        assert one.name == name and one.title and one.meaning and not one.meaning.endswith(".")
        assert one.good in ("low", "high", "chance") and one.unit and one.images
        assert (one.good == "chance") <= (one.blind is not None)
    assert len({one.title for one in FIGURES.values()}) == len(FIGURES)
    assert FIGURES["cost"].written(-0.0) == "0.0" and FIGURES["kept"].written(None) == "-"
    evidence = evidence_of(Grid(torch.ones(2, 1), torch.ones(2, 1).long()),
                           torch.tensor([[True], [False]]))  # fmt: skip
    assert blind_figures(evidence).keys() == FIGURES.keys()


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
    found = grid_figures(grids[1], mask, grids[0])["subgroup"]
    assert found == pytest.approx(100 * statistics.mean(columns))


def test_subgroup_score_of_the_ideal_and_of_doing_nothing() -> None:
    mask = mask_of("cells")
    before = Grid(torch.full(mask.shape, 0.5, dtype=torch.float64), torch.full(mask.shape, 5))
    ideal = Grid(before.accuracy.masked_fill(mask, 0), before.count)
    assert grid_figures(ideal, mask, before)["subgroup"] == 100
    nothing = grid_figures(before, mask, before)["subgroup"]
    assert nothing == pytest.approx(100 * float((~mask).float().mean()))


def models(seed: int) -> tuple[Grid, Grid, np.ndarray, np.ndarray, np.ndarray]:
    """A model before and after, with what it said of each image; the forgotten class is 0."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(4), random.integers(4, size=60)])
    before, after = (np.where(random.random(64) < p, labels, (labels + 1) % 4) for p in (0.8, 0.5))
    before[labels == 0] = 0
    made = [
        accuracy_grid(torch.tensor(said), torch.tensor(labels), None, 4) for said in (before, after)
    ]
    return made[0], made[1], labels, before, after


FIRST = torch.tensor([[True], [False], [False], [False]])


def kravets(before: Grid, after: Grid, others: Sequence[tuple[float, float]] = ()) -> float | None:
    return grid_figures(after, FIRST, before, others)["kravets"]


@pytest.mark.parametrize("seed", range(5))
def test_kravets_is_the_mean_of_the_share_left_and_the_clipped_drops(seed: int) -> None:
    before, after, labels, said, says = models(seed)
    right0, right = said == labels, says == labels
    others = [(0.9, 0.6), (0.5, 0.7), (0.8, 0.8)]
    terms = [right[labels == 0].mean() / right0[labels == 0].mean()]
    rest0, rest = right0[labels != 0].mean(), right[labels != 0].mean()
    terms += [max((rest0 - rest) / rest0, 0), 1 / 3, 0, 0]
    assert kravets(before, after, others) == pytest.approx(sum(terms) / 5)
    # Images count, not classes: their number differs, and so would the mean of the classes.
    by_class = [right[labels == c].mean() for c in (1, 2, 3)]
    assert np.mean(by_class) != pytest.approx(rest)


def test_kravets_of_the_best_of_doing_nothing_and_of_sets_never_known() -> None:
    before, after, *_ = models(0)
    perfect = Grid(before.accuracy.masked_fill(FIRST, 0), before.count)
    assert kravets(before, perfect, [(0.5, 0.5)]) == 0
    assert kravets(before, before) == pytest.approx(1 / 2)
    assert kravets(before, before, [(0.5, 0.5)] * 3) == pytest.approx(1 / 5)
    without = kravets(before, after)
    assert without is not None
    assert kravets(before, after, [(0.0, 0.0)]) == pytest.approx(without * 2 / 3)
    assert kravets(Grid(0 * before.accuracy, before.count), after) is None
