"""Weights beside a model: what trains, what does not, and that merging changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small import from_bundled
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import class_prototypes
from nullspace_unlearn.train.task import Task, with_weights
from nullspace_unlearn.train.weights import Lora, Weights, encode_with, matrices, tower_keys
from nullspace_unlearn.words import Words


@pytest.fixture(scope="module")
def clip() -> Clip:
    return nsu.load("nsu-mini")


@pytest.fixture(scope="module")
def images(clip: Clip) -> Tensor:
    some, _ = from_bundled(clip, ["dog", "car"], ["photo"], 2, seed=5)
    return some.read(torch.arange(4))


@pytest.fixture(scope="module")
def task(clip: Clip) -> Task:
    templates = ("a photo of a {}.", "one {} here")
    words = Words(("dog", "car", "tree"), {"photo": "photo"}, class_templates=templates)
    some, none = from_bundled(clip, words.classes, ["photo"], 1, seed=5)
    return Task(clip, Forget(classes=("dog",)), words, some, none)


def nudged(module: Weights | Lora, size: float = 0.02) -> Weights | Lora:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value += size * torch.randn(value.shape, generator=generator)
    return module


def bits(clip: Clip) -> list[Tensor]:
    return [value.detach().clone() for value in clip.model.state_dict().values()]


def test_keys_name_the_parameters_of_their_towers_once(clip: Clip) -> None:
    visual, text = tower_keys(clip.model, "visual"), tower_keys(clip.model, "text")
    named = {key for key, _ in clip.model.named_parameters()}
    assert {*visual, *text} == named - {"logit_scale"} and not {*visual} & {*text}
    assert tower_keys(clip.model) == [
        key for key in dict(clip.model.named_parameters()) if key != "logit_scale"
    ]
    for key in matrices(clip.model):
        assert clip.model.get_parameter(key).ndim >= 2
    left = {*tower_keys(clip.model)} - {*matrices(clip.model)}
    tables = [key for key in left if clip.model.get_parameter(key).ndim >= 2]
    assert tables and all("embedding" in key for key in tables)


def test_unchanged_weights_are_the_model(clip: Clip, images: Tensor) -> None:
    new = Weights(clip.model, tower_keys(clip.model))()
    plain = clip.encode_image(images)
    assert torch.allclose(encode_with(clip.model, new, images), plain, atol=1e-5)
    tokens = clip.tokenizer(["a dog", "a much longer text about a car"])
    text = clip.encode_text(["a dog", "a much longer text about a car"])
    assert torch.allclose(encode_with(clip.model, new, tokens, "text"), text, atol=1e-5)
    moved = encode_with(clip.model, nudged(Weights(clip.model, tower_keys(clip.model)))(), images)
    assert not torch.allclose(moved, plain, atol=1e-2)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_low_rank_additions_start_at_the_model(clip: Clip, images: Tensor, rank: int) -> None:
    lora = Lora(clip.model, matrices(clip.model), rank, generator=torch.Generator().manual_seed(0))
    for key, value in lora().items():
        assert torch.equal(value, clip.model.get_parameter(key))
    with torch.no_grad():  # attention rounds otherwise where it keeps what gradients need
        plain = encode_with(clip.model, {}, images)
        assert torch.equal(encode_with(clip.model, lora(), images), plain)
        assert torch.equal(encode_with(clip.model, nudged(lora)(), images), plain) == (rank == 0)
    # A kernel counts as a matrix, so no addition is of a higher rank than was asked for.
    for key, value in lora().items():
        added = (value - clip.model.get_parameter(key)).double().flatten(1)
        spread = torch.linalg.svdvals(added)
        assert (spread[rank:] < 1e-4).all() and (spread[:rank] > 1e-3).all()


@pytest.mark.parametrize("kind", ["weights", "lora"])
def test_merged_is_unmerged(clip: Clip, task: Task, images: Tensor, kind: str) -> None:
    """Oracle: the model that has the parameters, by its own forward pass."""
    made = {
        "weights": lambda: Weights(clip.model, tower_keys(clip.model)),
        "lora": lambda: Lora(clip.model, matrices(clip.model), 2, scale=0.5),
    }[kind]()
    student = with_weights(task, nudged(made))
    merged = student.result({"method": "none"})
    assert torch.allclose(student.image(images), merged.encode_image(images), atol=1e-5)
    text = class_prototypes(merged, task.words.classes, task.words.class_templates)
    assert torch.allclose(student.text(), text.to(torch.float32), atol=1e-5)
    assert not torch.allclose(student.image(images), clip.encode_image(images), atol=1e-3)
    assert not torch.allclose(student.text(), task.prototypes, atol=1e-3)


def test_additions_apply_to_what_enters_the_layer(clip: Clip, images: Tensor) -> None:
    """Oracle: the two thin products added behind a linear layer, by a hook on a copy's layer."""
    key = next(key for key in matrices(clip.model, "visual") if key.endswith("c_fc.weight"))
    lora = nudged(Lora(clip.model, [key], 2, scale=0.7), 0.2)
    down, up = lora.down[0], lora.up[0]
    layer = clip.model.get_submodule(key.removesuffix(".weight"))
    hook = layer.register_forward_hook(
        lambda _, entered, left: left + 0.7 * (entered[0] @ down.mT) @ up.mT
    )
    try:
        beside = encode_with(clip.model, {}, images)
    finally:
        hook.remove()
    assert torch.allclose(encode_with(clip.model, lora(), images), beside, atol=1e-4)
    assert not torch.allclose(encode_with(clip.model, {}, images), beside, atol=1e-2)


@pytest.mark.parametrize("low_rank", [False, True])
def test_gradients_reach_only_what_trains(clip: Clip, images: Tensor, low_rank: bool) -> None:
    keys = matrices(clip.model, "visual")[-3:]
    before = bits(clip)
    module = nudged(Lora(clip.model, keys, 2) if low_rank else Weights(clip.model, keys))
    encode_with(clip.model, module(), images).square().sum().backward()
    assert len(list(module.parameters())) == len(keys) * (2 if low_rank else 1)
    for value in module.parameters():
        assert value.grad is not None and value.grad.abs().max() > 0
    for value in clip.model.parameters():
        assert value.grad is None and not value.requires_grad
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert all(map(torch.equal, before, bits(clip)))
    # The control: it is the model's parameters that would move, had they been trained in place.
    assert not torch.equal(module()[keys[0]], clip.model.get_parameter(keys[0]))


def test_gradients_are_slopes(clip: Clip, images: Tensor) -> None:
    """Oracle: central differences along a random direction."""
    key = matrices(clip.model, "visual")[-1]
    weights = Weights(clip.model, [key])
    aim = torch.randn(4, clip.dim, generator=torch.Generator().manual_seed(3))

    def loss(new: dict[str, Tensor]) -> Tensor:
        return (F.normalize(encode_with(clip.model, new, images), dim=-1) * aim).sum()

    (slope,) = torch.autograd.grad(loss(weights()), list(weights.parameters()))
    direction, step = slope / slope.norm(), 1e-2
    with torch.no_grad():
        ahead, behind = (loss({key: weights()[key] + s * direction}) for s in (step, -step))
    found = float(ahead - behind) / (2 * step)
    assert abs(found - float(slope.norm())) < 0.01 * float(slope.norm())
    half = float(ahead - loss(weights()).detach()) / (2 * step)  # the control: from one side
    assert abs(half - float(slope.norm())) > 0.1 * float(slope.norm())


def test_the_classifier_of_unchanged_weights_is_the_models(task: Task) -> None:
    expected = class_prototypes(task.clip, task.words.classes, task.words.class_templates)
    text = Weights(task.clip.model, tower_keys(task.clip.model, "text"))
    found = task.text_with(text())
    assert torch.allclose(found, expected.float(), atol=1e-5) and found.requires_grad
    assert torch.allclose(found.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(task.text_with(nudged(text)()), expected.float(), atol=1e-2)
    # Where only the image tower trains there is nothing to compute, and no gradient.
    visual = Weights(task.clip.model, tower_keys(task.clip.model, "visual"))
    assert task.text_with(nudged(visual)()) is task.prototypes


def test_what_is_refused(clip: Clip) -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Lora(clip.model, matrices(clip.model)[:1], -1)
    thin = next(key for key in tower_keys(clip.model) if clip.model.get_parameter(key).ndim == 1)
    with pytest.raises(ValueError, match="only matrices and kernels"):
        Lora(clip.model, [thin], 1)
    Lora(clip.model, matrices(clip.model)[:1], 1)
