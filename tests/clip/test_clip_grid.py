"""16-bit weights lie on a grid, which gives away what a singular edit removed; folding hides it.

`W' = W (I - r wᵀ)` with `wᵀ r = 1` has lost `W r`. But each row of W lies on the grid of 16-bit
numbers, and `w`, which the recipe lets anybody derive, says along which line the row was: only one
point of it is on the grid in every coordinate. The oracle of these tests is that attack.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.certificate import TOLERANCE
from nullspace_unlearn.clip import Clip, folding
from nullspace_unlearn.clip.grid import grid_of, off_grid
from nullspace_unlearn.data import mini
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.proof import prove

ROWS = 8
GRIDS = [torch.float16, torch.bfloat16]


def every(grid: torch.dtype) -> Tensor:
    """All finite numbers of a grid up to 4, in order, float64."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(grid).double()
    return numbers[numbers.isfinite() & (numbers.abs() < 4)].unique()


def off(rows: Tensor, grid: torch.dtype) -> Tensor:
    """How far each row lies from the grid, in its steps, by the median coordinate."""
    near = rows.to(grid).double()
    bits = 10 if grid == torch.float16 else 7
    step = torch.exp2(near.abs().clamp(min=2.0**-14).log2().floor() - bits)
    return ((rows - near).abs() / step).median(-1).values


def rebuilt(edited: Tensor, write: Tensor, grid: torch.dtype) -> Tensor:
    """The rows on the lines along `write` that lie nearest to the grid."""
    numbers, place = every(grid), int(write.abs().argmax())
    found = []
    for row in edited:
        lines = row + ((numbers - row[place]) / write[place])[:, None] * write
        found.append(lines[off(lines, grid).argmin()])
    return torch.stack(found).to(grid).double()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Folding without the defence."""
    monkeypatch.setattr(folding, "off_grid", lambda values: values.detach().double())
    return monkeypatch


@pytest.fixture(scope="module")
def clip() -> Clip:
    return nsu.load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def edit(clip: Clip) -> Edit:
    """The certificate's own edit, of one class everywhere."""
    return nsu.erase(clip, nsu.Forget(["bird"]), method="hull", wordings=False)


def rounded(clip: Clip, grid: torch.dtype) -> Clip:
    weight = clip.projection().matrix().to(grid)
    return clip.with_parameters({clip.projection().key: weight}, {})


def attacked(clip: Clip, edit: Edit, grid: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a model's projection, what they are edited, and what the attack makes of those."""
    edited = edit.fold(clip).projection().matrix()
    assert (edited @ edit.read).norm() < 1e-6 * edited.norm()  # what it reads is gone
    original = clip.projection().matrix()
    assert (original @ edit.read).norm() > 0.01 * original.norm()
    rows = edited[:ROWS]
    return original[:ROWS], rows, rebuilt(rows, edit.write[:, 0], grid)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_attack_fails(clip: Clip, edit: Edit, grid: torch.dtype) -> None:
    original, edited, found = attacked(rounded(clip, grid), edit, grid)
    assert not (found == original).all(-1).any()
    wrong, left = ((rows - original).norm(dim=-1) for rows in (found, edited))
    assert wrong.median() > left.median()  # further off than the edited rows themselves


@pytest.mark.parametrize("grid", GRIDS)
def test_without_the_noise_it_rebuilds_the_original_bit_for_bit(
    clip: Clip, edit: Edit, grid: torch.dtype, bare: object
) -> None:
    original, _, found = attacked(rounded(clip, grid), edit, grid)
    assert torch.equal(found, original)


def test_what_rounds_to_the_original_is_even(clip: Clip) -> None:
    """Oracle: NumPy's rounding; each entry's share of its own cell is even, up to its ends."""
    weight = torch.cat([clip.projection().matrix().reshape(-1), every(torch.float16)[::97]])
    moved = off_grid(weight)
    stored = weight.numpy().astype(np.float16)
    assert np.array_equal(moved.numpy().astype(np.float16), stored)
    step = np.abs(np.spacing(stored.astype(np.float16))).astype(np.float64)
    share = (moved - weight).numpy() / step
    assert abs(share.mean()) < 0.01 and abs(share.std() - 12**-0.5) < 0.01
    assert np.quantile(share, [0.01, 0.99]) == pytest.approx([-0.49, 0.49], abs=0.01)


def test_noise_is_the_tensors_own(clip: Clip) -> None:
    weight = clip.projection().matrix()
    moved = off_grid(weight)
    assert torch.equal(moved, off_grid(weight.half()))  # whatever holds it
    other = weight.clone()
    other[0, 0] = other[0, 1]
    share = (off_grid(other) - other)[1:] / (moved - weight)[1:]
    assert (share.sub(1).abs() > 1e-3).double().mean() > 0.9  # one entry changes all


def test_only_what_lies_on_a_grid_is_moved(clip: Clip, edit: Edit, bare: object) -> None:
    exact = clip.with_parameters({"visual.proj": clip.projection().matrix() * 1.1}, {})
    assert grid_of(exact.projection().weight) is None
    plain = edit.fold(exact).projection().matrix()
    bare.undo()
    assert torch.equal(edit.fold(exact).projection().matrix(), plain)
    zeros = torch.zeros(3, 3)
    assert grid_of(zeros) is None and torch.equal(off_grid(zeros), zeros.double())
    assert grid_of(torch.ones(3)) == torch.bfloat16


def test_an_edit_that_can_be_inverted_adds_none(clip: Clip, edit: Edit) -> None:
    half = edit.scale(0.5)
    wanted = half.apply(clip.projection().matrix())
    edited = half.fold(clip)
    torch.testing.assert_close(edited.projection().matrix(), wanted, rtol=0, atol=1e-6)
    assert edited.edits[0]["invertible"] and "noise" not in edited.edits[0]


def test_of_several_edits_what_each_removed_stays_so(clip: Clip, edit: Edit) -> None:
    first = edit.fold(clip)
    second = nsu.erase(first, nsu.Forget(["tree"]), method="hull", wordings=False)
    both = second.fold(first)
    assert [one["noise"] for one in both.edits] == ["float16", None]
    weight = both.projection().matrix()
    for one in (edit, second):
        assert (weight @ one.read).norm() < 1e-6 * weight.norm()
    exact = second.apply(first.projection().exact(lambda key, value: value).matrix())
    torch.testing.assert_close(weight, exact, rtol=0, atol=1e-6)  # no noise a second time


def test_the_folder_is_the_model_in_memory_and_is_proven(
    clip: Clip, edit: Edit, tmp_path: Path
) -> None:
    edited = edit.fold(clip)
    edited.save(tmp_path / "out")
    again = nsu.load(str(tmp_path / "out"), device="cpu")
    picture = clip.preprocess(mini.render("bird", "sketch", 1))[None]
    assert torch.equal(again.encode_image(picture), edited.encode_image(picture))
    # The price: what is kept moves by as much as rounding to 16 bits once more.
    moved = edit.apply(clip.encode_image(picture)) - edited.encode_image(picture)
    assert 1e-5 < moved.norm() / edited.encode_image(picture).norm() < 5e-4
    assert prove(again).holds and prove(again).proven[0].violation < TOLERANCE / 10
    with edit.applied(clip.model):
        assert torch.equal(clip.encode_image(picture), edited.encode_image(picture))
    said = (tmp_path / "out" / "README.md").read_text()
    assert "half a step of noise" in said and "can be\ncomputed" not in said
