"""Other words: the directions in which they move a name go with it, as many as the space bears."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.certificate import certify
from nullspace_unlearn.erasers import hull
from nullspace_unlearn.erasers.wording import borne, with_wordings
from nullspace_unlearn.linalg import unit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(*shape: int, seed: int = 0) -> Tensor:
    return unit(randn(*shape, seed=seed) + randn(shape[-1], seed=77))


def test_what_joins_are_the_leading_directions_outside_the_basis() -> None:
    basis = torch.linalg.qr(randn(12, 2)).Q
    directions = torch.linalg.qr(randn(12, 3, seed=1)).Q.T
    moves = randn(40, 3, seed=2) * torch.tensor([9.0, 3.0, 1.0]) @ directions
    wider, joined, there = with_wordings(basis, moves, torch.tensor(2))
    assert (joined, there) == (2, 3) and wider.shape == (12, 4)
    torch.testing.assert_close(wider.T @ wider, torch.eye(4).double())
    rest = moves - (moves @ basis) @ basis.T
    left = rest - (rest @ wider) @ wider.T
    # The oracle: no two directions leave less (Eckart and Young).
    best = torch.linalg.svdvals(rest)[2:].square().sum()
    torch.testing.assert_close(left.square().sum(), best)
    whole, _, _ = with_wordings(basis, moves, torch.tensor(99))
    assert whole.shape == (12, 5)


def test_each_request_has_its_own() -> None:
    """Oracle: one by one."""
    basis = torch.linalg.qr(randn(3, 12, 2)).Q
    basis[1, :, 1] = 0
    moves = randn(3, 40, 12, seed=3)
    moves[2, 5:] = 0
    most = torch.tensor([2, 99, 4])
    wider, joined, there = with_wordings(basis, moves, most)
    for i in range(3):
        used = basis[i][:, basis[i].any(0)]
        alone, one, many = with_wordings(used, moves[i], most[i])
        assert (joined[i], there[i]) == (one, many)
        torch.testing.assert_close(wider[i] @ wider[i].T, alone @ alone.T)
    assert joined.tolist() == [2, 10, 4]  # the control: they differ


@pytest.mark.parametrize(
    ("dim", "names", "kept", "many"),
    [(64, 3, 10, 13), (128, 1, 6, 30), (512, 1, 999, 1), (512, 100, 900, 8), (64, 1, 999, 1)],
)
def test_as_many_as_the_space_bears(dim: int, names: int, kept: int, many: int) -> None:
    assert borne(dim, torch.tensor(names), torch.tensor(kept)) == many


def test_hull_forgets_other_words_too_and_stays_certified() -> None:
    forget, keep = names(2, 32), names(8, 32, seed=1)
    moves = 0.4 * randn(20, 4, seed=2) @ randn(4, 32, seed=3) / 32**0.5
    plain, wide = hull(forget, keep), hull(forget, keep, wordings=moves)
    assert wide.rank == 6 and wide.provenance["in_other_words"] == {"directions": 4, "of": 4}
    assert "in_other_words" not in plain.provenance
    said = forget[:1] + moves
    for edit, says_nothing in ((wide, True), (plain, False)):
        left = (said - keep.mean(0)) @ edit.operator().T
        assert (float(left.norm()) < 1e-9) == says_nothing
        assert certify(edit.operator(), None, forget, keep).holds.all()
    batch = hull(torch.stack([forget, forget]), keep, wordings=torch.stack([moves, 0 * moves]))
    torch.testing.assert_close(batch[0].operator(), wide.operator())
    torch.testing.assert_close(batch[1].operator(), plain.operator())
