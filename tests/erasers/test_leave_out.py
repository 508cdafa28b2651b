"""Leave-out: the setting that does best on prototypes an edit was not made from."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.erasers import Numbers, gated, leave_out
from nullspace_unlearn.evaluate.figures import grid_figures
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid
from nullspace_unlearn.linalg import unit

CLASSES, DOMAINS, DIM, EACH = 4, 3, 30, 4
SETTINGS = [Numbers(*s) for s in product((0.01, 0.1, 1.0), (1.0, 1.5, 2.0), (0.2, 0.4))]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASS, DOMAIN, COMMON = randn(CLASSES, DIM, seed=1), randn(DOMAINS, DIM, seed=2), randn(DIM, seed=3)
TEXT = unit(CLASS + 2 * COMMON)
OWN = 0.7 * randn(CLASSES, DOMAINS, DIM, seed=6)
SUM = CLASS[:, None] + DOMAIN + 2 * COMMON + OWN
CELL, WHOLE = torch.zeros(2, CLASSES, DOMAINS, dtype=torch.bool)
CELL[1, 2] = True
WHOLE[:, 1] = True
MASKS = {"one cell": CELL, "a whole domain": WHOLE}


def shots(noise: float, each: int = EACH, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pseudo-images and their cells, those of a cell together."""
    rows = unit(SUM[:, :, None] + noise * randn(CLASSES, DOMAINS, each, DIM, seed=seed))
    labels, domains, _ = torch.ones(rows.shape[:3]).nonzero().unbind(-1)
    return rows.flatten(0, 2), labels, domains


def lead(scores: Tensor, label: int) -> float:
    return float(scores[label] - max(s for k, s in enumerate(scores.tolist()) if k != label))


def by_loops(rows: Tensor, labels: Tensor, domains: Tensor, mask: Tensor, folds: int) -> Numbers:
    """The docstring, image by image."""
    cells = list(zip(labels.tolist(), domains.tolist(), strict=True))
    folds = min(folds, min(cells.count(cell) for cell in cells))
    fold = torch.tensor([cells[:i].count(cell) % folds for i, cell in enumerate(cells)])
    before = [lead(s, c) for s, (c, _) in zip(unit(rows) @ TEXT.mT, cells, strict=True)]
    scale = 0.3 * sum(max(x, 0) for x in before) / len(before)
    totals = []
    for numbers in SETTINGS:
        total = 0.0
        for k in range(folds):
            made, held = fold != k, (fold == k).nonzero()[:, 0].tolist()
            edit = gated(rows[made], labels[made], domains[made], TEXT, mask, numbers=numbers)
            right: dict[tuple[int, int], list[float]] = {}
            for i in held:
                c, d = cells[i]
                scores = (edit.apply(rows[i : i + 1]) @ TEXT.mT)[0] / rows[i].norm()
                right.setdefault((c, d), []).append(1 / (1 + math.exp(-lead(scores, c) / scale)))
            groups: dict[tuple[bool, bool, bool], list[float]] = {}
            for (c, d), found in right.items():
                gone = bool(mask[c, d])
                key = (gone, bool(mask[c].any()), bool(mask[:, d].any()))
                groups.setdefault((True,) * 3 if gone else key, []).append(sum(found) / len(found))
            means = {key: sum(found) / len(found) for key, found in groups.items()}
            parts = [1 - mean if key == (True,) * 3 else mean for key, mean in means.items()]
            total += len(parts) / sum(1 / part for part in parts)
        totals.append(total)
    return SETTINGS[totals.index(max(totals))]


@pytest.mark.parametrize("folds", [2, 4])
@pytest.mark.parametrize("noise", [0.1, 1.5])
def test_the_choice_is_that_of_plain_loops(noise: float, folds: int) -> None:
    rows, labels, domains = shots(noise)
    rows = rows * torch.arange(1, len(rows) + 1)[:, None]  # lengths do not matter
    chosen = leave_out(rows, labels, domains, TEXT, CELL, folds=folds)
    assert chosen == by_loops(rows, labels, domains, CELL, folds)


def test_different_images_are_given_different_numbers() -> None:
    """The control of what follows: it is no constant."""
    chosen = {leave_out(*shots(noise, seed=1), TEXT, CELL) for noise in (0.1, 3.0)}
    assert len(chosen) > 1


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_what_is_chosen_does_nearly_as_well_on_new_images_as_the_best(
    name: str, noise: float
) -> None:
    """Oracle: the harmonic mean on 100 new images a cell, for every setting."""
    rows, labels, domains = shots(noise)
    new, truth, places = shots(noise, each=100, seed=5)

    def h4(numbers: Numbers) -> float:
        edit = gated(rows, labels, domains, TEXT, MASKS[name], numbers=numbers)
        predicted = (edit.apply(new) @ TEXT.mT).argmax(-1)
        grid = accuracy_grid(predicted, truth, places, CLASSES, DOMAINS)
        return grid_figures(grid, MASKS[name])["h4"]

    found = {numbers: h4(numbers) for numbers in SETTINGS}
    chosen = found[leave_out(rows, labels, domains, TEXT, MASKS[name])]
    best, worst = max(found.values()), min(found.values())
    assert chosen - worst > 0.5 * (best - worst)
    assert best - worst > 0.02  # the control: there is something to choose


def test_cells_may_come_in_any_order() -> None:
    rows, labels, domains = shots(1.5)
    chosen = leave_out(rows, labels, domains, TEXT, CELL)
    # Images of a cell keep their order, and with it their folds; the cells are interleaved.
    places = torch.arange(len(rows)).reshape(-1, EACH).flip(0).mT.flatten()
    assert leave_out(rows[places], labels[places], domains[places], TEXT, CELL) == chosen


def test_hidden_features_are_read_where_they_are_given() -> None:
    rows, labels, domains = shots(1.5)
    turn = torch.linalg.qr(randn(DIM, DIM, seed=9))[0]
    plain = leave_out(rows, labels, domains, TEXT, CELL)
    assert leave_out(rows, labels, domains, TEXT, CELL, hidden=rows @ turn) == plain
    # The control: features in which each image says its own cell leave nothing to chance.
    sure = torch.nn.functional.one_hot(labels * DOMAINS + domains, CLASSES * DOMAINS).double()
    chosen = leave_out(rows, labels, domains, TEXT, CELL, hidden=sure)
    assert chosen != plain


def test_one_image_of_some_cell_is_too_few_to_choose_by() -> None:
    rows, labels, domains = shots(1.5)
    lone = torch.arange(len(rows)) >= EACH - 1  # one is left of the first cell
    assert leave_out(rows[lone], labels[lone], domains[lone], TEXT, CELL) == Numbers()
    assert leave_out(*shots(0.1, each=1), TEXT, CELL) == Numbers()
    # The control: two are enough, and fewer folds are used than asked for.
    two = torch.arange(len(rows)) >= EACH - 2
    chosen = leave_out(rows[two], labels[two], domains[two], TEXT, CELL)
    assert chosen == by_loops(rows[two], labels[two], domains[two], CELL, 4)


def test_a_fold_whose_forgotten_images_are_all_misnamed_is_passed_over() -> None:
    rows, labels, domains = shots(0.1, each=2)
    here = (CELL[labels, domains]).nonzero()[:, 0]
    other = ((labels == 0) & (domains == 2)).nonzero()[:, 0]
    rows[here[0]] = rows[other[0]]  # one of the two is another class to the model
    assert leave_out(rows, labels, domains, TEXT, CELL) in SETTINGS
    rows[here[1]] = rows[other[1]]
    assert leave_out(rows, labels, domains, TEXT, CELL) == Numbers()
    with pytest.raises(ValueError, match="the edit would remove nothing"):  # which is then said
        gated(rows, labels, domains, TEXT, CELL)


def test_refused_as_by_gated() -> None:
    rows, labels, domains = shots(0.1)
    with pytest.raises(ValueError, match="forget at least one cell and keep at least one"):
        leave_out(rows, labels, domains, TEXT, CELL & False)
