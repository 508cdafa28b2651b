"""`nsu diff`: what was done to a model is read off its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.difference import difference, rank_of
from nullspace_unlearn.edit import Edit

NAMES = ["car", "truck", "dog", "cat", "flower", "house"]


@pytest.fixture(scope="module")
def clip() -> Iterator[Clip]:
    yield nsu.load("nsu-mini", device="cpu")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_model_is_the_same_as_itself(clip: Clip) -> None:
    found = difference(clip, clip, NAMES)
    assert found.same and found.tensors == len(clip.model.state_dict())


@pytest.mark.parametrize("rank", [1, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_rank_is_that_of_the_update_whatever_rounding_adds(
    rank: int, dtype: torch.dtype
) -> None:
    before = (randn(96, 64) / 8).to(dtype).double()
    update = randn(96, rank, seed=1) @ randn(rank, 64, seed=2) / 50
    after = (before + update).to(dtype).double()
    found, values = rank_of(after - before, before, dtype)
    assert found == rank and int((values > 0).sum()) > rank  # rounding is there


def test_an_edit_of_the_embedding_is_recovered(clip: Clip) -> None:
    edit = Edit(randn(64, 3) / 9, randn(64, 3, seed=1) / 9)
    found = difference(clip, edit.fold(clip))
    (changed,), (seen,) = found.changed, found.projections
    assert (changed.key, changed.rank, seen.space) == ("visual.proj", 3, "embedding")
    assert seen.unexplained < 1e-5
    wanted = torch.linalg.svdvals(edit.read @ edit.write.T)[:3]
    assert [one.size for one in seen.directions] == pytest.approx(wanted.tolist(), rel=1e-3)
    w = clip.projection().matrix()
    step = w @ edit.read @ edit.write.T
    assert changed.distance == pytest.approx(float(step.norm()), rel=1e-4)
    assert changed.relative == pytest.approx(float(step.norm() / w.norm()), rel=1e-4)


def test_an_edit_of_the_hidden_feature_is_no_edit_of_the_embedding(clip: Clip) -> None:
    width = clip.projection().width
    edit = Edit(randn(width, 2) / 9, randn(64, 2, seed=1) / 9, space="hidden")
    (seen,) = difference(clip, edit.fold(clip), NAMES).projections
    assert seen.space == "hidden" and seen.unexplained > 0.1
    assert not seen.directions[0].reads and seen.directions[0].writes
    wanted = torch.linalg.svdvals(edit.read @ edit.write.T)[:2]
    assert [one.size for one in seen.directions] == pytest.approx(wanted.tolist(), rel=1e-3)


def test_it_names_what_was_forgotten(clip: Clip, tmp_path: Path) -> None:
    for name in ("car", "dog"):
        edited = nsu.erase(clip, nsu.Forget([name]), wordings=False).fold(clip)
        (seen,) = difference(clip, edited, NAMES).projections
        assert next(iter(seen.directions[0].reads)) == name
        first, second = list(seen.moved.items())[:2]
        assert first[0] == name and first[1] > 5 * second[1]
    on_text = nsu.erase(clip, nsu.Forget(["car"]), side="text").fold(clip, "text")
    (seen,) = difference(clip, on_text, NAMES).projections
    assert (seen.side, seen.space) == ("text", "embedding") and not seen.moved


def test_other_tensors_are_told_of(clip: Clip) -> None:
    bias = dict(clip.model.named_parameters())["visual.ln_post.bias"].detach() + 1
    other = clip.with_parameters({"visual.ln_post.bias": bias}, {"method": "by hand"})
    found = difference(clip, other)
    (changed,) = found.changed
    assert (changed.key, changed.rank) == ("visual.ln_post.bias", None) and not found.projections
    assert changed.distance == pytest.approx(bias.numel() ** 0.5)


def test_models_of_other_shapes(clip: Clip, tmp_path: Path) -> None:
    class Small:
        model = torch.nn.Module()

        def projection(self, side: str) -> None:
            raise ValueError("none")

    small = Small()
    small.model.register_parameter("logit_scale", torch.nn.Parameter(torch.ones(3)))
    small.model.register_parameter("more", torch.nn.Parameter(torch.ones(3)))
    found = difference(clip, small)  # type: ignore[arg-type]
    assert found.only_second == ("more",) and found.reshaped == ("logit_scale",)
    assert len(found.only_first) == found.tensors - 1 and not found.same
