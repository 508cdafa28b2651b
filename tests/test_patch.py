"""Patches: what they hold, which weights they are for, how they compose, what they give away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.header import write_arrays
from nullspace_unlearn.layer import EditLayer
from nullspace_unlearn.patch import ORDER, Patch, order
from nullspace_unlearn.patching import check_fits, fold_patches, make_patch


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_edit(dim: int, rank: int = 2, seed: int = 0, width: int | None = None) -> Edit:
    """Of the embedding; of the hidden feature where its width is given."""
    made = randn(width or dim, rank, seed=seed) / 9, randn(dim, rank, seed=seed + 1) / 9
    said = {"method": "random", "request": {"classes": [f"class {seed}"]}}
    return Edit(*made, space="hidden" if width else "embedding", provenance=said)


@pytest.fixture(scope="module")
def clip() -> Iterator[Clip]:
    yield nsu.load("nsu-mini", device="cpu")


def weights_of(clip: Clip) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in clip.model.state_dict().items()}


# On disk.


def test_a_patch_comes_back_whole_and_always_as_the_same_bytes(clip: Clip, tmp_path: Path) -> None:
    edit = random_edit(clip.dim)
    patch = make_patch(clip, edit, "text", {"left": 0.1})
    patch.save(tmp_path / "a")
    patch.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < 50_000
    back = Patch.load(tmp_path / "a")
    assert np.array_equal(back.read, edit.read) and np.array_equal(back.write, edit.write)
    assert (back.side, back.figures, back.digest) == ("text", {"left": 0.1}, patch.digest)
    assert back.weights is not None and back.weights.sha256 == clip.source.sha256
    assert back.title == "class 0" and len(repr(back).splitlines()) == 1
    # It is a saved edit, and a saved edit is a patch for no weights in particular.
    assert torch.equal(Edit.load(tmp_path / "a").read, edit.read)
    edit.save(tmp_path / "edit")
    assert Patch.load(tmp_path / "edit").weights is None


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "[]"},
        {"weights": "{}"},
        {"weights": json.dumps({"model": "m", "tensors": {"a": 1}})},
        {"figures": "[1]"},
        {"figures": "{"},
        {"side": "both"},
    ],
)
def test_a_malformed_patch_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    header = {"format": "nullspace-unlearn edit 2", "space": "embedding", "provenance": "{}"}
    arrays = {"read": np.ones((4, 1)), "write": np.ones((4, 1))}
    write_arrays(tmp_path / "good", arrays, header)
    assert Patch.load(tmp_path / "good").side == "visual"
    write_arrays(tmp_path / "bad", arrays, {**header, **change})
    with pytest.raises(ValueError, match="is not a saved edit"):
        Patch.load(tmp_path / "bad")


# Into a model.


def test_other_weights_are_refused_and_the_tensor_named(clip: Clip) -> None:
    patch = make_patch(clip, random_edit(clip.dim))
    check_fits(patch, clip)
    for key in ("visual.proj", "token_embedding.weight"):
        value = dict(clip.model.named_parameters())[key].detach() + 1
        other = clip.with_parameters({key: value}, {"method": "by hand"})
        with pytest.raises(ValueError, match=f"for other weights .nsu-mini. .*: {key} differs$"):
            check_fits(patch, other)
    # The same tensors in another file are the same weights.
    same = clip.with_parameters({"visual.proj": clip.model.visual.proj}, {"method": "nothing"})
    check_fits(patch, same)


def test_folding_several_is_folding_one_after_another(clip: Clip) -> None:
    a, b = random_edit(clip.dim, seed=0), random_edit(clip.dim, seed=5)
    both, pairs = fold_patches(clip, [make_patch(clip, one) for one in (a, b)])
    one_by_one = b.fold(a.fold(clip))
    for key, value in weights_of(one_by_one).items():
        assert torch.equal(both.model.state_dict()[key], value)
    # Oracle: W M_a M_b in float64.
    exact = clip.model.visual.proj.detach().double() @ a.operator() @ b.operator()
    assert torch.allclose(both.model.visual.proj.double(), exact, atol=1e-6)
    assert pairs[0].matters and [len(both.history.edits), len(pairs)] == [2, 1]
    swapped, _ = fold_patches(clip, [make_patch(clip, one) for one in (b, a)])
    assert not torch.allclose(swapped.model.visual.proj, both.model.visual.proj)


def test_a_patch_made_on_an_edited_model_follows_the_one_before(clip: Clip, tmp_path: Path) -> None:
    a, b = random_edit(clip.dim, seed=0), random_edit(clip.dim, seed=5)
    first = make_patch(clip, a)
    once = nsu.load(a.fold(clip).save(tmp_path / "once"), device="cpu")
    second = make_patch(once, b)
    both, _ = fold_patches(clip, [first, second])
    assert torch.equal(both.model.visual.proj, b.fold(a.fold(clip)).model.visual.proj)
    with pytest.raises(ValueError, match="B is for other weights .*visual.proj differs"):
        fold_patches(clip, [second, first], ["B", "A"])
    with pytest.raises(ValueError, match="there is no patch"):
        fold_patches(clip, [])


def test_the_order_counts_as_much_as_the_weights_differ(clip: Clip) -> None:
    width = clip.projection().width
    edits = {
        "a": random_edit(clip.dim), "b": random_edit(clip.dim, seed=5),
        "h": random_edit(clip.dim, seed=7, width=width),
        "g": random_edit(clip.dim, seed=9, width=width),
    }  # fmt: skip
    patches = {name: edit.patch() for name, edit in edits.items()}
    w = clip.projection().matrix()

    def after(*names: str) -> torch.Tensor:
        """W after edits, by hand."""
        now = w
        for name in names:
            edit = edits[name]
            step = edit.read @ edit.write.T
            now = now - step if edit.space == "hidden" else now @ edit.operator()
        return now

    for one, other in ("ha", "hg"):
        size = (after(one) - w).norm()
        share = float((after(one, other) - after(other, one)).norm() / size)
        assert order(patches[one], patches[other]) == pytest.approx(share, abs=1e-12)
    ab = edits["a"].operator() @ edits["b"].operator()
    ba = edits["b"].operator() @ edits["a"].operator()
    sizes = [float((edits[n].operator() - torch.eye(clip.dim)).norm()) for n in "ab"]
    assert order(patches["a"], patches["b"]) == pytest.approx(float((ab - ba).norm()) / min(sizes))
    assert order(patches["a"], patches["b"]) > ORDER > order(patches["g"], patches["h"]) == 0
    # Edits of directions that have nothing to do with one another commute.
    basis = torch.linalg.qr(randn(clip.dim, 4)).Q
    apart = [Edit(basis[:, i : i + 2], basis[:, i : i + 2]).patch() for i in (0, 2)]
    assert order(*apart) < 1e-12


def test_what_a_patch_gives_away(clip: Clip) -> None:
    original = clip.model.visual.proj.detach().double()
    hidden = random_edit(clip.dim, seed=7, width=clip.projection().width)
    edited = hidden.fold(clip).model.visual.proj.detach().double()
    patch = hidden.patch()
    rebuilt = edited + torch.from_numpy(patch.read @ patch.write.T)
    assert torch.allclose(rebuilt, original, atol=1e-6)
    assert not torch.allclose(edited, original, atol=1e-3)
    bent = random_edit(clip.dim)
    back = (
        bent.fold(clip).model.visual.proj.detach().double()
        @ Edit.of(bent.patch()).inverse().operator()
    )
    assert torch.allclose(back, original, atol=1e-5)


# In a live model, and as a layer.


class Stop(Exception):
    pass


@pytest.mark.parametrize("space", ["embedding", "hidden", "mlp"])
def test_a_live_model_has_the_edit_while_the_block_lasts(clip: Clip, space: str) -> None:
    images = torch.randn(3, 3, *clip.image_size)
    edit = random_edit(clip.dim)
    if space == "hidden":
        edit = random_edit(clip.dim, width=clip.projection().width)
    if space == "mlp":
        mlp = clip.last_mlp()
        shape = clip.model.state_dict()[mlp.key].shape
        edit = Edit(randn(shape[1], 2) / 9, randn(shape[0], 2, seed=1) / 9, space="mlp")
    before, plain = weights_of(clip), clip.encode_image(images)
    places = {key: value.data_ptr() for key, value in clip.model.state_dict().items()}
    wanted = edit.fold(clip).encode_image(images)
    with pytest.raises(Stop), edit.applied(clip.model):
        assert torch.equal(clip.encode_image(images), wanted)
        moved = [k for k, v in clip.model.state_dict().items() if v.data_ptr() != places[k]]
        assert len(moved) == 1  # no second copy of the model
        raise Stop
    after = clip.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {key: value.data_ptr() for key, value in after.items()} == places
    assert torch.equal(clip.encode_image(images), plain) and not torch.equal(plain, wanted)
    with edit.applied(clip):  # a Clip as well
        assert torch.equal(clip.encode_image(images), wanted)


def test_a_live_transformers_model_has_it_too() -> None:
    transformers = pytest.importorskip("transformers")
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**part, "vocab_size": 40, "eos_token_id": 39},
        vision_config={**part, "image_size": 32, "patch_size": 16}, projection_dim=12,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    pixels, edit = torch.randn(2, 3, 32, 32), random_edit(12)

    def embedded() -> torch.Tensor:
        found = model.get_image_features(pixel_values=pixels)
        return (found if isinstance(found, torch.Tensor) else found.pooler_output).detach()

    plain = embedded()
    with edit.applied(model):
        assert torch.allclose(embedded(), edit.apply(plain), atol=1e-5)
    assert torch.equal(embedded(), plain) and not torch.allclose(edit.apply(plain), plain)


def test_the_layer_does_what_the_edit_does() -> None:
    edit, z = random_edit(7), randn(5, 7, seed=3)
    layer = edit.module()
    assert isinstance(layer, nn.Module) and torch.equal(layer(z), edit.apply(z))
    half = layer(z.half())
    assert half.dtype == torch.float16 and torch.equal(half, edit.apply(z.half()))
    again = EditLayer(torch.zeros(7, 2), torch.zeros(7, 2)).double()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(z), edit.apply(z))
    hidden = random_edit(7, width=9)
    h = randn(5, 9, seed=4)
    assert torch.equal(hidden.module()(z, h), hidden.apply(z, h))
    with pytest.raises(ValueError, match="pass hidden"):
        hidden.module()(z)
    with pytest.raises(ValueError, match="is no layer for embeddings"):
        Edit(randn(3, 7, 2), randn(3, 7, 2)).module()


def test_compiled_layers_and_models_follow(clip: Clip) -> None:
    """Traced by Dynamo and run by torch: what the guards hold on to is what is asked here."""
    edit, z = random_edit(clip.dim), randn(5, clip.dim, seed=3)
    traced = torch.compile(edit.module(), backend="eager", fullgraph=True)
    assert torch.equal(traced(z), edit.apply(z))
    tower = torch.compile(clip.model.visual, backend="eager")
    images = torch.randn(2, 3, *clip.image_size)
    with torch.no_grad():
        plain = tower(images)
        with edit.applied(clip.model):
            assert torch.allclose(tower(images), edit.apply(plain), atol=1e-4)
            assert not torch.allclose(tower(images), plain, atol=1e-3)
        assert torch.equal(tower(images), plain)


@pytest.mark.slow
def test_the_layer_is_compiled() -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile makes C++ for the CPU, and there is no compiler")
    edit, z = random_edit(7), randn(5, 7, seed=3)
    assert torch.allclose(torch.compile(edit.module())(z), edit.apply(z))
