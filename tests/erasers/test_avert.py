"""Avert: on the text side, where features are normalised after the edit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import avert, hull
from nullspace_unlearn.erasers.avert import Numbers
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


def dense(forget: Tensor, keep: Tensor, words: Tensor | None = None) -> Tensor:
    """Oracle: `E` of the definition, where the derivative vanishes."""
    dim, mean = keep.shape[-1], keep.mean(0)
    apart = forget - mean
    goal = mean - apart * (apart @ mean)[:, None] / (apart @ apart.T).diagonal()[:, None]
    goal = Numbers.away * goal / goal.norm(dim=-1, keepdim=True)
    spread = torch.cov(keep.T, correction=0).trace() / dim
    moment = keep.T @ keep / len(keep) + Numbers.ridge * spread * torch.eye(dim).double()
    own, wanted = forget.T @ forget, forget.T @ (forget + goal)
    for c in range(len(forget)) if words is not None else ():
        told = forget[c] + words[c]
        own = own + told.T @ told / len(told)
        wanted = wanted + told.T @ (told + goal[c]) / len(told)
    return torch.linalg.solve(moment + own, wanted)


def said(edit: Edit) -> Tensor:
    return edit.write @ edit.read.mT


def wordings(m: int, k: int = 9, dim: int = 24) -> Tensor:
    """Moves of every name in few directions, as templates make them."""
    random = torch.Generator().manual_seed(3)
    few = torch.randn(4, dim, generator=random, dtype=torch.float64) / dim**0.5
    return 0.5 * torch.randn(m, k, 4, generator=random, dtype=torch.float64) @ few


def test_it_is_the_regression_that_it_says() -> None:
    rows, moves = names(12), wordings(2)
    torch.testing.assert_close(said(avert(rows[:2], rows[2:])), dense(rows[:2], rows[2:]))
    # Directions that are hardly answered are left.
    wide = said(avert(rows[:2], rows[2:], wordings=moves))
    expected = dense(rows[:2], rows[2:], moves)
    assert (wide - expected).norm() < 0.02 * expected.norm()
    assert (wide - dense(rows[:2], rows[2:])).norm() > 0.2 * expected.norm()  # control


def test_where_a_name_is_sent_more_of_the_class_is_no_more_of_the_name() -> None:
    rows = names(30, dim=64)
    forget, keep = rows[:1], rows[1:]
    moved = on_text(avert(forget, keep), rows)[0]
    apart = unit(forget[0] - keep.mean(0))
    assert abs(moved @ apart) < 0.05
    assert unit(-keep.mean(0)) @ apart > 0.1  # the control: what they have in common tells
    assert (moved @ keep.mT < 0).all()


def test_it_does_not_come_back_in_other_words() -> None:
    rows, moves = names(12), wordings(2)
    z = images(rows)[:2].flatten(0, 1)
    told = (rows[:2, None] + moves).flatten(0, 1)

    def wins(edit: Edit) -> float:
        best = (z @ on_text(edit, rows[2:]).mT).amax(-1, keepdim=True)
        return float((z @ on_text(edit, unit(told)).mT > best).double().mean(0).amax())

    wide, plain = avert(rows[:2], rows[2:], wordings=moves), avert(rows[:2], rows[2:])
    assert wins(wide) < 0.02 < 0.1 < wins(plain)
    assert wide.provenance["in_other_words"]["directions"] == wide.rank > plain.rank == 2
    after = accuracy(on_text(wide, rows), images(rows))
    assert (after[2:] > accuracy(rows, images(rows))[2:] - 0.05).all()


def test_of_more_names_than_dimensions_few_directions_pay() -> None:
    rows, moves = names(200, dim=64), wordings(1, dim=64)
    edit = avert(rows[:1], rows[1:], wordings=moves)
    told = edit.provenance["in_other_words"]
    assert edit.rank == told["directions"] == 2 < told["of"]


def test_a_batch_is_the_loop() -> None:
    rows, moves = names(12), wordings(4).unflatten(0, (2, 2))
    forget = torch.stack([rows[:2], rows[2:4]])
    for words in (None, moves):
        batch = avert(forget, rows[4:], wordings=words)
        for i in range(2):
            one = avert(forget[i], rows[4:], wordings=None if words is None else words[i])
            torch.testing.assert_close(said(batch)[i], said(one), rtol=1e-9, atol=1e-11)


def test_what_is_refused(unchecked) -> None:
    rows = names(12)
    for options in ({"ridge": 0.0}, {"away": 0.0}):
        with pytest.raises(ValueError, match="ridge and away must be above 0"):
            avert(rows[:2], rows[2:], **options)
    with pytest.raises(ValueError, match="keep holds NaN"):
        avert(rows[:2], rows[2:] / 0 * 0)
    with pytest.raises(ValueError, match="nothing in common"):
        avert(rows[:2], torch.cat([rows[2:], -rows[2:]]))
    with unchecked():
        with pytest.raises(ValueError, match="dimensions"):
            avert(rows[:2], rows[2:, :5])
        with pytest.raises(ValueError, match="none of them empty"):
            avert(rows[:2], rows[:0])
