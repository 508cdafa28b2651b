"""Level: names that say nothing of their own images, at the least change to the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import hull, level
from nullspace_unlearn.linalg import covariance, regularised, unit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(*shape: int, seed: int = 0) -> Tensor:
    """Unit prototypes that share a large part, as CLIP's do."""
    return unit(randn(*shape, seed=seed) + randn(shape[-1], seed=77))


def lead(edit: Edit | None, images: Tensor, forget: Tensor, keep: Tensor) -> Tensor:
    """By how much each forgotten name leads the mean kept one."""
    z = images if edit is None else edit.apply(images)
    return z @ forget.mT - (z @ keep.mT).mean(-1, keepdim=True)


@pytest.mark.parametrize("m, n, dim", [(1, 40, 12), (3, 40, 12), (6, 8, 12), (20, 30, 12)])
def test_more_of_what_sets_a_name_apart_leads_no_further(m: int, n: int, dim: int) -> None:
    forget, keep = names(m, dim), names(n, dim, seed=1)
    edit, images = level(forget, keep), randn(50, dim, seed=2)
    apart = forget - keep.mean(0)
    for c in range(m):
        before, after = (
            lead(edit, images + more * apart[c], forget, keep)[:, c] for more in (0.0, 3.0)
        )
        torch.testing.assert_close(before, after)
        untouched = lead(None, images + 3 * apart[c], forget, keep)[:, c]
        assert (untouched > lead(None, images, forget, keep)[:, c] + 0.1).all()  # control


def test_no_other_edit_that_does_it_changes_kept_scores_less() -> None:
    forget, keep = names(3, 12), names(40, 12, seed=1)
    ridges = {"read_ridge": 2.0, "write_ridge": 0.01}
    change = level(forget, keep, near=0.0, **ridges)
    apart = forget - keep.mean(0)
    images, text = (regularised(covariance(keep), ridges[f"{k}_ridge"]) for k in ("read", "write"))

    def cost(e: Tensor) -> float:
        return float((images @ e @ text @ e.T).trace())

    best = change.read @ change.write.T
    asked = ((apart @ best) * apart).sum(-1)
    torch.testing.assert_close(asked, apart.square().sum(-1))
    for seed in range(30):
        other = randn(12, 12, seed=seed)
        # What the other one asks of the names is taken back, so that it does the same.
        outer = torch.stack([torch.outer(a, a).flatten() for a in apart])
        other = other.flatten() - torch.linalg.pinv(outer) @ (outer @ other.flatten())
        other = best + 0.1 * other.reshape(12, 12)
        torch.testing.assert_close(((apart @ other) * apart).sum(-1), asked)
        assert cost(other) > best.new_tensor(cost(best))
    one_by_one = sum(
        level(f[None], keep, near=0.0, **ridges).operator() - torch.eye(12).double() for f in forget
    )
    together = ((apart @ -one_by_one) * apart).sum(-1)
    assert not torch.allclose(together, asked, rtol=1e-2)  # control: they push one another down


def test_near_names_are_spared() -> None:
    keep = names(60, 12, seed=1)
    forget = unit(keep[:1] + 0.3 * names(1, 12, seed=3))
    apart = forget - keep.mean(0)

    def moved(near: float) -> Tensor:
        edit = level(forget, keep, near=near)
        moves = (apart @ (edit.operator() - torch.eye(12).double()) @ keep.T)[0]
        return (moves - moves.mean())[0].abs()

    assert moved(0.6) < moved(0.3) < moved(0.0)


@pytest.mark.parametrize("own", [True, False], ids=["keep each", "keep shared"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_is_a_loop(own: bool, masked: bool) -> None:
    forget = names(2, 3, 4, 12)
    forget[0, 1, 1] = forget[0, 1, 0]  # the same name twice
    forget[0, 2, 2:] = 0  # a shorter request
    keep = names(2, 3, 30, 12, seed=1) if own else names(30, 12, seed=1)
    mask = randn(2, 3, 30, seed=2) > -1 if masked else None
    batch = level(forget, keep, keep_mask=mask)
    for i in range(2):
        for j in range(3):
            rows = forget[i, j]
            one = level(
                rows[rows.norm(dim=-1) > 0],
                keep[i, j] if own else keep,
                keep_mask=None if mask is None else mask[i, j],
            )
            torch.testing.assert_close(batch[i, j].operator(), one.operator())


def test_turning_and_scaling_the_space_turns_the_edit() -> None:
    forget, keep = names(2, 10), names(20, 10, seed=1)
    turn = torch.linalg.qr(randn(10, 10, seed=2)).Q
    plain = level(forget, keep).operator()
    for scale in (1e-3, 1.0, 1e3):
        turned = level(scale * forget @ turn, scale * keep @ turn).operator()
        assert torch.allclose(turned, turn.T @ plain @ turn, atol=1e-6)


def test_what_is_refused() -> None:
    forget, keep = names(2, 12), names(40, 12, seed=1)
    for options in ({"near": 1.0}, {"near": -0.1}, {"read_ridge": 0.0}, {"write_ridge": 0.0}):
        with pytest.raises(ValueError, match="read_ridge and write_ridge"):
            level(forget, keep, **options)
    with pytest.raises(ValueError, match="remove nothing"):
        level(keep.mean(0, keepdim=True), keep)
    with pytest.raises(ValueError, match="nothing is kept"):
        level(forget, keep[:0])


def test_on_real_embeddings(imagenet: tuple[Tensor, Tensor, Tensor]) -> None:
    images, labels, text = imagenet
    chosen = torch.randperm(len(text), generator=torch.Generator().manual_seed(0))[:50]
    keep = torch.ones(len(text), dtype=torch.bool)
    keep[chosen] = False
    lost = {}
    for name, eraser in (("level", level), ("hull", hull)):
        found = (eraser(text[chosen], text[keep]).apply(images) @ text.T).argmax(-1)
        right = found == labels
        assert right[~keep[labels]].double().mean() < 0.01
        before = (images @ text.T).argmax(-1) == labels
        lost[name] = float((before.double() - right.double())[keep[labels]].mean())
    assert (((images @ text.T).argmax(-1) == labels)[~keep[labels]]).double().mean() > 0.4
    assert lost["level"] < 0.7 * lost["hull"]
