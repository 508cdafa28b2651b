"""An edit of the last MLP: what it does to z is known exactly. Oracles: numpy, autograd, stock."""

from __future__ import annotations

import copy
import filecmp
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pico
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nullspace_unlearn.clip import (
    FAMILIES,
    Clip,
    LastMlp,
    describe,
    encode,
    find_mlp,
    fold,
    load,
    mlp,
    revert,
)
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.plans import plan, space_for

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "models"
WEIGHTS = "open_clip_model.safetensors"

CLIPA = {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}
"""What open_clip's CLIPA configurations say of their image towers."""

REACHED = {
    "ViT-B-32": "visual.transformer.resblocks.1.mlp.c_proj.weight",
    "ViT-B-32-quickgelu": "visual.transformer.resblocks.1.mlp.c_proj.weight",
    "ViT-B-32 layer scale": "visual.transformer.resblocks.1.mlp.c_proj.weight",
    "ViT-B-32 norm in the MLP": "visual.transformer.resblocks.1.mlp.c_proj.weight",
    "CLIPA": "visual.transformer.resblocks.1.mlp.c_proj.weight",
    "coca_base": "visual.transformer.resblocks.1.mlp.c_proj.weight",
    "EVA02-B-16": "visual.trunk.blocks.0.mlp.fc2.weight",
    "MobileCLIP-B": "visual.trunk.blocks.0.mlp.fc2.weight",
    "ViTamin-S": "visual.trunk.blocks.0.mlp.w2.weight",
}
UNREACHED = {
    "RN50": "is no vision transformer",
    "convnext_base": "is no vision transformer",
    "swin_base_patch4_window7_224": "is no vision transformer",
    "vit_medium_patch16_gap_256": "pools otherwise",
    "ViT-B-32 mean of normed tokens": "pools otherwise",
    "PE-Core-B-16": "pools otherwise",
    "coca_ViT-B-32": "pools otherwise",
    "ViT-B-16-SigLIP": "pools otherwise",
}
_VISION = {
    "ViT-B-32 layer scale": {"ls_init_value": 0.1},
    "ViT-B-32 norm in the MLP": {"scale_fc": True},
    "ViT-B-32 mean of normed tokens": {"pool_type": "avg"},
    "CLIPA": CLIPA,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Name in `REACHED` or `_VISION`, dtype -> folder of a tiny model.

    open_clip's own towers are two blocks deep: taking another block for the last is noticed.
    """
    root = tmp_path_factory.mktemp("mlp")

    def write(name: str, dtype: torch.dtype = torch.float32) -> Path:
        path = root / f"{name}-{dtype}".replace(" ", "-").replace("torch.", "")
        if path.exists():
            return path
        path.mkdir()
        family = "ViT-B-32" if name == "CLIPA" else name.split(" ")[0]
        config = pico.config(family, root / f"{path.name}-text")
        vision = config["model_cfg"]["vision_cfg"]
        vision.update(_VISION.get(name, {}))
        if isinstance(vision.get("layers"), int):
            vision["layers"] = 2
        (path / "open_clip_config.json").write_text(json.dumps(config))
        state = pico.build(path).state_dict()
        save_file({k: v.to(dtype).contiguous().clone() for k, v in state.items()}, path / WEIGHTS)
        return path

    return write


@pytest.fixture(scope="module")
def clip_of(folder: Callable[..., Path], clip_of: Callable[[str], Clip]) -> Callable[[str], Clip]:
    """The same, loaded; and the other families as everywhere."""

    @cache
    def clip(name: str) -> Clip:
        ours = name in REACHED or name in _VISION
        return load(str(folder(name)), device="cpu") if ours else clip_of(name)

    return clip


def test_a_request_for_an_mlp_that_there_is_not_says_what_there_is(clip_of):
    told = {"classes": ("ox", "emu"), "domains": {"photo": "photo", "sketch": "sketch"}}
    shallow, deep = (
        (clip, plan(clip, Forget(["ox"], ["photo"]), images=True, **told))
        for clip in (clip_of("RN50"), clip_of("ViT-B-32"))
    )
    with pytest.raises(ValueError, match="is no vision.*--space may be embedding, hidden, value$"):
        space_for(*shallow, "mlp")
    assert space_for(*shallow) == "value"  # by default the deepest that it has
    assert space_for(*deep, "mlp") == space_for(*deep) == "mlp"  # control


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edit_of(found: LastMlp, seed: int = 0, rank: int = 3) -> Edit:
    """Large, and its columns of write do not have mean zero."""
    return Edit(
        read=randn(found.mlp_width, rank, seed=seed) / found.mlp_width**0.5,
        write=randn(found.width, rank, seed=seed + 100),
        space="mlp",
        provenance={"method": "random", "seed": seed},
    )


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def by_hand(clip: Clip, found: LastMlp, edits: list[Edit]) -> np.ndarray:
    """Oracle: x of stock open_clip's own pass, less the edits' shifts, normed and projected."""
    seen: dict[str, np.ndarray] = {}
    model = copy.deepcopy(clip.model).double()

    def keep(name: str) -> Callable[..., None]:
        return lambda _, inputs: seen.update({name: inputs[0].detach().numpy()})

    model.get_submodule(found.key.removesuffix(".weight")).register_forward_pre_hook(keep("k"))
    norm = model.get_submodule(found.norm)
    norm.register_forward_pre_hook(keep("x"))
    with torch.no_grad():
        model.encode_image(pico.images().double())
    k, x = seen["k"], seen["x"]
    for edit in edits:  # of every token, before pooling: as the edited network does it
        shift = (k @ edit.read.numpy()) @ edit.write.numpy().T
        if x.ndim == 2:
            shift = shift[:, found.tokens].mean(1)
        x = x - shift
    centred = x - x.mean(-1, keepdims=True)
    h = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    h = h * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    h = h if h.ndim == 2 else h[:, 0]
    bias = found.projection.bias()
    return h @ found.projection.matrix().numpy() + (0 if bias is None else bias.numpy())


@pytest.mark.parametrize("name", REACHED)
def test_folding_shifts_the_residual_stream(name, clip_of):
    clip = clip_of(name)
    found = clip.last_mlp()
    assert found.key == REACHED[name] == describe(clip.model)["visual"]["mlp"]
    edit, plain = edit_of(found), clip.encode_image(pico.images())
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}

    folded = clip.fold(edit)

    expected = torch.from_numpy(by_hand(clip, found, [edit]))
    actual = folded.encode_image(pico.images())
    assert distance(actual, expected) < 1e-5
    assert distance(found.apply(edit, clip.read_inner("mlp", pico.images())), expected) < 1e-5
    # Controls: no shift and the opposite shift would both be noticed.
    assert distance(plain, expected) > 0.05
    assert distance(clip.fold(edit.scale(-1)).encode_image(pico.images()), expected) > 0.05
    # The text side, every tensor but the edited, and the original are as they were.
    assert torch.equal(folded.encode_text(pico.PROMPTS), clip.encode_text(pico.PROMPTS))
    assert [change.key for change in folded.changes] == [found.key]
    for key, value in folded.model.state_dict().items():
        assert key == found.key or value.data_ptr() == clip.model.state_dict()[key].data_ptr()
    assert all(torch.equal(v, before[k]) for k, v in clip.model.state_dict().items())
    assert clip.changes == ()


@pytest.mark.parametrize("name", REACHED)
def test_one_pass_sees_all_from_the_mlp_on(name, clip_of):
    """Oracle: the network's own modules, applied one after the other."""
    clip = clip_of(name)
    found, seen = clip.last_mlp(), clip.read_inner("mlp", pico.images())
    hooks = [len(module._forward_pre_hooks) for module in clip.model.modules()]
    assert seen.mlp.shape == (4, found.mlp_width) and seen.residual.shape == (4, found.width)
    assert all(t.dtype == torch.float32 and not t.is_inference() for t in vars(seen).values())
    norm = clip.model.get_submodule(found.norm)
    assert distance(norm(seen.residual), seen.hidden) < 1e-6
    assert torch.equal(seen.hidden, clip.hidden_image(pico.images()))
    assert distance(seen.embedding, clip.encode_image(pico.images())) < 1e-6
    centred = seen.residual - seen.residual.mean(-1, keepdim=True)
    scaled = norm.weight * centred / seen.deviation[:, None] + norm.bias
    assert distance(scaled, seen.hidden) < 1e-5
    # x contains C k: what the linear layer does to k is what an edit that removes it takes away.
    scale = torch.ones(found.width) if found.scale is None else found.scale
    whole = Edit(found.weight.T, torch.diag(scale), space="mlp")
    without = clip.fold(whole).read_inner("mlp", pico.images()).residual
    contribution = scale * (seen.mlp @ found.weight.T)
    assert distance(seen.residual - without, contribution) < 1e-4
    assert distance(seen.residual, contribution) > 0.1  # control
    assert hooks == [len(module._forward_pre_hooks) for module in clip.model.modules()]
    assert not any(m._forward_pre_hooks for m in clip._headless.modules())


@pytest.mark.parametrize("name", ["ViT-B-32", "EVA02-B-16"])
def test_carrying_forward_is_the_jacobian_of_the_norm(name, clip_of):
    """Oracle: autograd through the norm and the projection, less what only scales z - z°."""
    clip = clip_of(name)
    found, seen = clip.last_mlp(), clip.read_inner("mlp", pico.images())
    norm = copy.deepcopy(clip.model.get_submodule(found.norm)).double()
    project, x = found.projection.apply, seen.residual[0].double()
    centre = project(norm.bias.detach())
    direction = randn(found.width, 1)
    z, derivative = torch.func.jvp(lambda x: project(norm(x)), (x,), (direction[:, 0],))
    deviation = seen.deviation[0].double()
    radial = ((x - x.mean()) @ direction[:, 0]) / (found.width * deviation**2)
    exact = derivative + radial * (z - centre)
    assert distance(found.carry_forward(direction)[:, 0] / deviation, exact) < 1e-6
    assert distance(found.carry_forward(direction)[:, 0] / deviation, derivative) > 1e-3  # control


@pytest.mark.parametrize("name", ["ViT-B-32", "EVA02-B-16", "ViTamin-S"])
def test_carrying_back_is_exact_least_and_without_mean(name, clip_of):
    """Oracle: the normal equations of the least-norm problem, solved densely."""
    found = clip_of(name).last_mlp()
    wanted = randn(found.projection.dim, 2)
    carried = found.carry_back(wanted)
    assert distance(found.carry_forward(carried), wanted) < 1e-9
    through = found.gain.detach().double()[:, None] * found.projection.matrix()
    assert distance(through.T @ carried, wanted) < 1e-9
    assert carried.mean(0).abs().max() < 1e-12 * carried.norm()
    constraints = torch.cat([through.T, torch.ones(1, found.width, dtype=torch.float64)])
    right = torch.cat([wanted, torch.zeros(1, 2, dtype=torch.float64)])
    least = constraints.T @ torch.linalg.solve(constraints @ constraints.T, right)
    assert distance(carried, least) < 1e-8
    naive = torch.linalg.pinv(through.T) @ wanted  # control: the mean is there to be removed
    assert naive.mean(0).abs().max() > 1e-4 * naive.norm()
    assert distance(found.carry_back(torch.stack([wanted, 2 * wanted]))[1], 2 * carried) < 1e-12


def test_what_cannot_be_reached_is_approached(clip_of):
    """After an edit that closes a direction of the joint space, least squares with a bounded u."""
    clip = clip_of("ViT-B-32")
    closed = torch.nn.functional.normalize(randn(clip.dim, 1), dim=0)
    found = clip.fold(Edit(closed, closed)).last_mlp()
    wanted = randn(clip.dim, 1, seed=1)
    carried = found.carry_back(wanted)
    nearest = wanted - closed @ (closed.T @ wanted)
    assert distance(found.carry_forward(carried), nearest) < 1e-5
    assert distance(nearest, wanted) > 0.05
    assert carried.norm() < 3 * clip.last_mlp().carry_back(wanted).norm()
    # Control: without the cut-off, rounding passes for a way through.
    assert torch.linalg.pinv(found._jacobian().mT).norm() > 1e3 * carried.norm()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32 layer scale", "CLIPA"])
def test_a_shift_of_q_times_sigma_moves_scores_by_q(name, clip_of):
    """Theorem of the module: z' - z° is parallel to z - z° - q w, whatever the size of q."""
    clip = clip_of(name)
    found, seen = clip.last_mlp(), clip.read_inner("mlp", pico.images())
    wanted, q = randn(clip.dim, 1), torch.tensor([1.0, 0.5, 0.0, -0.7], dtype=torch.float64)
    # More neurons than images: k @ read can be anything, here q σ.
    read = torch.linalg.pinv(seen.mlp.double()) @ (q * seen.deviation.double())[:, None]
    edited = clip.fold(Edit(read, found.carry_back(wanted), space="mlp"))
    centre = found.projection.apply(found.offset.detach().double())
    moved = edited.encode_image(pico.images()).double() - centre
    target = seen.embedding.double() - centre - q[:, None] * wanted.T
    cosine = torch.nn.functional.cosine_similarity
    assert (cosine(moved, target) > 1 - 1e-8).all()
    assert (cosine(moved, seen.embedding.double() - centre)[[0, 1, 3]] < 0.99).all()  # control
    assert distance(moved[2], target[2]) < 1e-5


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32 layer scale", "EVA02-B-16", "CLIPA"])
def test_what_is_kept_of_images_is_enough_to_apply_an_edit(name, clip_of):
    """Oracle: the folded model; k/σ and h are all that prototypes hold."""
    clip = clip_of(name)
    found, seen = clip.last_mlp(), clip.read_inner("mlp", pico.images())
    few = found.of_prototypes(seen.mlp / seen.deviation[:, None], seen.hidden)
    edit = edit_of(found)
    after = clip.fold(edit).encode_image(pico.images())
    assert distance(found.apply(edit, few), after) < 1e-4
    assert distance(clip.encode_image(pico.images()), after) > 0.05  # control


def test_a_batch_is_applied_one_by_one(clip_of):
    clip = clip_of("ViT-B-32")
    found, seen = clip.last_mlp(), clip.read_inner("mlp", pico.images())
    one, two = edit_of(found, seed=1), edit_of(found, seed=2)
    both = Edit(torch.stack([one.read, two.read]), torch.stack([one.write, two.write]), space="mlp")
    out = found.apply(both, seen)
    assert out.shape == (2, 4, clip.dim)
    assert distance(out[1], found.apply(two, seen)) < 1e-12
    assert distance(out[0], out[1]) > 0.05
    with pytest.raises(ValueError, match=r"a batch of edits \[2\] cannot be folded: index one"):
        clip.fold(both)


def test_edits_compose_in_any_order(clip_of, random_edit):
    clip = clip_of("ViT-B-32")
    found = clip.last_mlp()
    one, two, joint = edit_of(found, seed=1), edit_of(found, seed=2), random_edit(clip.dim)
    twice = torch.from_numpy(by_hand(clip, found, [one, two]))
    assert distance(clip.fold(one).fold(two).encode_image(pico.images()), twice) < 1e-5
    assert [edit["seed"] for edit in clip.fold(one).fold(two).history.edits] == [1, 2]
    assert distance(clip.fold(one).encode_image(pico.images()), twice) > 0.05  # control
    # The two matrices are apart, so the order in which they are edited does not matter.
    expected = joint.apply(torch.from_numpy(by_hand(clip, found, [one])))
    for first, second in ((one, joint), (joint, one)):
        folded = clip.fold(first).fold(second)
        assert distance(folded.encode_image(pico.images()), expected) < 1e-5
        assert {change.key for change in folded.changes} == {found.key, "visual.proj"}
    # Strength -1 undoes strength 1.
    assert distance(clip.fold(one).fold(one.scale(-1)).last_mlp().weight, found.weight) < 1e-6


def test_an_edit_that_removes_nothing_touches_nothing(clip_of):
    clip = clip_of("ViT-B-32")
    found = clip.last_mlp()
    nothing = Edit(torch.zeros(found.mlp_width, 0), torch.zeros(found.width, 0), space="mlp")
    assert clip.fold(nothing) is clip
    assert clip.fold(edit_of(found).scale(0.0)) is clip
    assert clip.fold(edit_of(found)) is not clip  # control


def test_half_precision_composes_without_rounding_in_between(folder):
    """Oracle: both edits on the half-precision weights, in float64."""
    clip = load(str(folder("ViT-B-32")), device="cpu", precision="fp16")
    found = clip.last_mlp()
    one, two = edit_of(found, seed=1), edit_of(found, seed=2)
    folded = clip.fold(one).fold(two)
    expected = found.weight.double() - one.write @ one.read.T - two.write @ two.read.T
    assert found.weight.dtype == folded.last_mlp().weight.dtype == torch.float16
    kept = folded.changes[0].edited
    assert kept.dtype == torch.float32
    assert distance(kept, expected) < 1e-6
    assert distance(folded.last_mlp().weight, expected) > 1e-5  # control
    assert folded.read_inner("mlp", pico.images()).residual.dtype == torch.float32


def test_overflow_is_refused(folder):
    clip = load(str(folder("ViT-B-32")), device="cpu", precision="fp16")
    with pytest.raises(ValueError, match=r"edited .*c_proj.weight does not fit float16.*65504"):
        clip.fold(edit_of(clip.last_mlp()).scale(1e7))


def test_a_layer_scale_with_zeros_is_refused(folder):
    clip = load(str(folder("ViT-B-32 layer scale")), device="cpu")
    with torch.no_grad():
        clip.last_mlp().scale[:2] = 0
    with pytest.raises(ValueError, match="2 of the 16 numbers of the layer scale after it are 0"):
        clip.fold(edit_of(clip.last_mlp()))


def test_a_fold_that_does_not_take_is_an_error(clip_of, monkeypatch):
    clip = clip_of("ViT-B-32 layer scale")
    edit = edit_of(clip.last_mlp())
    # A nonlinearity after the projection, which nothing in the structure shows.
    broken, _ = fold(clip.model, edit)
    handle = broken.visual.register_forward_hook(lambda _, __, out: torch.relu(out))
    with pytest.raises(RuntimeError, match="c_proj.weight did not do what the edit says"):
        fold(broken, edit)
    handle.remove()
    fold(broken, edit)  # control: without it, all is well
    # A layer scale that is overlooked.
    monkeypatch.setattr(mlp, "_attribute", lambda *_: None)
    with pytest.raises(RuntimeError, match="did not do what the edit says"):
        clip.fold(edit)


@pytest.mark.parametrize("name", UNREACHED)
def test_other_towers_are_refused_in_one_line(name, clip_of):
    clip = clip_of(name)
    edit = Edit(torch.ones(64, 1), torch.ones(16, 1), space="mlp")
    for call in (
        clip.last_mlp,
        lambda: clip.read_inner("mlp", pico.images()),
        lambda: clip.fold(edit),
    ):
        with pytest.raises(ValueError, match=f"{UNREACHED[name]}.*; it can be in ViT") as error:
            call()
        assert "\n" not in str(error.value)
    assert describe(clip.model)["visual"]["mlp"] is None


def test_blocks_that_norm_what_the_mlp_gives_are_refused(clip_of):
    """EVA02-E's blocks: `x = y + norm(mlp(y))`, so the structure looks alike."""
    from timm.models.eva import EvaBlockPostNorm

    model = copy.deepcopy(clip_of("EVA02-B-16").model)
    find_mlp(model)  # control
    model.visual.trunk.blocks[-1] = EvaBlockPostNorm(32, 2)
    with pytest.raises(ValueError, match="ends in EvaBlockPostNorm, no pre-norm block"):
        find_mlp(model)


def test_what_does_not_fit_is_refused(clip_of, random_edit):
    clip = clip_of("ViT-B-32")
    found, seen = clip.last_mlp(), clip.read_inner("mlp", pico.images())
    edit = edit_of(found)
    narrow = Edit(edit.read[1:], edit.write, space="mlp")
    with pytest.raises(ValueError, match=r"reads 63 and writes 16 .*c_proj.weight 64 and 16"):
        clip.fold(narrow)
    with pytest.raises(ValueError, match="fold it on side 'visual'"):
        clip.fold(edit, "text")
    with pytest.raises(ValueError, match="space is 'embedding'; the last MLP takes 'mlp'"):
        found.apply(random_edit(clip.dim), seen)
    with pytest.raises(ValueError, match="write has 5 dimensions and the joint space 12"):
        found.carry_back(randn(5, 1))
    with pytest.raises(ValueError, match="write has 5 dimensions and the residual stream 16"):
        found.carry_forward(randn(5, 1))


def test_verification_leaves_training_alone(clip_of):
    model = copy.deepcopy(clip_of("ViT-B-32").model).train()
    edited, _ = fold(model, edit_of(find_mlp(model)))
    assert edited.training and model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


# The output folder.


def test_stock_open_clip_computes_our_features(clip_of, tmp_path):
    """Oracle: open_clip in a process that never imports this package, for every family."""
    folded = {}
    for name in REACHED:
        clip = clip_of(name)
        edited = clip.fold(edit_of(clip.last_mlp()))
        folded[str(edited.save(tmp_path / name.replace(" ", "-")))] = clip, edited
    out = tmp_path / "features.npz"
    command = [sys.executable, HERE / "stock.py", out, *folded]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    with np.load(out) as stock:
        for folder, (clip, edited) in folded.items():
            image, text = stock[f"{folder} image"], stock[f"{folder} text"]
            ours = edited.encode_image(pico.images())
            assert np.allclose(image, ours, rtol=1e-4, atol=1e-5), folder
            assert np.allclose(text, clip.encode_text(pico.PROMPTS), atol=1e-5), folder
            assert not np.allclose(image, clip.encode_image(pico.images()), atol=1e-2)  # control


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32 layer scale", "EVA02-B-16"])
def test_undo_brings_every_byte_back(name, folder, random_edit, tmp_path):
    source = folder(name, torch.float16)
    clip = load(str(source), device="cpu")
    found = clip.last_mlp()
    edited = clip.fold(edit_of(found)).fold(random_edit(clip.dim)).fold(edit_of(found, seed=1))
    saved = edited.save(tmp_path / "edited", undo=tmp_path / "undo")
    with safe_open(saved / WEIGHTS, "pt") as file:
        dtypes = {key: file.get_tensor(key).dtype for key in file.keys()}
    changed = {change.key for change in edited.changes}
    assert {key for key, dtype in dtypes.items() if dtype == torch.float32} == changed
    kept = load_file(saved / WEIGHTS)[found.key]
    assert torch.equal(kept, edited.changes[0].edited)
    assert f"`{found.key}` (visual side): random, random" in (saved / "README.md").read_text()
    restored = revert(saved, tmp_path / "undo", tmp_path / "restored")
    for file in source.iterdir():
        assert filecmp.cmp(restored / file.name, file, shallow=False), file.name
    assert not filecmp.cmp(saved / WEIGHTS, source / WEIGHTS, shallow=False)  # control


def test_transformers_models_fold_too():
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config={**small, "num_attention_heads": 2, "vocab_size": 64},
        vision_config={**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
        projection_dim=6,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    found = find_mlp(model)
    assert found.key == "vision_model.encoder.layers.1.mlp.fc2.weight"
    folded, changes = fold(model, edit_of(found))
    assert [change.key for change in changes] == [found.key]
    with torch.no_grad():
        plain, actual = encode(model, pico.images()), encode(folded, pico.images())
    assert distance(actual, plain) > 0.05  # that it is right, folding has verified


@pytest.mark.parametrize("name", ["nsu-mini", "clip-vit-pacs"])
def test_trained_models(name, tmp_path):
    """Models that know something, one of them stored in half precision."""
    if name != "nsu-mini" and not (SHARED / name).is_dir():
        pytest.skip("the shared models are not here")
    clip = load(name if name == "nsu-mini" else str(SHARED / name), device="cpu")
    found, images = clip.last_mlp(), torch.randn(4, 3, *clip.image_size)
    seen, wanted = clip.read_inner("mlp", images), randn(clip.dim, 1)
    assert distance(found.carry_forward(found.carry_back(wanted)), wanted) < 1e-9
    # A shift of every embedding by half of its mean norm.
    read = torch.linalg.pinv(seen.mlp.double()) @ seen.deviation.double()[:, None]
    size = seen.embedding.double().norm(dim=-1).mean() / 2
    write = found.carry_back(wanted / wanted.norm() * size)
    edit = Edit(read, write, space="mlp")
    edited = clip.fold(edit)
    assert distance(edited.encode_image(images), found.apply(edit, seen)) < 1e-4
    assert distance(edited.encode_image(images), seen.embedding) > 0.05  # control
    edited.save(tmp_path / "edited", undo=tmp_path / "undo")
    restored = revert(tmp_path / "edited", tmp_path / "undo", tmp_path / "restored")
    assert filecmp.cmp(restored / WEIGHTS, clip.source.weights, shallow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, key",
    [
        ("ViT-L-14", "visual.transformer.resblocks.23.mlp.c_proj.weight"),
        ("ViT-H-14-CLIPA", "visual.transformer.resblocks.31.mlp.c_proj.weight"),
        ("ViTamin-L", "visual.trunk.blocks.30.mlp.w2.weight"),
        ("EVA01-g-14", "visual.trunk.blocks.39.mlp.fc2.weight"),
        ("EVA02-L-14", "visual.trunk.blocks.23.mlp.fc2.weight"),
        ("EVA02-E-14", None),
        ("MobileCLIP2-B", "visual.trunk.blocks.11.mlp.fc2.weight"),
        ("PE-Core-L-14-336", None),
        ("coca_ViT-L-14", None),
    ],
)
def test_full_size_configurations_are_reached_or_refused(name, key):
    """Built on the meta device, without weights; the last block is that of the known depth."""
    config = open_clip.get_model_config(name)
    custom = config.pop("custom_text", False)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    kind = open_clip.CoCa if "multimodal_cfg" in config else kind
    with torch.device("meta"):
        found = describe(kind(**config))
    assert found["visual"]["mlp"] == key


@pytest.mark.slow
def test_full_size_vit():
    with pytest.warns(UserWarning, match="the weights are random"):
        clip = load("ViT-B-32", device="cpu")
    found, images = clip.last_mlp(), torch.randn(2, 3, 224, 224)
    edit, seen = edit_of(found), clip.read_inner("mlp", images)
    assert (found.width, found.mlp_width) == (768, 3072)
    assert distance(clip.fold(edit).encode_image(images), found.apply(edit, seen)) < 1e-5
    wanted = randn(clip.dim, 2)
    assert distance(found.carry_forward(found.carry_back(wanted)), wanted) < 1e-8


def test_the_type_of_a_block_is_checked_by_name():
    """Oracle: the classes themselves; a rename in a library must be noticed here."""
    from open_clip import transformer
    from timm.models import eva, vision_transformer
    from transformers.models.clip import modeling_clip

    owners = {"visual.transformer": [transformer], "vision_model.encoder": [modeling_clip]}
    for blocks in {family.blocks for family in FAMILIES if family.blocks}:
        for kind in blocks.kinds:
            known = owners.get(blocks.stack.rpartition(".")[0], [vision_transformer, eva])
            assert any(issubclass(getattr(o, kind, object), nn.Module) for o in known), kind
