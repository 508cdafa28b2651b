"""Hull: the certificate, the best write, and what real embeddings say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import hull, leace, nullspace
from nullspace_unlearn.erasers.hull import nearest_kept
from nullspace_unlearn.linalg import covariance, nearest_in_hull, regularised, unit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(*shape: int, seed: int = 0) -> Tensor:
    """Unit prototypes that share a large part, as CLIP's do."""
    common = randn(shape[-1], seed=77)
    return unit(randn(*shape, seed=seed) + common)


def excess(edit: Edit | None, forget: Tensor, keep: Tensor, n: int = 3000) -> Tensor:
    """Forgotten score minus the best kept one, for random images, half of them of the class."""
    images = randn(n, forget.shape[-1], seed=5)
    images[: n // 2] += 5 * forget[torch.arange(n // 2) % len(forget)]
    edited = images if edit is None else edit.apply(images)
    return (edited @ forget.T).amax(-1) - (edited @ keep.T).amax(-1)


@pytest.mark.parametrize(
    "m, n, dim", [(1, 1, 12), (1, 2, 12), (1, 40, 12), (3, 40, 12), (6, 8, 12), (3, 9, 30)]
)
def test_no_image_scores_a_forgotten_name_above_the_best_kept_one(m: int, n: int, dim: int) -> None:
    forget, keep = names(m, dim), names(n, dim, seed=1)
    edit = hull(forget, keep)
    assert torch.allclose(edit.operator() @ edit.read, torch.zeros(dim, 1).double(), atol=1e-9)
    assert (excess(edit, forget, keep) < 1e-9).all()
    # The control: such images exist, and taking fewer names out does not do it.
    assert (excess(None, forget, keep) > 0.1).any()


def test_other_edits_break_the_certificate() -> None:
    forget, keep = names(3, 12), names(40, 12, seed=1)
    assert (excess(hull(forget, keep, depth=0.01).scale(0.8), forget, keep) > 1e-3).any()
    # Nullspace leaves the forgotten score at 0, so an image unlike every kept name finds it best.
    forget, keep = names(2, 12), names(5, 12, seed=1)
    left = keep @ nullspace(forget).operator()
    image = -torch.linalg.pinv(left).sum(-1)[None]
    for edit, wins in ((nullspace(forget), True), (hull(forget, keep), False)):
        edited = edit.apply(image)
        assert ((edited @ forget.T).max() > (edited @ keep.T).max()) == wins


def test_depth_leaves_no_tie_and_ends_at_the_mean() -> None:
    forget, keep = names(1, 12), names(40, 12, seed=1)
    tight, strict = (excess(hull(forget, keep, depth=d), forget, keep) for d in (0.0, 0.1))
    assert (tight < 1e-9).all() and (strict < -1e-6).all()
    images = randn(100, 12, seed=3)
    for depth, says_nothing in ((1.0, True), (0.9, False), (0.0, False)):
        edited = hull(forget, keep, depth=depth).apply(images)
        gap = (edited @ forget.T)[:, 0] - (edited @ keep.T).mean(-1)
        assert bool((gap.abs() < 1e-9).all()) == says_nothing


def test_at_depth_1_the_name_is_that_of_leace_without_its_bias() -> None:
    pytest.importorskip("concept_erasure")
    forget, keep = names(2, 12), names(40, 12, seed=1)
    theirs = leace(forget, keep, shrinkage=False).operator()
    left = (forget - keep.mean(0)) @ theirs.T
    assert left.norm() < 1e-6 * forget.norm()
    ours = hull(forget, keep).operator()
    assert ((forget - keep.mean(0)) @ ours.T).norm() < 1e-9


def test_no_other_write_changes_the_kept_scores_less() -> None:
    forget, keep, ridge = names(3, 12), names(40, 12, seed=1), 0.003
    edit = hull(forget, keep, ridge=ridge)
    metric = regularised(covariance(keep), ridge)
    assert torch.allclose(edit.write.mT @ edit.read, torch.eye(3).double())

    def change(write: Tensor) -> float:
        return float((write.mT @ metric @ write).trace())

    best = change(edit.write)
    across = torch.eye(12).double() - edit.read @ edit.read.mT
    for seed in range(50):
        other = edit.write + 0.1 * across @ randn(12, 3, seed=seed)
        assert torch.allclose(other.mT @ edit.read, torch.eye(3).double())
        assert change(other) > best
    assert change(edit.read) > best  # the write an orthogonal projection would take


def test_a_kept_name_that_is_the_forgotten_one_is_left_out() -> None:
    forget, keep = names(2, 12), names(40, 12, seed=1)
    with_synonym = torch.cat([forget[:1], keep, forget[1:] * 0.5])
    edit = hull(forget, with_synonym)
    assert edit.provenance["same_to_the_model"] == 2
    assert (excess(edit, forget, keep) < 1e-9).all()
    mask = torch.ones(42, dtype=torch.bool)
    mask[[0, -1]] = False
    assert hull(forget, with_synonym, keep_mask=mask).provenance["same_to_the_model"] == 0
    with pytest.raises(ValueError, match="nothing is kept"):
        hull(forget, forget)


def test_masked_names_are_not_kept_names() -> None:
    forget, keep = names(2, 12), names(40, 12, seed=1)
    keep[0] = unit(forget[0] + 0.2 * keep[0])
    mask = torch.arange(40) >= 10
    edit = hull(forget, keep, keep_mask=mask, depth=0.0)
    assert (excess(edit, forget, keep[mask]) < 1e-9).all()
    assert (excess(hull(forget, keep, depth=0.0), forget, keep[mask]) > 1e-3).any()
    everything = torch.ones(40, dtype=torch.bool)
    assert torch.allclose(
        hull(forget, keep, keep_mask=everything).operator(), hull(forget, keep).operator()
    )


@pytest.mark.parametrize("left_out", [1, 5, 30, 38, 39])
def test_a_mask_is_a_shorter_list(left_out: int) -> None:
    """The edit is that of the names that stay: no name left out has a say in the metric."""
    keep, forget = names(40, 12, seed=1), names(6, 2, 12)
    order = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(i))
                         for i in range(6)])  # fmt: skip
    mask = order >= left_out
    near = keep.clone()  # what stays may be far smaller than what is left out
    near[mask[0]] = near[mask[0]][0] + 1e-4 * (near[mask[0]] - near[mask[0]][0])
    for rows in (keep, near):
        batch = hull(forget, rows, keep_mask=mask, depth=0.01)
        for i in range(6):
            alone = hull(forget[i], rows[mask[i]], depth=0.01).operator()
            torch.testing.assert_close(batch[i].operator(), alone, atol=1e-7, rtol=1e-7)
            one = hull(forget[i], rows, keep_mask=mask[i], depth=0.01).operator()
            torch.testing.assert_close(one, alone, atol=1e-10, rtol=1e-10)
    # The control: nearest in the covariance of all names it is another point.
    own = nearest_kept(forget[0], keep, mask[0]).of(keep)
    root = torch.linalg.cholesky(regularised(covariance(keep), 0.1))
    of_all = nearest_in_hull(forget[0] @ root, keep @ root, mask[0, None]).of(keep)
    assert left_out == 39 or (own - of_all).norm() > 1e-3


@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_is_a_loop(masked: bool) -> None:
    forget = names(2, 3, 4, 12)
    forget[0, 1, 1:] = forget[0, 1, :1]  # of lower rank than the others
    keep = names(30, 12, seed=1)
    mask = randn(2, 3, 30, seed=2) > -1 if masked else None
    batch = hull(forget, keep, keep_mask=mask)
    for i in range(2):
        for j in range(3):
            one = hull(
                forget[i, j],
                keep,
                keep_mask=None if mask is None else mask[i, j],
            )
            assert torch.allclose(batch[i, j].operator(), one.operator(), atol=1e-10)


def test_a_ragged_batch_is_a_loop() -> None:
    keep, sizes = names(40, 12, seed=1), (1, 4, 2)
    rows = [names(m, 12, seed=10 + m) for m in sizes]
    batch = hull(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), keep)
    for i, forget in enumerate(rows):
        operator = hull(forget, keep).operator()
        assert torch.allclose(batch[i].operator(), operator, atol=1e-10)
        # The control: a row that is there is not passed over.
        if len(forget) > 1:
            assert not torch.allclose(hull(forget[:1], keep).operator(), operator, atol=1e-3)
    with pytest.raises(ValueError, match="remove nothing"):
        hull(torch.zeros(1, 12).double(), keep)


@given(
    st.integers(0, 1000),
    st.integers(1, 8),
    st.integers(1, 30),
    st.integers(1, 4),
    st.booleans(),
)
def test_it_holds_with_duplicates_few_names_and_half_precision(
    seed: int, m: int, n: int, copies: int, half: bool
) -> None:
    forget, keep = names(m, 10, seed=seed), names(n, 10, seed=seed + 1)
    if half:
        forget, keep = forget.half(), keep.half()
    edit = hull(forget.repeat(copies, 1), keep.repeat(copies, 1))
    assert edit.rank <= min(m, 9)
    assert torch.allclose(
        edit.operator(), hull(forget.double(), keep.double()).operator(), atol=1e-6
    )
    assert (excess(edit, forget.double(), keep.double(), n=300) < 1e-8).all()


@given(st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e3]))
def test_turning_and_scaling_the_space_turns_the_edit(seed: int, scale: float) -> None:
    forget, keep = names(2, 10, seed=seed), names(20, 10, seed=seed + 1)
    turn = torch.linalg.qr(randn(10, 10, seed=seed + 2)).Q
    plain = hull(forget, keep).operator()
    turned = hull(scale * forget @ turn, scale * keep @ turn).operator()
    assert torch.allclose(turned, turn.T @ plain @ turn, atol=1e-6)


def test_a_name_inside_the_hull_needs_no_edit() -> None:
    keep = names(40, 12, seed=1)
    inside = keep[:5].mean(0, keepdim=True)
    with pytest.raises(ValueError, match="remove nothing"):
        hull(inside, keep, depth=0.0)
    both = hull(torch.cat([inside, names(1, 12)]), keep, depth=0.0)
    assert both.rank == 1
    assert (excess(both, torch.cat([inside, names(1, 12)]), keep) < 1e-5).all()


def test_what_is_refused(unchecked) -> None:
    forget, keep = names(2, 12), names(40, 12, seed=1)
    for options in ({"depth": 1.1}, {"depth": -0.1}, {"ridge": 0.0}):
        with pytest.raises(ValueError, match="depth must lie in"):
            hull(forget, keep, **options)
    with pytest.raises(ValueError, match="remove everything"):
        hull(names(20, 12), keep)
    with pytest.raises(ValueError, match="nothing is kept"):
        hull(forget, keep[:0])
    with pytest.raises(ValueError, match="m >= 1"):
        hull(forget[:0], keep)
    with pytest.raises(ValueError, match="keep holds NaN"):
        hull(forget, keep / 0)
    with unchecked(), pytest.raises(ValueError, match="leading dimensions"):
        hull(forget, keep[:, :11])
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"\[3, 40, 12\]; what each request"),
    ):
        hull(names(3, 2, 12), keep.expand(3, -1, -1))


@pytest.mark.parametrize("count", [1, 10])
def test_on_real_embeddings(imagenet: tuple[Tensor, Tensor, Tensor], count: int) -> None:
    images, labels, text = imagenet

    def accuracy(features: Tensor, rows: Tensor) -> float:
        found = (features[rows] @ text.T).argmax(-1)
        return float((found == labels[rows]).double().mean())

    for seed in range(2):
        chosen = torch.randperm(len(text), generator=torch.Generator().manual_seed(seed))[:count]
        keep = torch.ones(len(text), dtype=torch.bool)
        keep[chosen] = False
        forgotten, kept = ~keep[labels], keep[labels]
        ours = hull(text[chosen], text[keep]).apply(images)
        theirs = nullspace(text[chosen]).apply(images)
        assert accuracy(images, forgotten) > 0
        assert accuracy(ours, forgotten) == 0
        before = accuracy(images, kept)
        assert before - accuracy(ours, kept) < (before - accuracy(theirs, kept)) / 2
