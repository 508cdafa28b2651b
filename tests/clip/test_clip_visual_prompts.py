"""Theorems: prompts stand where they should and nowhere else; an adapter folder brings them back.

Oracles: the untouched tower, and the definition written out as a loop in float64.
"""

from __future__ import annotations

import shutil

import pico
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nullspace_unlearn.clip import (
    Clip,
    VisualPrompts,
    attach,
    encode,
    load,
    new_prompts,
    read_folder,
    save_adapter,
    with_prompts,
)
from nullspace_unlearn.files import OutputExists

FILE = "adapter.safetensors"
TAKE = {
    "ViT-B-32": 1,
    "ViT-B-32-quickgelu": 1,
    "vit_medium_patch16_gap_256": 0,
    "ViTamin-S": 0,
    "MobileCLIP-B": 1,
    "coca_base": 1,
    "coca_ViT-B-32": 1,
    "coca_roberta-ViT-B-32": 1,
    "nllb-clip-base": 1,
    "roberta-ViT-B-32": 1,
    "mt5-base-ViT-B-32": 1,
    "ViT-B-16-SigLIP": 0,
    "nllb-clip-base-siglip": 0,
    "ViT-SO400M-16-SigLIP-i18n-256": 0,
}
"""Families that take prompts, and how many tokens stand before their patches."""


@pytest.fixture(scope="module")
def mini() -> Clip:
    return load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def pictures(mini: Clip) -> torch.Tensor:
    return torch.randn(3, 3, *mini.image_size, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def prompted(mini: Clip) -> Clip:
    """Prompts that do something, made from the image."""
    return attach(mini, stirred(new_prompts(mini.model)), {"method": "random", "seed": 0})


def stirred(prompts: VisualPrompts) -> VisualPrompts:
    """Prompts with no parameter at its initial value, so that every one matters."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in prompts.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=random))
    return prompts


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("name", pico.FAMILIES)
def test_a_tower_takes_prompts_or_says_that_it_does_not(name, clip_of):
    model = clip_of(name).model
    if name not in TAKE:
        with pytest.raises(ValueError, match="takes no visual prompts; plain vision transf") as no:
            new_prompts(model, generator=False)
        assert "\n" not in str(no.value)
        return
    images = pico.images()
    prompts = stirred(new_prompts(model, generator=False))
    none = VisualPrompts(prompts.values.shape[0], 0, prompts.values.shape[2], 0)
    plain = encode(model, images)
    torch.testing.assert_close(encode(with_prompts(model, none), images), plain)
    assert distance(encode(with_prompts(model, prompts), images), plain) > 1e-3  # the control


def test_no_prompted_block_is_the_untouched_tower(mini, pictures):
    none = VisualPrompts(0, 8, 128, 0)
    assert torch.equal(attach(mini, none, {}).encode_image(pictures), mini.encode_image(pictures))


def written_out(tower: nn.Module, prompts: VisualPrompts, image: torch.Tensor) -> torch.Tensor:
    """The definition, one image and one layer at a time."""
    x = tower.conv1(image[None]).flatten(2)[0].T
    x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
    x = tower.ln_pre(x)
    head, patches, own, first = x[:1], x[1:], x[:0], x[1:]
    for layer, block in enumerate(tower.transformer.resblocks):
        if layer < len(prompts.values):
            own = prompts.values[layer]
            if layer and prompts.generator is not None:
                own = own + attention(prompts.generator, own, first)
        x = block(torch.cat([head, own, patches])[None])[0]
        head, own, patches = x[:1], x[1 : 1 + len(own)], x[1 + len(own) :]
        if layer == 0:
            first = patches
    x = tower.ln_post(torch.cat([head, patches]))
    return (x[0] if tower.pool_type == "tok" else x[1:].mean(0)) @ tower.proj


def attention(generator: nn.Module, prompts: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Multi-head cross-attention, head by head."""
    q, k = generator.norm_prompts(prompts), generator.norm_patches(patches)
    inner, heads = generator.attention, generator.attention.num_heads
    wq, wk, wv = inner.in_proj_weight.chunk(3)
    bq, bk, bv = inner.in_proj_bias.chunk(3)
    parts = []
    for w in range(heads):
        of = slice(w * len(wq) // heads, (w + 1) * len(wq) // heads)
        scores = (q @ wq[of].T + bq[of]) @ (k @ wk[of].T + bk[of]).T
        share = (scores / (of.stop - of.start) ** 0.5).softmax(-1)
        parts.append(share @ (k @ wv[of].T + bv[of]))
    return torch.cat(parts, -1) @ inner.out_proj.weight.T + inner.out_proj.bias


@pytest.mark.parametrize("generator", [False, True])
def test_prompted_tower_is_its_definition(mini, pictures, generator):
    model = load("nsu-mini", device="cpu").model.double()
    prompts = stirred(new_prompts(model, tokens=3, depth=4, generator=generator)).double()
    images = pictures.double()
    with torch.no_grad():
        seen = encode(with_prompts(model, prompts), images)
        expected = torch.stack([written_out(model.visual, prompts, image) for image in images])
        plain = encode(model, images)
    torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-10)
    assert distance(seen, plain) > 1e-2  # the control


def test_generator_starts_as_plain_prompts(mini, pictures):
    made = new_prompts(mini.model)
    plain = new_prompts(mini.model, generator=False)
    with torch.no_grad():
        plain.values.copy_(made.values)
    seen = [encode(with_prompts(mini.model, some), pictures) for some in (made, plain)]
    torch.testing.assert_close(*seen)
    other = encode(with_prompts(mini.model, stirred(made)), pictures)
    assert distance(other, seen[1]) > 1e-3  # the control


def test_gradients_reach_every_prompt_and_no_weight(mini, pictures):
    prompts = stirred(new_prompts(mini.model))
    encode(with_prompts(mini.model, prompts), pictures).square().sum().backward()
    keys = prompts.generator.attention.in_proj_bias
    for name, value in prompts.named_parameters():
        assert value.grad is not None and value.grad.flatten(1 if value.ndim > 1 else 0).any(), name
    # A bias of the keys moves all scores of a query alike, which a softmax does not see.
    assert keys.grad[128:256].abs().max() < 1e-3 * keys.grad[256:].abs().max()
    assert prompts.values.grad.flatten(1).any(1).all()  # every layer's
    assert all(p.grad is None for p in mini.model.parameters())


def test_the_model_is_left_as_it_was(mini, prompted, pictures):
    before = {key: value.clone() for key, value in mini.model.state_dict().items()}
    plain = mini.encode_image(pictures)
    assert distance(prompted.encode_image(pictures), plain) > 1e-2  # the control
    assert torch.equal(mini.encode_image(pictures), plain)
    after = mini.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_prompted_clip_reads_as_any_other(prompted, pictures):
    z = prompted.encode_image(pictures)
    with torch.no_grad():
        torch.testing.assert_close(z, encode(prompted.model, pictures))
    hidden, again = prompted.encode_both(pictures)
    torch.testing.assert_close(again, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prompted.project(hidden), z, rtol=1e-4, atol=1e-4)


def test_half_precision(pictures):
    clip = load("nsu-mini", device="cpu", precision="bf16")
    made = attach(clip, stirred(new_prompts(clip.model)), {})
    whole = attach(load("nsu-mini", device="cpu"), made.adapter.prompts, {})
    assert distance(made.encode_image(pictures), whole.encode_image(pictures)) < 0.1


def test_numbers_out_of_range_are_refused(mini):
    for numbers in ({"depth": 7}, {"tokens": 0}):
        with pytest.raises(ValueError, match="1 to 6 blocks"):
            new_prompts(mini.model, **numbers)
    with pytest.raises(ValueError, match="2 blocks at least"):
        new_prompts(mini.model, depth=1)
    assert new_prompts(mini.model, depth=1, generator=False).heads == 0


def test_prompts_of_another_tower_are_refused(mini, clip_of, prompted):
    with pytest.raises(ValueError, match="of width 16"):
        attach(mini, new_prompts(clip_of("ViT-B-32").model, generator=False), {})
    with pytest.raises(ValueError, match="has prompts already"):
        new_prompts(prompted.model)


def test_a_prompted_clip_is_neither_edited_nor_saved_as_a_model(prompted, random_edit, tmp_path):
    weight = {"logit_scale": torch.tensor(1.0)}
    for act in (
        lambda: prompted.fold(random_edit(prompted.dim)),
        lambda: prompted.fold(random_edit(prompted.dim), "text"),
        lambda: prompted.with_parameters(weight, {}),
        lambda: prompted.save(tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match="visual prompts cannot be") as error:
            act()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("generator", [False, True])
def test_adapter_folder_brings_the_same_bits_back(mini, pictures, tmp_path, generator):
    made = attach(mini, stirred(new_prompts(mini.model, generator=generator)), {"a": [1, 2.5]})
    folder = save_adapter(made, tmp_path / "out", recipe={"what": "x"}, report={"h": 0.5})
    again = load(folder, device="cpu")
    assert torch.equal(again.encode_image(pictures), made.encode_image(pictures))
    assert again.adapter.provenance == {"a": [1, 2.5]}
    assert read_folder(folder).recipe == {"what": "x"} and read_folder(folder).report == {"h": 0.5}
    assert "nsu-mini" in (folder / "README.md").read_text()
    with pytest.raises(OutputExists):
        save_adapter(made, folder)
    save_adapter(again, folder, overwrite=True)
    once_more = load(f"local-dir:{folder}", device="cpu")
    assert torch.equal(once_more.encode_image(pictures), made.encode_image(pictures))
    assert not torch.equal(mini.encode_image(pictures), made.encode_image(pictures))  # control


def test_a_local_model_is_looked_for_beside_the_adapter(folder_of, tmp_path):
    here = tmp_path / "here"
    shutil.copytree(folder_of("ViT-B-32"), here / "my-model")
    clip = load(here / "my-model", device="cpu")
    made = attach(clip, stirred(new_prompts(clip.model, generator=False)), {})
    folder = save_adapter(made, here / "out")
    images, z = pico.images(), made.encode_image(pico.images())
    assert torch.equal(load(folder, device="cpu").encode_image(images), z)
    assert str(tmp_path) not in str(safe_open(str(folder / FILE), "pt").metadata())
    away = shutil.copytree(folder, tmp_path / "away" / "out")
    with pytest.raises(ValueError, match="'my-model', which is not in"):
        load(away, device="cpu")
    found = load(away, device="cpu", base=here / "my-model")
    assert torch.equal(found.encode_image(images), z)


def test_prompts_of_another_model_are_refused(prompted, folder_of, tmp_path):
    folder = save_adapter(prompted, tmp_path / "out")
    other = load(folder_of("ViT-B-32"), device="cpu")
    with pytest.raises(ValueError, match="belongs to") as error:
        load(folder, device="cpu", base=folder_of("ViT-B-32"))
    assert prompted.source.sha256 in str(error.value) and other.source.sha256 in str(error.value)
    with pytest.raises(ValueError, match="no folder of visual prompts"):
        load("nsu-mini", device="cpu", base="nsu-mini")


def test_what_could_not_be_found_again_is_not_written(mini, clip_of, random_edit, tmp_path):
    with pytest.raises(ValueError, match="no visual prompts to write"):
        save_adapter(mini, tmp_path / "out")
    edited = mini.fold(random_edit(mini.dim))
    with pytest.raises(ValueError, match="has been edited"):
        save_adapter(attach(edited, new_prompts(edited.model), {}), tmp_path / "out")
    clip = clip_of("ViT-B-32")
    made = attach(clip, new_prompts(clip.model, generator=False), {})
    with pytest.raises(ValueError, match="holds the model"):
        save_adapter(made, clip.source.folder, overwrite=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    ["cut", "format", "shape", "missing", "extra", "nan", "dtype", "heads", "depth", "provenance"],
)
def test_damaged_adapters_are_refused(prompted, tmp_path, damage):
    file = save_adapter(prompted, tmp_path / "out") / FILE
    with safe_open(str(file), "pt") as held:
        header = dict(held.metadata())
    state = load_file(file)
    if damage == "format":
        header["format"] = "pt"
    elif damage == "shape":
        state["generator.norm_prompts.weight"] = torch.ones(64)
    elif damage == "missing":
        del state["generator.norm_prompts.weight"]
    elif damage == "extra":
        state["more"] = torch.ones(1)
    elif damage == "nan":
        state["values"][0, 0, 0] = torch.nan
    elif damage == "dtype":
        state["values"] = state["values"].half()
    elif damage == "heads":
        header["heads"] = "5"
    elif damage == "depth":
        header["depth"] = "many"
    elif damage == "provenance":
        del header["provenance"]
    save_file(state, file, metadata=header)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is no adapter file") as error:
        load(file.parent, device="cpu")
    assert "\n" not in str(error.value)
