"""Other words: how they move a name is held down, as far as kept names allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.certificate import certify
from nullspace_unlearn.erasers import hull, wording
from nullspace_unlearn.erasers.wording import borne
from nullspace_unlearn.linalg import unit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(*shape: int, seed: int = 0) -> Tensor:
    return unit(randn(*shape, seed=seed) + randn(shape[-1], seed=77))


def held(moves: Tensor, forget: Tensor, keep: Tensor) -> Tensor:
    """`I - F`, by the definition: the minimum has a vanishing derivative."""
    edit = hull(forget, keep).operator()
    left, dim = moves @ edit.T, keep.shape[-1]
    own = wording._WEIGHT * left.T @ left / len(moves)
    ridge = wording._RIDGE * torch.cov(keep.T, correction=0).trace() / dim
    kept = keep.T @ keep / len(keep) + ridge * torch.eye(dim).double()
    return torch.eye(dim).double() - torch.linalg.solve(own + kept, own).T


def test_what_wordings_leave_is_weighed_against_what_stays() -> None:
    """Oracle: the dense solution."""
    forget, keep = names(2, 32), names(8, 32, seed=1)
    moves = 0.3 * randn(40, 5, seed=2) @ randn(5, 32, seed=3) / 32**0.5
    edit = hull(forget, keep, wordings=moves)
    plain = hull(forget, keep)
    expected = held(moves, forget, keep) @ plain.operator()
    torch.testing.assert_close(edit.operator(), expected)
    assert edit.provenance["in_other_words"] == {"directions": 5, "of": 5}
    assert edit.rank == edit.provenance["numbers"]["rank"] == 7
    # Padded with nothing, or each said twice: the same. Twice as far: not.
    for same in (torch.cat([moves, 0 * moves]), torch.cat([moves, moves])):
        torch.testing.assert_close(hull(forget, keep, wordings=same).operator(), expected)
    further = hull(forget, keep, wordings=2 * moves).operator()
    assert not torch.allclose(further, expected, atol=1e-3)


def test_each_request_has_its_own() -> None:
    """Oracle: one by one."""
    forget, keep = names(3, 2, 12), names(6, 12, seed=1)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, :3] = False
    moves = 0.3 * randn(3, 40, 12, seed=3)
    moves[2, 5:] = 0
    moves[0] *= 0.01
    together = hull(forget, keep, keep_mask=mask, wordings=moves)
    ranks = []
    for i in range(3):
        alone = hull(forget[i], keep[mask[i]], wordings=moves[i])
        ranks.append(alone.rank)
        torch.testing.assert_close(together[i].operator(), alone.operator())
    assert len(set(ranks)) == 3  # the control: they differ


def test_of_more_directions_than_the_space_bears_the_strongest_are_held() -> None:
    forget, keep = names(1, 70), names(100, 70, seed=1)
    moves = 0.3 * randn(40, 70, seed=2)
    edit = hull(forget, keep, wordings=moves)
    told = edit.provenance["in_other_words"]
    assert told["directions"] == 1 < told["of"] and edit.rank == 2
    plain = hull(forget, keep).operator()
    share = torch.linalg.svdvals((edit.operator() - plain) @ torch.linalg.pinv(plain))
    whole = torch.linalg.svdvals(torch.eye(70) - held(moves, forget, keep))
    assert share[1] < 1e-9 and share[0] > 0.5 * whole[0]


@pytest.mark.parametrize(
    ("dim", "names", "kept", "many"),
    [(64, 3, 10, 54), (128, 1, 6, 122), (512, 1, 999, 1), (512, 100, 900, 8), (64, 1, 999, 1)],
)
def test_as_many_as_the_space_bears(dim: int, names: int, kept: int, many: int) -> None:
    assert borne(dim, torch.tensor(names), torch.tensor(kept)) == many


def test_hull_forgets_other_words_too_and_stays_certified() -> None:
    """What a wording still says is a small share; what the kept names say hardly changes."""
    forget, keep = names(2, 64), names(8, 64, seed=1)
    moves = 0.4 * randn(20, 4, seed=2) @ randn(4, 64, seed=3) / 64**0.5
    plain, wide = hull(forget, keep).operator(), hull(forget, keep, wordings=moves).operator()
    left = (wide @ moves.T).norm() / (plain @ moves.T).norm()
    changed = (wide @ keep.T - plain @ keep.T).norm() / (plain @ keep.T).norm()
    assert left < 0.25 and changed < 0.1, (left, changed)
    for operator in (wide, plain):
        assert certify(operator, None, forget, keep).holds.all()
    said = forget[:1] + moves
    assert not certify(plain, None, said, keep).holds.all()  # the control
