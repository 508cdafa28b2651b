"""Forget, remind, restore: alignment, soup, what trains, and what a short run does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from small import from_bundled
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.train import train
from nullspace_unlearn.train.alignment import Moments, align, distance, moments, stored
from nullspace_unlearn.train.shots import Shots
from nullspace_unlearn.train.subgroup import (
    Subgroup,
    choose,
    restored,
    soup,
)
from nullspace_unlearn.train.task import Task, validate, with_weights
from nullspace_unlearn.train.weights import Lora, Weights, encode_with, matrices
from nullspace_unlearn.words import Words

CLASSES, DOMAINS = ("car", "dog", "flower"), ("photo", "sketch")


@cache
def bundled() -> Clip:
    return nsu.load("nsu-mini")


@cache
def pictures() -> tuple[Shots, Shots]:
    return from_bundled(bundled(), CLASSES, DOMAINS, 4, 2, seed=8)


def task(request: Forget, validation: bool = True) -> Task:
    shots, others = pictures()
    words = Words(CLASSES, {domain: domain for domain in DOMAINS})
    some = others if validation else others.subset(torch.arange(0))
    return Task(bundled(), request, words, shots, some)


CELL = Forget(classes=["car"], domains=["sketch"])


def resnet() -> Any:
    """A random tower with BatchNorm, whose stored statistics are of no image in particular."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(16, vision, text).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return model


def changed(model: Any) -> dict[str, Tensor]:
    """Parameters of a tower that has been trained: each matrix moved a little."""
    keys = matrices(model, "visual")
    held = {key: model.get_parameter(key).detach() for key in keys}
    return {key: value + 0.3 * value.std() * torch.randn_like(value) for key, value in held.items()}


def test_moments_are_those_of_what_enters_each_layer() -> None:
    model, images = resnet(), torch.randn(5, 3, 32, 32)
    first = moments(model, {}, images)[0]
    entering = F.conv2d(images, model.visual.conv1.weight, stride=2, padding=1).double()
    torch.testing.assert_close(first.mean.double(), entering.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    variance = entering.var((0, 2, 3), correction=0)
    torch.testing.assert_close(first.variance.double(), variance, rtol=1e-4, atol=1e-6)
    target = stored(model, [])
    assert torch.equal(target[0].mean, model.visual.bn1.running_mean)
    assert len(target) == len(moments(model, {}, images))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_batchnorm_the_statistics_are_those_of_all_images() -> None:
    model, images = bundled().model, torch.randn(7, 3, 64, 64)
    parts = stored(model, [images[:2], images[2:]])
    for part, whole in zip(parts, moments(model, {}, images), strict=True):
        torch.testing.assert_close(part.mean, whole.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.variance, whole.variance, rtol=1e-4, atol=1e-5)
    assert float(distance(parts, parts)) == 0
    with pytest.raises(ValueError, match="there is none"):
        stored(model, [])


def test_distance_is_the_loop() -> None:
    def some(seed: int) -> list[Moments]:
        random = torch.Generator().manual_seed(seed)
        return [
            Moments(torch.randn(n, generator=random), torch.rand(n, generator=random) + 0.1)
            for n in (3, 5)
        ]

    found, target = some(0), some(1)
    layers = []
    for one, aim in zip(found, target, strict=True):
        floor = 0.01 * float(aim.variance.double().mean())
        channels = []
        for m, v, m0, v0 in zip(one.mean, one.variance, aim.mean, aim.variance, strict=True):
            s2 = float(v0) + floor
            off = (float(m) - float(m0)) ** 2 / s2
            channels.append(off + (((float(v) + floor) / s2) ** 0.5 - 1) ** 2)
        layers.append(sum(channels) / len(channels))
    assert float(distance(found, target)) == pytest.approx(sum(layers) / len(layers), rel=1e-5)


@pytest.mark.parametrize("tower", ["BatchNorm", "LayerNorm"])
def test_alignment_brings_statistics_nearer(tower: str) -> None:
    model = resnet() if tower == "BatchNorm" else bundled().model
    side = 32 if tower == "BatchNorm" else 64
    images = torch.randn(4, 3, side, side)
    new = changed(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    target = stored(model, [images])

    def off(some: Tensor) -> float:
        with torch.no_grad():
            return float(distance(moments(model, new, some), target))

    moved = align(model, new, images, target, steps=4, radius=0.1)
    noise = images + 0.1 * torch.randn_like(images).sign()
    assert off(moved) < min(off(images), off(noise))
    assert 0 < float((moved - images).abs().max()) <= 0.1 + 1e-6
    assert torch.equal(align(model, new, images, target, steps=0, radius=0.1), images)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_soup_is_the_original_and_the_other_at_its_ends() -> None:
    some = task(CELL)
    model = some.clip.model
    new = changed(model)
    images = some.shots.read(torch.arange(3))
    ends = {alpha: soup(some, new, alpha) for alpha in (0.0, 0.5, 1.0)}
    for alpha, student in ends.items():
        result = student.result({})
        for key, value in new.items():
            original, held = model.get_parameter(key), result.model.get_parameter(key)
            if alpha != 0.5:
                assert torch.equal(held, original if alpha == 0 else value)
            else:
                assert not torch.equal(held, original)
                torch.testing.assert_close(held, (original + value) / 2)
        torch.testing.assert_close(
            result.encode_image(images), student.image(images), rtol=1e-4, atol=1e-4
        )
        assert not any(value.requires_grad for value in student.module.parameters())
    torch.testing.assert_close(ends[1.0].image(images), encode_with(model, new, images))


def test_the_soup_is_the_best_of_its_grid() -> None:
    some = task(CELL, validation=False)
    new = changed(some.clip.model)
    judge = Task(some.clip, some.forget, some.words, some.shots, some.shots)  # calibrates on these
    found = validate(judge, restored(some, new, grid=4))["balance"]
    assert found == max(
        validate(judge, soup(some, new, share / 3))["balance"] for share in range(4)
    )


def test_low_rank_additions_of_rank_0_are_the_model() -> None:
    some = task(CELL)
    keys = matrices(some.clip.model, "visual")
    images = some.shots.read(torch.arange(3))
    with torch.no_grad():
        plain = encode_with(some.clip.model, {}, images)
        nothing, grown = (Lora(some.clip.model, keys, rank) for rank in (0, 2))
        assert torch.equal(with_weights(some, nothing).image(images), plain)
        assert torch.equal(with_weights(some, grown).image(images), plain)
        torch.nn.init.normal_(grown.up[0])  # the control
        trained = with_weights(some, grown)
        assert not torch.allclose(trained.image(images), plain, rtol=0.1)
        merged = trained.result({}).encode_image(images)
        torch.testing.assert_close(merged, trained.image(images), rtol=1e-4, atol=1e-4)


def test_layers_are_as_many_as_asked_for() -> None:
    some = task(CELL)
    every = choose(Subgroup(ranking="all"), some)
    assert every == matrices(some.clip.model, "visual")
    drawn = choose(Subgroup(ranking="random", layers=3), some)
    assert len(drawn) == 3 and set(drawn) < set(every)
    with pytest.raises(ValueError, match="1 layer"):
        Subgroup(layers=0)
    with pytest.raises(ValueError, match="decay"):
        Subgroup(decay=1.0)


@pytest.mark.parametrize("lora", [True, False])
def test_a_stage_trains_its_layers_and_nothing_else(lora: bool) -> None:
    some = task(CELL, validation=False)
    model = some.clip.model
    stages = Subgroup(ranking="random", layers=2, lora=lora).stages(some)
    stage = next(stages)
    assert isinstance(stage.student.module, Lora if lora else Weights)
    images = some.shots.read(torch.arange(2))
    stage.student.image(images).sum().backward()
    assert all(value.grad is None for value in model.parameters())
    grads = [value.grad for value in stage.student.module.parameters()]
    assert all(g is not None for g in grads) and any(g.any() for g in grads if g is not None)


def test_the_average_follows_the_learner() -> None:
    some = task(CELL, validation=False)
    method = Subgroup(ranking="random", layers=1, decay=0.75, align=False, lora=False)
    stages = method.stages(some)
    learner: Any = next(stages).student.module
    stage = next(stages)
    start = learner.values[0].detach().clone()
    with torch.no_grad():
        learner.values[0].add_(1)
    assert stage.after_step is not None
    stage.after_step()
    (mean,) = stage.student.module.average.values  # type: ignore[union-attr]
    torch.testing.assert_close(mean.detach(), start + 0.25)
    held = {name for name, _ in stage.student.module.named_parameters()}
    assert len(held) == 2  # both are kept with the run


@pytest.mark.parametrize(
    "request_",
    [
        CELL,
        pytest.param(Forget(classes=["car"]), marks=pytest.mark.slow),
        pytest.param(Forget(domains=["sketch"]), marks=pytest.mark.slow),
    ],
    ids=lambda r: r.paradigm,
)
def test_a_short_run_forgets_and_a_still_one_does_not(request_: Forget) -> None:
    some = task(request_)
    before = {key: value.clone() for key, value in some.clip.model.state_dict().items()}
    judge = Task(some.clip, request_, some.words, some.shots, some.shots)

    def forgotten(clip: Clip) -> float:
        keys = [key for key, _ in clip.model.named_parameters()]
        return validate(judge, with_weights(judge, Weights(clip.model, keys)))["forgotten"]

    quick = Subgroup(epochs=1, lr=1e-2, forget_epochs=6, layers=4, ranking="random", steps=1)
    untouched = forgotten(some.clip)
    trained = train(quick, some, quiet=True)
    still = train(replace(quick, forget_epochs=1, lr=1e-9, soup=False), some, quiet=True)
    assert {line["stage"] for line in trained.log} == {"forget", "remind"}
    assert forgotten(trained.clip) < untouched - 0.2
    assert forgotten(still.clip) == pytest.approx(untouched)
    for key, value in some.clip.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert trained.clip.history.edits[-1]["method"] == "subgroup"
