"""Neutral: whole domains and cells, on prototypes and images made of cells and noise."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from sklearn.linear_model import Ridge as Oracle
from torch import Tensor

from nullspace_unlearn.erasers import NeutralNumbers, choose_neutral, neutral
from nullspace_unlearn.evaluate.asking import Answers, Asking
from nullspace_unlearn.evaluate.figures import Evidence, figures
from nullspace_unlearn.forget import groups
from nullspace_unlearn.linalg import unit

CLASSES, DOMAINS, DIM, WIDE, EACH = 6, 3, 24, 120, 5
LIGHT = NeutralNumbers(ridge=1e-12)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEXT = unit(randn(CLASSES, DIM, seed=1) + 1.5 * randn(DIM, seed=3))
CELL = unit(TEXT[:, None] + 0.5 * unit(randn(DOMAINS, DIM, seed=2)))
DEEP = randn(CLASSES, DOMAINS, WIDE, seed=5)  # what is read tells cells apart, as an MLP does
GRID = torch.ones(CLASSES, DOMAINS).nonzero().repeat_interleave(EACH, 0)
LABELS, COLUMNS = GRID.unbind(-1)


def pictures(seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Embeddings and what is read: the cell's, with noise that both share in part."""
    inner = randn(len(GRID), 8, seed=seed)
    z = unit(CELL[LABELS, COLUMNS] + noise * inner @ randn(8, DIM, seed=7) / 8**0.5 / DIM**0.5)
    read = DEEP[LABELS, COLUMNS] + noise * inner @ randn(8, WIDE, seed=8) / 8**0.5
    return z, read + noise * randn(len(GRID), WIDE, seed=100 + seed)


Z, READ = pictures(10, 0.4)
NEW, NEW_READ = pictures(11, 0.4)


def cells(*given: tuple[int, int]) -> Tensor:
    mask = torch.zeros(CLASSES, DOMAINS, dtype=torch.bool)
    for c, d in given:
        mask[c, d] = True
    return mask


def domain(*which: int) -> Tensor:
    return cells(*((c, d) for c in range(CLASSES) for d in which))


MASKS = {
    "one cell": cells((2, 1)),
    "two cells of a class": cells((2, 1), (2, 2)),
    "two classes": cells((2, 1), (4, 1)),
    "a whole domain": domain(1),
    "two domains": domain(0, 2),
}
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


def forgets(mask: Tensor) -> Tensor:
    return mask[LABELS, COLUMNS]


def weights(mask: Tensor) -> Tensor:
    """Each group weighs 1, in it each cell the same, in that each prototype."""
    weight = torch.zeros(len(GRID), dtype=torch.float64)
    for group in groups(mask):
        inside = group[LABELS, COLUMNS]
        weight[inside] += 1 / inside.sum()
    return weight


def targets(mask: Tensor, z: Tensor = Z) -> Tensor:
    """What each forgotten row is to become, by a loop over rows."""
    wanted = unit(z).clone()
    for i in forgets(mask).nonzero()[:, 0].tolist():
        total, count = torch.zeros(DIM, dtype=torch.float64), 0.0
        for c in range(CLASSES):
            share = 0.5 if mask[c, COLUMNS[i]] else 1.0
            total += share * unit(z)[(LABELS == c) & (COLUMNS == COLUMNS[i])].mean(0)
            count += share
        wanted[i] = total / count
    return wanted


def unseen() -> Tensor:
    """Where images vary most for what names see of it, by scipy's generalised eigenvectors."""
    names = torch.cat([TEXT, unit(unit(Z).mean(0))[None]])
    seen = names.mT @ names / len(names)
    seen += 0.01 * seen.diagonal().mean() * torch.eye(DIM, dtype=torch.float64)
    spread = np.cov(unit(Z).numpy().T, bias=True)
    return unit(torch.from_numpy(eigh(spread, seen.numpy())[1][:, -1]))


def lengthened(mask: Tensor) -> Tensor:
    """The targets, as long as an image along that direction."""
    means, along = targets(mask), unseen()
    part = means @ along
    full = (1 - (means - part[:, None] * along).square().sum(-1)).sqrt().copysign(part)
    return torch.where(forgets(mask)[:, None], means + (full - part)[:, None] * along, means)


def left_over(after: Tensor, before: Tensor, mask: Tensor) -> tuple[float, float]:
    asking = Asking.of(mask, LABELS, COLUMNS)
    told, was = (Answers.of(asking, z, TEXT).told() for z in (after, before))
    count = torch.full(mask.shape, EACH)
    evidence = Evidence(mask, count, mask.double(), mask.double(), told, was)
    found = figures(evidence)
    return float(found["left"]), float(found["over"])


@each_mask
@pytest.mark.parametrize("beta", [1.0, 1.3])
def test_is_scikit_learns_weighted_ridge(mask: Tensor, beta: float) -> None:
    numbers = NeutralNumbers(ridge=0.1, beta=beta)
    edit = neutral(Z, LABELS, COLUMNS, mask, source=READ, numbers=numbers)
    weight = weights(mask)
    scale = float((weight[:, None] * READ.square()).sum() / WIDE)
    oracle = Oracle(alpha=0.1 * scale, fit_intercept=False, solver="cholesky")
    wanted = beta * (unit(Z) - targets(mask))
    oracle.fit(READ.numpy(), wanted.numpy(), sample_weight=weight.numpy())
    expected = torch.from_numpy(np.ascontiguousarray(oracle.coef_.T))
    torch.testing.assert_close(edit.read @ edit.write.mT, expected, rtol=1e-7, atol=1e-9)


@each_mask
def test_prototypes_that_span_end_exactly_neutral_and_others_where_they_were(mask: Tensor) -> None:
    edit = neutral(Z, LABELS, COLUMNS, mask, source=READ, numbers=LIGHT)
    after = edit.apply(Z, READ)
    torch.testing.assert_close(after, targets(mask), rtol=0, atol=1e-6)
    # Control: the forgotten ones were somewhere else.
    gone = forgets(mask)
    assert (Z[gone] - targets(mask)[gone]).norm(dim=-1).min() > 0.1
    assert edit.rank <= min(DIM, int(gone.sum()))


@each_mask
def test_images_no_prototype_saw_end_neutral_and_kept_ones_hardly_move(mask: Tensor) -> None:
    numbers = choose_neutral(Z, LABELS, COLUMNS, TEXT, mask, source=READ)
    edit = neutral(Z, LABELS, COLUMNS, mask, source=READ, numbers=numbers)
    after = edit.apply(NEW, NEW_READ)
    gone = forgets(mask)
    left, _ = left_over(after, NEW, mask)
    assert left < 0.35
    moved = (after - NEW).norm(dim=-1)
    assert moved[~gone].mean() < 0.5 * moved[gone].mean()
    # Control: an unedited model has all of it left.
    assert left_over(NEW, NEW, mask) == pytest.approx((1, 0))


@each_mask
def test_where_names_are_given_what_is_forgotten_ends_as_long_as_an_image(mask: Tensor) -> None:
    edit = neutral(Z, LABELS, COLUMNS, mask, source=READ, classes=TEXT, numbers=LIGHT)
    after, gone = edit.apply(Z, READ)[forgets(mask)], targets(mask)[forgets(mask)]
    assert torch.allclose(after.norm(dim=-1), torch.ones(()).double(), atol=1e-6)
    torch.testing.assert_close(after, lengthened(mask)[forgets(mask)], rtol=0, atol=1e-6)
    # Of what is added names see next to nothing, so they score what the mean does.
    added = after - gone
    assert (added @ TEXT.mT).abs().max() < 0.05 * added.norm(dim=-1).min()
    # Control: without names it is the mean, which is shorter.
    plain = neutral(Z, LABELS, COLUMNS, mask, source=READ, numbers=LIGHT)
    assert plain.apply(Z, READ)[forgets(mask)].norm(dim=-1).max() < 0.95


def test_pictures_beside_images_are_copies_of_three_tenths_the_weight() -> None:
    mask, numbers = cells((2, 1)), NeutralNumbers(ridge=0.1, beta=1.2)
    rows = (torch.cat([Z, NEW]), LABELS.repeat(2), COLUMNS.repeat(2))
    read = torch.cat([READ, NEW_READ])
    beside = torch.tensor([False, True]).repeat_interleave(len(Z))
    edit = neutral(*rows, mask, source=read, beside=beside, numbers=numbers)
    weight = torch.cat([weights(mask), 0.3 * weights(mask)])
    wanted = torch.cat([unit(z) - targets(mask, z) for z in (Z, NEW)])
    scale = float((weight[:, None] * read.square()).sum() / WIDE)
    oracle = Oracle(alpha=0.1 * scale, fit_intercept=False, solver="cholesky")
    oracle.fit(read.numpy(), 1.2 * wanted.numpy(), sample_weight=weight.numpy())
    expected = torch.from_numpy(np.ascontiguousarray(oracle.coef_.T))
    torch.testing.assert_close(edit.read @ edit.write.mT, expected, rtol=1e-7, atol=1e-9)
    # Control: as images like the others they weigh as much.
    alike = neutral(*rows, mask, source=read, numbers=numbers)
    assert (alike.read @ alike.write.mT - expected).norm() > 1e-3 * expected.norm()


def test_numbers_are_chosen_by_images_alone_where_pictures_stand_beside_them() -> None:
    mask = domain(1)
    rows = (torch.cat([Z, NEW]), LABELS.repeat(2), COLUMNS.repeat(2))
    beside = torch.tensor([False, True]).repeat_interleave(len(Z))
    # Pictures of which nothing can be told would be hardly reached, and beta meet its bound.
    read = torch.cat([READ, randn(len(GRID), WIDE, seed=21)])
    chosen = choose_neutral(*rows, TEXT, mask, source=read, beside=beside)
    alone = choose_neutral(Z, LABELS, COLUMNS, TEXT, mask, source=READ)
    assert chosen.beta < 2 * alone.beta
    # Control: were they the images, and the images beside them, it would.
    with pytest.warns(UserWarning, match="beta is held"):
        assert choose_neutral(*rows, TEXT, mask, source=read, beside=~beside).beta == 3


@pytest.mark.parametrize("mask", [domain(1), cells((2, 1))], ids=["domain", "cell"])
def test_the_chosen_beta_makes_up_for_what_the_ridge_shrinks(mask: Tensor) -> None:
    names = (TEXT - TEXT.mean(0))[LABELS]
    gone, wanted = forgets(mask), ((unit(Z) - lengthened(mask)) * names).sum(-1)

    def falls_short(numbers: NeutralNumbers) -> float:
        """The slope of the shift on the wanted one, prototypes left out one by one in a loop."""
        shift = torch.zeros(len(GRID), dtype=torch.float64)
        weight = weights(mask)
        scale = (weight[:, None] * READ.square()).sum() / WIDE
        for i in gone.nonzero()[:, 0].tolist():
            rest = torch.arange(len(GRID)) != i
            moment = READ[rest].mT @ (weight[rest, None] * READ[rest])
            moment += numbers.ridge * scale * torch.eye(WIDE, dtype=torch.float64)
            q = numbers.beta * (unit(Z) - lengthened(mask))[rest]
            shift[i] = (
                READ[i]
                @ torch.linalg.solve(moment, READ[rest].mT @ (weight[rest, None] * q))
                @ names[i]
            )
        return float((shift[gone] @ wanted[gone]) / wanted[gone].square().sum())

    numbers = choose_neutral(Z, LABELS, COLUMNS, TEXT, mask, source=READ)
    assert falls_short(numbers) == pytest.approx(1, abs=1e-6)
    assert numbers.beta > 1
    # Control: without it the ridge's shrinkage shows.
    assert falls_short(NeutralNumbers(numbers.ridge, 1.0)) < 0.98


def test_pictures_are_left_out_by_their_start() -> None:
    # Pictures that share their start share its noise: one by one they would look better than new.
    start = randn(EACH, WIDE, seed=20).repeat(CLASSES * DOMAINS, 1)
    pixels = DEEP[LABELS, COLUMNS] + start
    mask = domain(1)
    by_start = choose_neutral(Z, LABELS, COLUMNS, TEXT, mask, source=pixels, pictures=True)
    shuffled = torch.randperm(len(GRID), generator=torch.Generator().manual_seed(0))
    again = choose_neutral(
        *(part[shuffled] for part in (Z, LABELS, COLUMNS)), TEXT, mask,
        source=pixels[shuffled], pictures=True,
    )  # fmt: skip
    assert by_start.beta > 1
    assert again.beta != by_start.beta  # the order within a cell says which start a picture had


def test_cells_shown_by_pictures_are_asked_as_if_their_whole_domain_went() -> None:
    def beta(mask: Tensor, pictures: bool) -> float:
        given = (Z, LABELS, COLUMNS, TEXT, mask)
        return choose_neutral(*given, source=READ, pictures=pictures).beta

    here, also_here, elsewhere = cells((2, 1)), cells((0, 1)), cells((2, 0))
    assert beta(here, pictures=True) == beta(also_here, pictures=True)
    # Controls: another domain tells something else, and of images each cell speaks for itself.
    assert beta(here, pictures=True) != beta(elsewhere, pictures=True)
    assert beta(here, pictures=False) != beta(also_here, pictures=False)


def test_a_beta_that_meets_its_bound_is_told() -> None:
    given = (Z, LABELS, COLUMNS, TEXT, domain(1))
    noise = randn(
        len(GRID), WIDE, seed=21
    )  # says nothing of the cells, so none left out is reached
    with pytest.warns(UserWarning, match="beta is held at 3"):
        assert choose_neutral(*given, source=noise).beta == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # control: what tells the cells apart needs less
        assert choose_neutral(*given, source=READ).beta < 3


def test_a_single_prototype_a_cell_leaves_nothing_out() -> None:
    first = torch.arange(0, len(GRID), EACH)
    given = (Z[first], LABELS[first], COLUMNS[first])
    with pytest.warns(UserWarning, match="single image or picture.*ridge 0.03 and beta 1"):
        chosen = choose_neutral(*given, TEXT, domain(1), source=READ[first])
    assert chosen == NeutralNumbers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # control: with several a cell nothing is said
        assert choose_neutral(Z, LABELS, COLUMNS, TEXT, domain(1), source=READ) != chosen


def test_a_batch_of_requests_is_the_loop() -> None:
    masks = torch.stack(list(MASKS.values()))
    batch = neutral(Z, LABELS, COLUMNS, masks, source=READ)
    for i, mask in enumerate(masks):
        one = neutral(Z, LABELS, COLUMNS, mask, source=READ)
        expected = one.read @ one.write.mT
        torch.testing.assert_close(batch[i].read @ batch[i].write.mT, expected)
    grid = neutral(Z, LABELS, COLUMNS, masks[:4].reshape(2, 2, CLASSES, DOMAINS), source=READ)
    torch.testing.assert_close(grid.read.flatten(0, 1) @ grid.write.flatten(0, 1).mT,
                               (batch.read @ batch.write.mT)[:4])  # fmt: skip


def test_scale_of_embeddings_and_order_of_prototypes_do_not_matter() -> None:
    plain = neutral(Z, LABELS, COLUMNS, domain(1), source=READ)
    shuffled = torch.randperm(len(GRID), generator=torch.Generator().manual_seed(0))
    scale = (0.1 + torch.rand(len(GRID), 1, dtype=torch.float64))[shuffled]
    again = neutral(
        scale * Z[shuffled], LABELS[shuffled], COLUMNS[shuffled], domain(1),
        source=scale * READ[shuffled],
    )  # fmt: skip
    torch.testing.assert_close(again.read @ again.write.mT, plain.read @ plain.write.mT)


def test_reads_embeddings_where_nothing_else_is_given() -> None:
    edit = neutral(Z, LABELS, COLUMNS, domain(1))
    assert edit.space == "embedding"
    assert edit.read.shape[-2] == DIM


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": cells()}, "at least one cell"),
        ({"mask": ~cells()}, "at least one cell"),
        ({"embeddings": torch.full_like(Z, torch.nan)}, "NaN"),
        ({"embeddings": 0 * Z}, "zero vector"),
        ({"labels": LABELS + 3}, "must name a cell"),
        ({"labels": LABELS.clamp(max=3)}, "no prototype is given for the cell"),
        ({"beside": LABELS == LABELS}, "stand beside images, and there is none"),
        ({"beside": LABELS == 3}, "no prototype is given for the cell"),
    ],
)
def test_refuses(change: dict[str, Tensor], said: str) -> None:
    given = {"embeddings": Z, "labels": LABELS, "mask": domain(1), "source": READ} | change
    with pytest.raises(ValueError, match=said):
        neutral(domains=COLUMNS, **given)


@pytest.mark.parametrize("numbers", [{"ridge": 0.0}, {"beta": 0.0}, {"beta": -1.0}])
def test_refuses_numbers(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        NeutralNumbers(**numbers)
