"""Whether a model comes from another, and the random change that stands beside an edit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nullspace_unlearn as nsu
from nullspace_unlearn.audit.control import random_features, random_like, random_model
from nullspace_unlearn.audit.descent import differences
from nullspace_unlearn.clip import attach, new_prompts
from nullspace_unlearn.features import Features


@pytest.fixture(scope="module")
def clip():
    return nsu.load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def edited(clip):
    return nsu.erase(clip, nsu.Forget(["car"])).fold(clip)


def test_only_the_edited_tensor_differs(clip, edited):
    changes = differences(clip, edited)
    assert list(changes) == ["visual.proj"]
    key, change = changes.popitem()
    held = [one.model.state_dict()[key].double() for one in (clip, edited)]
    assert torch.equal(held[0] + change, held[1])
    assert differences(clip, clip) == {}  # control


def test_a_model_that_does_not_descend_is_refused(clip, edited):
    other = clip.with_parameters(
        {"positional_embedding": clip.model.positional_embedding + 0.1}, {"method": "x"}
    )
    assert list(differences(clip, other)) == ["positional_embedding"]  # its history says so
    silent = replace(edited, model=other.model)  # whose history speaks of another tensor
    with pytest.raises(ValueError, match="does not descend.*positional_embedding differs"):
        differences(clip, silent)
    drawn = {k: torch.randn_like(v) for k, v in clip.model.named_parameters()}
    stranger = replace(clip.with_parameters(drawn, {}), edits=())
    with pytest.raises(ValueError, match="does not descend.*every weight differs"):
        differences(clip, stranger)


def test_visual_prompts_change_no_weight(clip):
    prompted = attach(clip, new_prompts(clip.model), {"method": "adu"})
    assert differences(clip, prompted) == {}
    moved = clip.with_parameters({"visual.proj": clip.model.visual.proj + 0.1}, {"method": "x"})
    with pytest.raises(ValueError, match="visual.proj differs, and visual prompts"):
        differences(clip, attach(moved, new_prompts(clip.model), {}))


@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 2, 2), (6,)])
def test_the_random_change_has_the_singular_values_of_the_edit(shape):
    generator = torch.Generator().manual_seed(1)
    change = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 2:
        change[:, 2:] = 0  # rank 2
    drawn = random_like(change, generator)
    assert drawn.shape == change.shape and not torch.allclose(drawn, change)
    flat = [(m.flatten(1) if m.ndim > 1 else m.reshape(1, -1)) for m in (change, drawn)]
    sizes = [torch.linalg.svdvals(m) for m in flat]
    assert torch.allclose(*sizes, atol=1e-12)
    assert not torch.allclose(sizes[0], torch.linalg.svdvals(2 * flat[1]), atol=1e-12)  # control


def test_the_control_changes_what_the_edit_changes(clip, edited):
    drawn = random_model(clip, differences(clip, edited), torch.Generator().manual_seed(1))
    assert list(differences(clip, drawn)) == ["visual.proj"]
    assert random_model(clip, {}, torch.Generator()) is None


def test_features_are_moved_at_random_where_there_is_no_model():
    z = torch.randn(40, 8)
    edit = nsu.Edit(torch.randn(8, 2), torch.randn(8, 2))
    before = Features(z, torch.zeros(40).long(), ("a",))
    after = replace(before, embeddings=edit.apply(z))
    drawn = random_features(before, after, torch.Generator().manual_seed(1))
    sizes = [torch.linalg.matrix_rank(one.embeddings - z, rtol=1e-4) for one in (after, drawn)]
    assert sizes == [2, 2] and not torch.allclose(drawn.embeddings, after.embeddings)
    few = [one.subset(torch.arange(8)) for one in (before, after)]
    bent = replace(before, embeddings=z.abs())  # no linear map
    for pair in (few, (before, bent), (before, before)):
        assert random_features(*pair, torch.Generator()) is None
