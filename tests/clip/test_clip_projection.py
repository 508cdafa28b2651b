"""Theorem: folding an edit is applying its operator. Oracle: dense float64 numpy on features."""

from __future__ import annotations

import numpy as np
import open_clip
import pico
import pytest
import torch
from torch import nn

from nullspace_unlearn.clip import (
    FAMILIES,
    Clip,
    describe,
    encode,
    find,
    fold,
    headless,
    load,
    projection,
)
from nullspace_unlearn.clip.network import share
from nullspace_unlearn.edit import Edit

SIDES = ("visual", "text")
NO_TEXT = "ViT-SO400M-16-SigLIP-i18n-256"


def features(clip: Clip, side: str) -> np.ndarray:
    made = clip.encode_image(pico.images()) if side == "visual" else clip.encode_text(pico.PROMPTS)
    return made.double().numpy()


def operator(edit: Edit, side: str) -> np.ndarray:
    """M for rows of that side: I - read writeT, transposed for text."""
    matrix = np.eye(edit.dim) - edit.read.numpy() @ edit.write.numpy().T
    return matrix if side == "visual" else matrix.T


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def keys_of(name: str) -> tuple[str, str]:
    """Oracle: the table in the module, by the example it names."""
    plain = {"ViT-B-32-quickgelu": "ViT-B-32", "coca_ViT-B-32": "coca_base"}.get(name, name)
    family = next(f for f in FAMILIES if plain in f.examples)
    return family.visual, family.text or "none"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", pico.FAMILIES)
def test_folding_applies_the_operator(name, side, clip_of, random_edit):
    if name == NO_TEXT and side == "text":
        pytest.skip("this family has no text projection; refused in a test of its own")
    clip = clip_of(name)
    plain, edit = features(clip, side), random_edit(clip.dim)
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}

    folded = clip.fold(edit, side)

    actual = features(folded, side)
    assert distance(actual, plain @ operator(edit, side)) < 1e-5
    # Controls: the transposed operator and no operator would both be noticed.
    assert distance(actual, plain @ operator(edit, side).T) > 0.05
    assert distance(actual, plain) > 0.05
    # The other side, every tensor but the edited, and the original are as they were.
    other = SIDES[side == "visual"]
    assert np.array_equal(features(folded, other), features(clip, other))
    changed = {change.key for change in folded.changes}
    for key, value in folded.model.state_dict().items():
        assert key in changed or value.data_ptr() == clip.model.state_dict()[key].data_ptr()
    assert all(torch.equal(v, before[k]) for k, v in clip.model.state_dict().items())
    assert clip.changes == ()


@pytest.mark.parametrize("name", pico.FAMILIES)
def test_projections_are_where_the_table_says(name, clip_of):
    visual, text = keys_of(name)
    found = describe(clip_of(name).model)
    assert found["visual"]["key"] == visual
    assert found["visual"]["stored"] == ("siglip" not in name.lower())
    assert found["text"] is None if text == "none" else found["text"]["key"] == text


@pytest.mark.parametrize("name", pico.FAMILIES)
def test_the_hidden_feature_enters_the_projection(name, clip_of, random_edit):
    clip = clip_of(name)
    hidden = clip.hidden_image(pico.images()).double().numpy()
    found = clip.projection("visual")
    weight, bias = found.matrix().numpy(), found.bias()
    offset = 0.0 if bias is None else bias.numpy()
    assert hidden.shape[1] == found.width
    assert distance(hidden @ weight + offset, features(clip, "visual")) < 1e-5
    if bias is not None:
        assert distance(hidden @ weight, features(clip, "visual")) > 1e-3  # control
    both = clip.encode_both(pico.images())
    assert distance(both[0].double().numpy(), hidden) == 0
    assert distance(both[1].double().numpy(), features(clip, "visual")) < 1e-5

    edit = random_edit(clip.dim, source=found.width)
    folded = clip.fold(edit)
    assert [change.key for change in folded.changes] == [found.key]  # the bias stays
    actual = features(folded, "visual")
    shift = hidden @ edit.read.numpy() @ edit.write.numpy().T
    assert distance(actual, features(clip, "visual") - shift) < 1e-5
    assert distance(actual, features(clip, "visual") + shift) > 0.05  # control


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"])
def test_edits_folded_in_turn_compose(name, side, clip_of, random_edit):
    clip = clip_of(name)
    first, second = random_edit(clip.dim, seed=1), random_edit(clip.dim, seed=2)
    twice = clip.fold(first, side).fold(second, side)
    one, two = operator(first, side), operator(second, side)
    assert distance(features(twice, side), features(clip, side) @ one @ two) < 1e-5
    assert distance(features(twice, side), features(clip, side) @ two @ one) > 1e-2  # control
    assert [edit["seed"] for edit in twice.history.edits] == [1, 2]
    stored = clip.model.state_dict().get(twice.changes[0].key)
    original = twice.changes[0].original
    assert original is None if stored is None else torch.equal(original, stored)


def test_both_sides_give_the_same_inner_products(clip_of, random_edit):
    clip = clip_of("ViT-B-32")
    edit = random_edit(clip.dim)
    on_images = features(clip.fold(edit), "visual") @ features(clip, "text").T
    on_texts = features(clip, "visual") @ features(clip.fold(edit, "text"), "text").T
    assert distance(on_images, on_texts) < 1e-5


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP"])
def test_an_edit_that_removes_nothing_touches_nothing(name, clip_of, random_edit):
    clip = clip_of(name)
    empty = Edit(torch.zeros(clip.dim, 0), torch.zeros(clip.dim, 0))
    assert clip.fold(empty) is clip
    assert clip.fold(random_edit(clip.dim).scale(0.0)) is clip


def test_half_precision_composes_without_rounding_in_between(folder_of, random_edit):
    """Oracle: both operators on the half-precision weights, in float64."""
    clip = load(str(folder_of("ViT-B-32")), device="cpu", precision="fp16")
    weight = clip.projection().matrix().numpy()
    first, second = random_edit(clip.dim, seed=1), random_edit(clip.dim, seed=2)
    folded = clip.fold(first).fold(second)
    expected = weight @ operator(first, "visual") @ operator(second, "visual")
    assert clip.projection().weight.dtype == torch.float16
    assert folded.projection().weight.dtype == torch.float16
    kept = folded.changes[0].edited
    assert kept.dtype == torch.float32
    assert distance(kept.double().numpy(), expected) < 1e-6
    assert distance(folded.projection().matrix().numpy(), expected) > 1e-5  # control


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"])
def test_what_an_edit_removed_plays_no_part(name, clip_of, random_edit):
    """Text less what no image shows scores the same, and no edit made from it brings that back."""
    clip = clip_of(name)
    random = torch.Generator().manual_seed(5)
    text, gone = (torch.randn(n, clip.dim, generator=random).double() for n in (6, 2))
    gone = torch.linalg.qr(gone.mT).Q
    edited = clip.fold(Edit(gone, gone))
    assert clip.visible(text) is text and clip.projection().unseen().shape == (clip.dim, 0)
    assert edited.projection().unseen().shape == (clip.dim, 2)
    seen, images = edited.visible(text), torch.from_numpy(features(edited, "visual"))
    assert distance((images @ seen.mT).numpy(), (images @ text.mT).numpy()) < 1e-6
    assert (seen @ gone).abs().max() < 1e-6 and (text @ gone).abs().max() > 0.1  # control
    rows = torch.linalg.qr(seen[:2].mT).Q
    for write, back in ((rows, False), (rows + gone, True)):  # the second is the control
        again = edited.fold(Edit(rows, write)).projection()
        assert (torch.linalg.matrix_norm(again.matrix() @ gone) > 1e-4) == back
        assert again.unseen().shape[-1] == (2 if back else 4)


def test_overflow_is_refused(folder_of, random_edit):
    clip = load(str(folder_of("ViT-B-32")), device="cpu", precision="fp16")
    with pytest.raises(ValueError, match=r"edited visual.proj does not fit float16.*65504"):
        clip.fold(random_edit(clip.dim).scale(1e7))


def test_a_fold_that_does_not_take_is_an_error(clip_of, random_edit, monkeypatch):
    clip = clip_of("ViT-B-32")
    edit = random_edit(clip.dim)
    # A nonlinearity after the projection, which nothing in the structure shows.
    broken, _ = fold(clip.model, edit)
    handle = broken.visual.register_forward_hook(lambda _, __, out: torch.relu(out))
    with pytest.raises(RuntimeError, match="did not do what the edit says"):
        fold(broken, edit)
    handle.remove()
    fold(broken, edit)  # control: without it, all is well
    # A transposed operator.
    real = projection._edited
    swap = lambda found, e: real(found, Edit(e.write, e.read))  # noqa: E731
    monkeypatch.setattr(projection, "_edited", swap)
    with pytest.raises(RuntimeError, match="did not do what the edit says"):
        clip.fold(edit)


def test_verification_leaves_running_statistics_alone(clip_of, random_edit):
    model = share(clip_of("RN50").model, {})
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    edited, _ = fold(model.train(), random_edit(pico.DIM))
    assert edited.training
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())


def test_what_does_not_fit_is_refused(clip_of, random_edit):
    clip, width = clip_of("ViT-B-32"), clip_of("ViT-B-32").projection().width
    cases = [
        (random_edit(clip.dim + 1), "visual", "13 dimensions and the visual projection 12"),
        (random_edit(clip.dim, source=width + 1), "visual", "reads hidden features of 17"),
        (random_edit(clip.dim, source=width), "text", "fold it on side 'visual'"),
        (
            Edit(torch.ones(2, clip.dim, 1), torch.ones(2, clip.dim, 1)),
            "visual",
            r"a batch of edits \[2\] cannot be folded",
        ),
    ]
    for edit, side, message in cases:
        with pytest.raises(ValueError, match=message):
            clip.fold(edit, side)


def test_an_unknown_side_is_refused(clip_of, random_edit):
    # Either our own check or, where annotations are checked at run time, theirs.
    with pytest.raises((ValueError, TypeError), match="visual"):
        clip_of("ViT-B-32").fold(random_edit(pico.DIM), "image")


def test_a_side_without_projection_names_the_other(clip_of, random_edit):
    clip = clip_of(NO_TEXT)
    with pytest.raises(ValueError, match="no text projection to edit; its visual side can be"):
        clip.fold(random_edit(clip.dim), "text")
    with pytest.raises(ValueError, match="nor has it a text one"):
        find(nn.Linear(2, 2))


def test_transformers_models_fold_too(random_edit):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config={**small, "num_attention_heads": 2, "vocab_size": 64},
        vision_config={**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    edit = random_edit(12)
    inputs = {"visual": pico.images(), "text": torch.randint(3, 64, (4, 8))}
    for side in SIDES:
        folded, changes = fold(model, edit, side)
        with torch.no_grad():
            plain = encode(model, inputs[side], side).double().numpy()
            actual = encode(folded, inputs[side], side).double().numpy()
        assert distance(actual, plain @ operator(edit, side)) < 1e-5
        assert distance(actual, plain @ operator(edit, side).T) > 0.05  # control
        assert (
            changes[0].key
            == {"visual": "visual_projection", "text": "text_projection"}[side] + ".weight"
        )


def test_gradients_flow_through_the_hidden_feature(clip_of):
    images = pico.images().requires_grad_()
    encode(headless(clip_of("RN50").model), images).square().sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.slow
def test_every_configuration_of_open_clip_has_its_projections(monkeypatch):
    """All 144 on the meta device, towers one layer deep; none needs the network."""
    # What has no values needs none drawn, which took most of the time.
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if config["text_cfg"].get("hf_model_name"):
            continue  # its text tower is described by a file on the Hugging Face Hub
        for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
            if isinstance(config.get(part, {}).get("layers"), int):
                config[part]["layers"] = 1
        custom = config.pop("custom_text", False)
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        kind = open_clip.CoCa if "multimodal_cfg" in config else kind
        with torch.device("meta"):
            found = describe(kind(**config))
        assert found["visual"]["dim"] == config["embed_dim"], name
        assert (found["text"] is None) == (name == NO_TEXT), name
        assert name == NO_TEXT or found["text"]["dim"] == config["embed_dim"], name


@pytest.mark.slow
def test_full_size_vit(random_edit):
    with pytest.warns(UserWarning, match="the weights are random"):
        clip = load("ViT-B-32", device="cpu")
    edit = random_edit(clip.dim)
    images = torch.randn(2, 3, 224, 224)
    plain = clip.encode_image(images).double().numpy()
    actual = clip.fold(edit).encode_image(images).double().numpy()
    assert distance(actual, plain @ operator(edit, "visual")) < 1e-5
