"""Avert: on the text side, where features are normalised after the edit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import avert, hull
from nullspace_unlearn.linalg import unit


def names(n: int, dim: int = 24, seed: int = 0) -> Tensor:
    """Unit prototypes with a large common part, as CLIP's are."""
    random = torch.Generator().manual_seed(seed)
    common = torch.zeros(dim, dtype=torch.float64)
    common[0] = 1.0
    return unit(common + 0.8 * unit(torch.randn(n, dim, generator=random, dtype=torch.float64)))


def images(rows: Tensor, each: int = 40) -> Tensor:
    random = torch.Generator().manual_seed(9)
    noise = torch.randn(len(rows), each, rows.shape[-1], generator=random, dtype=torch.float64)
    return rows[:, None] + 0.1 * noise


def on_text(edit: Edit, rows: Tensor) -> Tensor:
    """Oracle: the transposed edit of the definition, then normalised as a text tower does."""
    return unit(rows - (rows @ edit.write) @ edit.read.mT)


def accuracy(prototypes: Tensor, z: Tensor) -> Tensor:
    guess = (z @ prototypes.mT).argmax(-1)
    return (guess == torch.arange(len(prototypes))[:, None]).double().mean(-1)


def test_forgotten_names_never_win_and_the_others_stay() -> None:
    rows = names(12)
    z = images(rows)
    before = accuracy(rows, z)
    after = accuracy(on_text(avert(rows[:2], rows[2:]), rows), z)
    assert (before > 0.9).all()
    assert (after[:2] == 0).all() and (after[2:] > before[2:] - 0.05).all()
    # The control: what hull makes shorter, normalising makes long again.
    assert (accuracy(on_text(hull(rows[:2], rows[2:], depth=0.01), rows), z)[:2] > 0.3).any()


def test_forgotten_prototypes_land_on_the_far_side() -> None:
    rows = names(12)
    edit = avert(rows[:2], rows[2:], away=0.7)
    moved = rows[:2] - (rows[:2] @ edit.write) @ edit.read.mT
    far = -0.7 * rows[2:].mean(0)
    # Exactly: the displacement is removed, so both ends go to one point.
    end = far - (far @ edit.write) @ edit.read.mT
    torch.testing.assert_close(moved, end.expand(2, -1))
    assert not torch.allclose(rows[:2], far.expand(2, -1), atol=0.1)


def test_no_other_write_moves_the_kept_names_less() -> None:
    rows = names(30)
    edit = avert(rows[:2], rows[2:], ridge=1e-9)

    def moved(write: Tensor) -> Tensor:
        return (rows[2:] @ write @ edit.read.mT).square().sum()

    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        other = 0.01 * torch.randn(edit.write.shape, generator=random, dtype=torch.float64)
        other = other - edit.read @ (edit.read.mT @ other)  # keeps writeᵀ D = I
        assert moved(edit.write + other) > moved(edit.write)
    assert moved(edit.read) > moved(edit.write)  # the orthogonal one, as a control


def test_a_batch_is_the_loop() -> None:
    rows = names(12)
    forget = torch.stack([rows[:2], rows[2:4]])
    batch = avert(forget, rows[4:])
    for i in range(2):
        one = avert(forget[i], rows[4:])
        torch.testing.assert_close(
            batch.read[i] @ batch.write[i].mT, one.read @ one.write.mT, rtol=1e-10, atol=1e-12
        )


def test_what_is_refused(unchecked) -> None:
    rows = names(12)
    for options in ({"ridge": 0.0}, {"away": 0.0}):
        with pytest.raises(ValueError, match="ridge and away must be above 0"):
            avert(rows[:2], rows[2:], **options)
    with pytest.raises(ValueError, match="keep holds NaN"):
        avert(rows[:2], rows[2:] / 0 * 0)
    with pytest.raises(ValueError, match="span the whole space"):
        avert(names(40), rows)
    with unchecked():
        with pytest.raises(ValueError, match="dimensions"):
            avert(rows[:2], rows[2:, :5])
        with pytest.raises(ValueError, match="none of them empty"):
            avert(rows[:2], rows[:0])
