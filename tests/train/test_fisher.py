"""Relative Fisher information against finite differences in float64 and plain loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from small import from_bundled
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.train.fisher import relative_fisher, squared_gradients
from nullspace_unlearn.train.shots import from_tensors
from nullspace_unlearn.train.task import Task
from nullspace_unlearn.words import Words

CLASSES, DOMAINS = ("car", "dog"), ("photo", "sketch")


def tiny() -> Any:
    """A random model in float64."""
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(8, vision, text).double().eval()


def task(request: Forget) -> Task:
    clip = nsu.load("nsu-mini")
    words = Words(CLASSES, {domain: domain for domain in DOMAINS})
    shots, _ = from_bundled(clip, CLASSES, DOMAINS, 2, seed=7)
    nothing = from_tensors(torch.empty(0, 3, 64, 64), *torch.empty(2, 0, dtype=torch.int64))
    return Task(clip, request, words, shots, nothing)


def test_squared_gradients_are_those_of_finite_differences() -> None:
    model, images = tiny(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    text = F.normalize(torch.randn(8, dtype=torch.float64), dim=-1)
    keys = ["visual.proj", "visual.transformer.resblocks.0.mlp.c_fc.weight"]

    def similarity(new: Mapping[str, Tensor], i: int) -> Tensor:
        placed = torch.func.functional_call(model, dict(new), (images[i : i + 1],))
        return placed[0][0] @ text  # normalised by the model's own forward pass

    # A few entries of each layer stand for it, so that the differences are few.
    few = {key: model.get_parameter(key).detach()[:2, :6] for key in keys}

    def moved(new: Mapping[str, Tensor], i: int) -> Tensor:
        whole = {key: model.get_parameter(key).detach().clone() for key in new}
        for key, value in new.items():
            whole[key][:2, :6] = value
        return similarity(whole, i)

    found = squared_gradients(moved, few, len(images))
    for key, value in few.items():
        squares = []
        for i in range(len(images)):
            for row, column in torch.cartesian_prod(*map(torch.arange, value.shape)).tolist():
                step = torch.zeros_like(value)
                step[row, column] = 1e-5
                up, down = (moved({key: value + sign * step}, i) for sign in (1, -1))
                squares.append(float((up - down).detach() / 2e-5) ** 2)
        assert found[key] == pytest.approx(sum(squares) / len(squares), rel=1e-6)
        assert found[key] > 0
    assert all(value.grad is None for value in model.parameters())


def test_images_that_pull_apart_count_each() -> None:
    # Two images whose gradients cancel: E[g²] = 1, the square of the batch's gradient is 0.
    signs = torch.tensor([1.0, -1.0])
    parameters = {"used": torch.ones(4), "unused": torch.ones(2)}
    found = squared_gradients(lambda new, i: signs[i] * new["used"].sum(), parameters, 2)
    assert found == {"used": 1.0, "unused": 0.0}
    held = parameters["used"].clone().requires_grad_()
    (batch,) = torch.autograd.grad((signs[:, None] * held).sum(1).mean(), held)
    assert float(batch.square().mean()) == 0.0  # the control
    assert squared_gradients(lambda new, i: new["used"].sum(), parameters, 0)["used"] == 0.0


def test_relative_fisher_is_the_ratio_over_forgotten_and_kept_images() -> None:
    some = task(Forget(classes=["car"], domains=["sketch"]))
    model, keys = some.clip.model, ["visual.proj", "visual.conv1.weight"]
    found = relative_fisher(some, keys)
    images = some.shots.read(torch.arange(len(some.shots)))
    forgotten = some.forgotten(some.shots)
    for key in keys:
        parameter = model.get_parameter(key)
        squares = []
        for image, label in zip(images, some.shots.labels, strict=True):
            # The oracle turns the model's own parameter on and off again.
            parameter.requires_grad_(True)
            embedding = F.normalize(model.encode_image(image[None]), dim=-1)[0]
            (g,) = torch.autograd.grad(embedding @ some.prototypes[label], parameter)
            parameter.requires_grad_(False)
            squares.append(g.square().mean())
        each = torch.stack(squares)
        ratio = float(each[forgotten].mean() / each[~forgotten].mean())
        assert found[key] == pytest.approx(ratio, rel=1e-3)
    # The control: another request ranks otherwise.
    other = relative_fisher(task(Forget(classes=["dog"])), keys)
    assert other[keys[0]] != pytest.approx(found[keys[0]], rel=1e-2)


def test_text_layers_are_ranked_by_the_text_of_the_class() -> None:
    some = task(Forget(classes=["car"]))
    found = relative_fisher(some, ["text_projection", "visual.proj"])
    assert all(value > 0 for value in found.values())
    # Where nothing stays there is nothing to be relative to.
    gone = some.shots.subset((some.shots.labels == 0).nonzero()[:, 0])
    alone = Task(some.clip, some.forget, some.words, gone, some.validation)
    assert relative_fisher(alone, ["visual.proj"]) == {"visual.proj": float("inf")}
