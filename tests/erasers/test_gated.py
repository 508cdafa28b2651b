"""Gated: cells of the class x domain grid, on prototypes and images made of both."""

from __future__ import annotations

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import gated, nullspace
from nullspace_unlearn.linalg import unit

CLASSES, DOMAINS, DIM = 6, 4, 60


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASS, DOMAIN, COMMON = randn(CLASSES, DIM, seed=1), randn(DOMAINS, DIM, seed=2), randn(DIM, seed=3)
TEXT = unit(CLASS + 2 * COMMON)
# What a class has in one domain only: without it no linear read tells a whole domain's classes.
OWN = 0.7 * randn(CLASSES, DOMAINS, DIM, seed=6)
SUM = CLASS[:, None] + DOMAIN + 2 * COMMON + OWN
CELLS = unit(SUM)


def images(n: int = 40, noise: float = 0.5) -> Tensor:
    """Pseudo-images `[classes, domains, n, dim]`: the cell's directions and noise."""
    return unit(SUM[:, :, None] + noise * randn(CLASSES, DOMAINS, n, DIM, seed=4))


def cell(*cells: tuple[int, int]) -> Tensor:
    mask = torch.zeros(CLASSES, DOMAINS, dtype=torch.bool)
    for c, d in cells:
        mask[c, d] = True
    return mask


def accuracy(edit: Edit | None) -> Tensor:
    """`[classes, domains]` zero-shot accuracy."""
    z = images() if edit is None else edit.apply(images())
    return ((z @ TEXT.T).argmax(-1) == torch.arange(CLASSES)[:, None, None]).double().mean(-1)


MASKS = {
    "one cell": cell((2, 1)),
    "a class in two domains": cell((2, 1), (2, 3)),
    "two classes": cell((2, 1), (4, 0)),
    "a whole domain": cell(*((c, 1) for c in range(CLASSES))),
    "a class everywhere": cell(*((2, d) for d in range(DOMAINS))),
}


# These images are as far from each other as the prototypes are, so the ridge is light.
@pytest.mark.parametrize("name", MASKS)
def test_the_forgotten_cells_fall_and_the_others_stand(name: str) -> None:
    mask = MASKS[name]
    before, after = accuracy(None), accuracy(gated(CELLS, TEXT, mask, ridge=1.0))
    assert (before > 0.9).all()  # the control: untouched, everything is recognised
    if name == "a whole domain":  # every class falls there, so some may stay ahead of the others
        assert after[mask].mean() < 0.5 and after[~mask].mean() > 0.8
    else:
        assert (after[mask] < 0.2).all() and (after[~mask] > 0.8).all()


def test_removing_the_class_also_takes_it_from_kept_domains() -> None:
    mask = MASKS["one cell"]
    theirs, ours = accuracy(nullspace(CELLS[mask])), accuracy(gated(CELLS, TEXT, mask, ridge=1.0))
    same_class = ~mask[2]
    assert theirs[2][same_class].mean() < 0.8 < 0.95 < ours[2][same_class].mean()


def test_the_paradigms_are_requests_of_one_kind() -> None:
    ranks = {name: gated(CELLS, TEXT, mask).rank for name, mask in MASKS.items()}
    assert ranks["one cell"] == ranks["a class everywhere"] == 1
    assert ranks["two classes"] == 2
    assert ranks["a whole domain"] == CLASSES


def test_only_the_forgotten_class_moves_against_the_others() -> None:
    write = gated(CELLS, TEXT, MASKS["one cell"]).write[:, 0]
    moved = TEXT @ write
    others = moved[torch.arange(CLASSES) != 2]
    assert torch.allclose(moved[2] - others.mean(), torch.ones(()).double())
    assert (others - others.mean()).abs().max() < 0.05
    # The control: the straight way to move that class drags others along.
    apart = TEXT[2] - (TEXT.sum(0) - TEXT[2]) / (CLASSES - 1)
    straight = TEXT @ (apart / apart.square().sum())
    others = straight[torch.arange(CLASSES) != 2]
    assert (others - others.mean()).abs().max() > 0.05


def objective(gate: Tensor, mask: Tensor, class_: int, ridge: float, other: float) -> Tensor:
    """What the gate minimises, written out: a rise of the score on another class is what costs."""
    fall = CELLS @ gate
    own = ((fall[class_] - mask[class_].double()) ** 2).sum()
    rises = fall[torch.arange(CLASSES) != class_].clamp(max=0).square().sum()
    total = DOMAINS * (1 + (CLASSES - 1) * other)
    scale = CELLS.square().sum(-1).mean() / DIM
    return own + other * rises + ridge * total * scale * gate.square().sum()


@pytest.mark.parametrize("ridge, other", [(10.0, 0.05), (0.1, 0.05), (0.1, 1.0)])
@pytest.mark.parametrize("name", ["one cell", "a class in two domains", "a class everywhere"])
def test_the_gate_is_the_asymmetric_ridge(name: str, ridge: float, other: float) -> None:
    mask = MASKS[name]

    def value_and_slope(x):
        gate = torch.tensor(x, requires_grad=True)
        value = objective(gate, mask, 2, ridge, other)
        value.backward()
        return float(value.detach()), gate.grad.numpy()

    solved = scipy.optimize.minimize(
        value_and_slope, torch.zeros(DIM).double().numpy(), jac=True, options={"gtol": 1e-12}
    )
    read = gated(CELLS, TEXT, mask, ridge=ridge, other=other).read[:, 0]
    assert torch.allclose(unit(read), unit(torch.from_numpy(solved.x)), atol=1e-5)


def test_other_classes_hardly_rise() -> None:
    def rise(mask: Tensor, other: float) -> float:
        """The largest rise of a forgotten class on another's kept cell, of its own fall."""
        edit, worst = gated(CELLS, TEXT, mask, ridge=1.0, other=other), 0.0
        for column, class_ in enumerate(mask.any(-1).nonzero()[:, 0].tolist()):
            fall = CELLS @ edit.read[:, column]
            kept = ~mask & (torch.arange(CLASSES) != class_)[:, None]
            worst = max(worst, float(-fall[kept].min() / fall[class_][mask[class_]].mean()))
        return worst

    assert max(rise(mask, 0.05) for mask in MASKS.values()) < 0.25
    # The control: what hardly counts rises more.
    assert rise(MASKS["one cell"], 1e-6) > rise(MASKS["one cell"], 0.05)


def test_gain_scales_the_read() -> None:
    one, two = (gated(CELLS, TEXT, MASKS["two classes"], gain=g) for g in (1.0, 2.0))
    assert torch.allclose(2 * one.read, two.read) and torch.equal(one.write, two.write)


def test_a_batch_is_a_loop() -> None:
    masks = torch.stack(list(MASKS.values())[:4]).reshape(2, 2, CLASSES, DOMAINS)
    batch = gated(CELLS, TEXT, masks)
    assert batch.batch_shape == (2, 2) and batch.rank == CLASSES
    for i in range(2):
        for j in range(2):
            one = gated(CELLS, TEXT, masks[i, j])
            assert torch.allclose(batch[i, j].operator(), one.operator(), atol=1e-10)


@given(st.integers(1, 5), st.sampled_from(list(MASKS)), st.integers(0, 100))
def test_samples_that_repeat_or_change_places_change_nothing(
    copies: int, name: str, seed: int
) -> None:
    mask = MASKS[name]
    single = gated(CELLS, TEXT, mask).operator()
    repeated = CELLS[:, :, None].expand(-1, -1, copies, -1)
    assert torch.allclose(gated(repeated, TEXT, mask).operator(), single, atol=1e-8)
    by_prompt = repeated[:, :, None].expand(-1, -1, 2, -1, -1)  # a second sample dimension
    assert torch.allclose(gated(by_prompt, TEXT, mask).operator(), single, atol=1e-8)
    samples = unit(repeated + 0.02 * randn(*repeated.shape, seed=seed))
    order = torch.randperm(copies, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(
        gated(samples, TEXT, mask).operator(),
        gated(samples[:, :, order], TEXT, mask).operator(),
        atol=1e-8,
    )


def test_noisy_samples_serve_as_prototypes() -> None:
    samples = images(n=20, noise=1.0)
    after = accuracy(gated(samples, TEXT, MASKS["one cell"], ridge=1.0))
    assert after[2, 1] < 0.2 and (after[~MASKS["one cell"]] > 0.8).all()


def test_two_classes_are_enough_and_half_precision_is_widened() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    two = gated(CELLS[:2, :2].half(), TEXT[:2].half(), mask)
    assert two.read.dtype == torch.float64 and two.read.isfinite().all()
    wide = gated(CELLS[:2, :2].half().double(), TEXT[:2].half().double(), mask)
    assert torch.equal(two.read, wide.read)


def test_more_classes_than_dimensions() -> None:
    text = unit(randn(CLASSES, 4))
    cells = unit(text[:, None] + 0.1 * randn(DOMAINS, 4, seed=1))
    edit = gated(cells, text, MASKS["one cell"])
    assert edit.dim == 4 and edit.write.isfinite().all()
    scores = edit.apply(cells[2]) @ text.T - cells[2] @ text.T
    assert scores[1].argmin() == 2  # class 2 falls the most


def test_a_class_that_prompts_misname_needs_no_fall() -> None:
    cells = CELLS.clone()
    cells[4, 0] = CELLS[1, 0]  # to the prompts, class 4 in domain 0 is class 1
    edit = gated(cells, TEXT, MASKS["two classes"])
    assert edit.read[:, 0].any() and edit.read[:, 1].eq(0).all()
    assert gated(CELLS, TEXT, MASKS["two classes"]).read[:, 1].any()  # the control


def test_what_is_refused(unchecked) -> None:
    one = MASKS["one cell"]
    for options in ({"ridge": 0.0}, {"other": 0.0}, {"other": 1.5}, {"gain": 0.0}):
        with pytest.raises(ValueError, match="ridge and gain must be above 0"):
            gated(CELLS, TEXT, one, **options)
    for mask in (torch.zeros_like(one), torch.ones_like(one)):
        with pytest.raises(ValueError, match="forget at least one cell and keep at least one"):
            gated(CELLS, TEXT, mask)
        with pytest.raises(ValueError, match="forget at least one cell and keep at least one"):
            gated(CELLS, TEXT, torch.stack([one, mask]))
    with pytest.raises(ValueError, match="at least 2 classes"):
        gated(CELLS[:1], TEXT[:1], one[2:3])
    with pytest.raises(ValueError, match="cells holds NaN"):
        gated(CELLS / 0, TEXT, one)
    with pytest.raises(ValueError, match="every prompt already scores another class higher"):
        gated(CELLS, TEXT.roll(1, 0), one)
    with unchecked():
        for cells, text, mask in (
            (CELLS[..., :5], TEXT, one),
            (CELLS, TEXT[:3], one),
            (CELLS, TEXT, one[:, :2]),
            (CELLS[0], TEXT, one),
        ):
            with pytest.raises(ValueError, match="expected cells"):
                gated(cells, text, mask)
