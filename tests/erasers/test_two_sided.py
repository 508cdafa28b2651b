"""Two-sided: hull's certificate, the displacement gone, the kept scores moved least."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nullspace_unlearn.certificate import certify
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import hull, leace
from nullspace_unlearn.erasers.two_sided import RIDGE, two_sided
from nullspace_unlearn.linalg import covariance, regularised, unit

DIM = 12


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(*shape: int, seed: int = 0, common: int = 77) -> Tensor:
    """Unit rows that share a large part, as CLIP's names and images do."""
    return unit(randn(*shape, seed=seed) + randn(shape[-1], seed=common))


def problem(m: int = 3, n: int = 40, k: int = 60, dim: int = DIM, seed: int = 0) -> list[Tensor]:
    """Forgotten and kept names, forgotten and kept images; the modalities lie apart."""
    return [
        rows(m, dim, seed=seed),
        rows(n, dim, seed=seed + 1),
        rows(m, dim, seed=seed + 2, common=78),
        rows(k, dim, seed=seed + 3, common=78),
    ]


def displacements(forget: Tensor, keep: Tensor, v: Tensor, images: Tensor, weight: float) -> Tensor:
    """The oracle: one at a time, the name's part by least squares on hull's displacements."""
    read = hull(forget, keep).read
    found = []
    for name, image in zip(forget, v, strict=True):
        part = read @ torch.linalg.lstsq(read, name[:, None]).solution[:, 0]
        found.append(image - sum(images) / len(images) + weight * part)
    return torch.stack(found)


def halves(given: list[Tensor], **options: float) -> tuple[Edit, Edit]:
    """The images' half of an edit, which comes first, and the names'."""
    edit = two_sided(*given, **options)
    rank = edit.rank - hull(*given[:2]).rank
    return Edit(edit.read[:, :rank], edit.write[:, :rank]), hull(*given[:2])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name_weight", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("m, n, k", [(1, 40, 60), (3, 40, 60), (3, 1, 1), (4, 5, 6)])
def test_the_certificate_of_hull_holds(
    m: int, n: int, k: int, name_weight: float, share: float
) -> None:
    given = problem(m, n, k)
    edit = two_sided(*given, share=share, name_weight=name_weight)
    assert certify(edit.operator(), None, given[0], given[1]).violation.max() < 1e-9
    assert edit.rank == 2 * m
    # The control: the same two halves the other way round, where the hull is thin.
    if share and n == 5:
        images, names = halves(given, share=share, name_weight=name_weight)
        assert torch.allclose((images @ names).operator(), edit.operator())
        wrong = certify((names @ images).operator(), None, given[0], given[1])
        assert not wrong.holds.any()


@pytest.mark.parametrize("name_weight", [0.0, 0.6])
def test_the_displacement_is_gone(name_weight: float) -> None:
    given = problem()
    apart = displacements(*given, weight=name_weight)
    full, half = (two_sided(*given, share=s, name_weight=name_weight) for s in (1.0, 0.5))
    assert full.apply(apart).abs().max() < 1e-12
    # The controls: hull alone leaves it, half the share leaves half of what hull would.
    names = hull(*given[:2])
    assert names.apply(apart).norm(dim=-1).min() > 0.1
    assert torch.allclose(half.apply(apart), names.apply(apart) / 2)


def test_a_forgotten_visual_prototype_becomes_the_mean_of_the_kept_ones() -> None:
    given = problem()
    mask = torch.arange(60) >= 20
    for kept, options in ((slice(None), {}), (mask, {"visual_keep_mask": mask})):
        edit = two_sided(*given, name_weight=0.0, **options)
        moved, mean = edit.apply(given[2]), edit.apply(given[3][kept].mean(0, keepdim=True))
        assert torch.allclose(moved, mean.expand_as(moved), atol=1e-12)
        other = two_sided(*given, **options).apply(given[2])
        assert not torch.allclose(other, mean.expand_as(moved), atol=1e-2)


def test_no_other_edit_changes_the_kept_scores_less() -> None:
    given = problem()
    names, images = given[1], given[3]
    left = regularised(images.T @ images / len(images), RIDGE)
    right = regularised(covariance(names), 0.003)  # hull's metric

    def change(operator: Tensor) -> float:
        moved = torch.eye(DIM).double() - operator
        return float((left @ moved @ right @ moved.T).trace())

    apart = displacements(*given, weight=0.6)
    of_names = hull(*given[:2]).read
    ours = two_sided(*given).operator()
    before = torch.linalg.qr(apart.T).Q
    for seed in range(50):
        # Any other operator that kills both displacements differs from ours by such a matrix.
        across = randn(DIM, DIM, seed=seed)
        across = across - before @ (before.T @ across)
        other = ours + 0.05 * (across - across @ of_names @ of_names.T)
        assert (apart @ other).abs().max() < 1e-12 and (other @ of_names).abs().max() < 1e-12
        assert change(other) > change(ours)
    plain = (Edit(before, before) @ Edit(of_names, of_names)).operator()  # orthogonal projections
    assert change(plain) > change(ours)


def test_with_a_covariance_the_images_half_is_leace(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("concept_erasure")
    forget, keep, v, images = problem(m=1)
    images = images - images.mean(0)  # about the origin the moment is the covariance
    by_package = leace(v, images, side="visual", shrinkage=False) @ hull(forget, keep)
    with_ridge = two_sided(forget, keep, v, images, name_weight=0.0)
    assert not torch.allclose(with_ridge.operator(), by_package.operator(), atol=1e-5)
    monkeypatch.setattr(import_module(two_sided.__module__), "RIDGE", 1e-12)
    ours = two_sided(forget, keep, v, images, name_weight=0.0)
    assert torch.allclose(ours.operator(), by_package.operator(), atol=1e-8)


@pytest.mark.parametrize("own", [True, False], ids=["images each", "images shared"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_is_a_loop(own: bool, masked: bool) -> None:
    batch = (2, 3)
    forget, v = rows(*batch, 4, DIM), rows(*batch, 4, DIM, seed=2, common=78)
    forget[0, 1, 1:], v[0, 1, 1:] = forget[0, 1, :1], v[0, 1, :1]  # of lower rank than the others
    lead = batch if own else ()
    keep, images = rows(30, DIM, seed=1), rows(*lead, 50, DIM, seed=3, common=78)
    masks = (randn(*batch, 30, seed=4) > -1, randn(*batch, 50, seed=5) > -1)
    keep_mask, visual_keep_mask = masks if masked else (None, None)
    together = two_sided(
        forget, keep, v, images, keep_mask=keep_mask, visual_keep_mask=visual_keep_mask
    )
    for i in range(2):
        for j in range(3):
            one = two_sided(
                forget[i, j],
                keep,
                v[i, j],
                images[i, j] if own else images,
                keep_mask=None if keep_mask is None else keep_mask[i, j],
                visual_keep_mask=None if visual_keep_mask is None else visual_keep_mask[i, j],
            )
            assert torch.allclose(together[i, j].operator(), one.operator(), atol=1e-10)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 30), st.booleans())
def test_it_holds_with_duplicates_few_images_and_half_precision(
    seed: int, m: int, k: int, half: bool
) -> None:
    given = problem(m, 20, k, dim=10, seed=seed)
    if half:
        given = [one.half() for one in given]
    edit = two_sided(*(one.repeat(2, 1) for one in given))
    assert edit.rank == 2 * m and edit.read.dtype == torch.float64
    wide = [one.double() for one in given]
    assert torch.allclose(edit.operator(), two_sided(*wide).operator(), atol=1e-6)
    assert edit.apply(displacements(*wide, weight=0.6)).abs().max() < 1e-9
    assert certify(edit.operator(), None, wide[0], wide[1]).holds.all()


@given(st.integers(0, 1000))
def test_turning_the_space_turns_the_edit(seed: int) -> None:
    given = problem(2, seed=seed)
    turn = torch.linalg.qr(randn(DIM, DIM, seed=seed + 9)).Q
    turned = two_sided(*(one @ turn for one in given)).operator()
    assert torch.allclose(turned, turn.T @ two_sided(*given).operator() @ turn, atol=1e-6)


def test_share_zero_is_hull() -> None:
    given = problem()
    names = hull(*given[:2]).operator()
    assert torch.equal(two_sided(*given, share=0.0).operator(), names)
    assert not torch.allclose(two_sided(*given, share=0.1).operator(), names, atol=1e-3)


def test_what_is_refused(unchecked) -> None:
    forget, keep, v, images = problem()
    for options in ({"share": 1.1}, {"share": float("nan")}, {"name_weight": -0.1}):
        with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
            two_sided(forget, keep, v, images, **options)
    with pytest.raises(ValueError, match="no visual prototype is kept"):
        two_sided(forget, keep, v, images[:0])
    with pytest.raises(ValueError, match="no visual prototype is kept"):
        two_sided(forget, keep, v, images, visual_keep_mask=torch.zeros(60, dtype=torch.bool))
    with pytest.raises(ValueError, match="is also a kept one"):
        two_sided(forget, keep, v, torch.cat([images, v[1:2]]))
    mean = images.mean(0, keepdim=True)
    with pytest.raises(ValueError, match="mean of the kept ones"):
        two_sided(forget[:1], keep, mean, images)
    two_sided(forget[:1], keep, mean + 0.1 * v[:1], images)
    # 6 displacements of names and 6 of images; with 5 and 5 something is left.
    with pytest.raises(ValueError, match="remove everything"):
        two_sided(*problem(6))
    assert two_sided(*problem(5)).rank == 10
    with pytest.raises(ValueError, match="m >= 1"):
        two_sided(forget[:0], keep, v[:0], images)
    for place, name in enumerate(("forget", "keep", "visual_forget", "visual_keep")):
        spoilt = problem()
        spoilt[place][0, 0] = torch.nan
        with pytest.raises(ValueError, match=f"^{name} holds NaN"):
            two_sided(*spoilt)
    with unchecked():
        with pytest.raises(ValueError, match="one row for each of forget"):
            two_sided(forget, keep, v[:2], images)
        with pytest.raises(ValueError, match="visual_keep must be"):
            two_sided(forget, keep, v, images[:, :11])


def test_on_real_embeddings(imagenet: tuple[Tensor, Tensor, Tensor]) -> None:
    features, labels, text = imagenet
    features = unit(features[labels.argsort(stable=True)]).reshape(len(text), 4, -1)
    seen, shot, test = unit(features[:, :2].mean(1)), features[:, 2], features[:, 3]
    chosen = torch.randperm(len(text), generator=torch.Generator().manual_seed(0))[:50]
    keep = torch.ones(len(text), dtype=torch.bool)
    keep[chosen] = False
    everyone = torch.arange(len(text))

    def measure(edit: Edit) -> tuple[float, float, float]:
        """Named right: forgotten and kept; forgotten images whose neighbour is of their class."""
        named = (edit.apply(test) @ text.T).argmax(-1) == everyone
        alike = unit(edit.apply(test[chosen])) @ unit(edit.apply(shot)).T
        found = [named[~keep], named[keep], alike.argmax(-1) == chosen]
        return tuple(float(right.double().mean()) for right in found)

    gone, kept, neighbours = measure(hull(text[chosen], text[keep]))
    ours = measure(two_sided(text[chosen], text[keep], seen[chosen], seen[keep]))
    assert gone == 0 == ours[0]
    assert neighbours > 0.2 and ours[2] < 0.8 * neighbours
    assert ours[1] > kept - 0.06
