"""Feature statistics: what enters a tower's normalisation layers, and images moved to match it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nullspace_unlearn.train.weights import encode_with

_FLOOR = 1e-2
"""Of a layer's mean variance: a channel that hardly varies would otherwise be all that counts."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What enters one normalisation layer, over images and places.

    Attributes:
        mean: `[channels]` float32.
        variance: `[channels]` float32, biased.
    """

    mean: Float[Tensor, " channels"]
    variance: Float[Tensor, " channels"]


def moments(
    model: nn.Module, new: Mapping[str, Tensor], images: Float[Tensor, "b 3 rows columns"]
) -> list[Moments]:
    """What enters each normalisation layer of the image tower, with gradients to the images.

    Args:
        model: The model, which is not changed.
        new: Parameters by name that take the place of the model's.
        images: `[b, 3, rows, columns]`, preprocessed.

    Returns:
        One entry a layer, in the order of `named_modules`: the layers with stored statistics
        (BatchNorm) where the tower has any, else its LayerNorms.
    """
    layers = _norms(model)
    with _entering(layers) as seen:
        encode_with(model, new, images)
    return [_moments(layer, seen[layer]) for layer in layers if layer in seen]


def stored(model: nn.Module, batches: Sequence[Float[Tensor, "_ 3 rows columns"]]) -> list[Moments]:
    """The statistics a model is used to: BatchNorm's running ones, else those over some images.

    Args:
        model: The model.
        batches: Preprocessed images; not looked at where BatchNorm has stored statistics.

    Returns:
        One entry a layer, as from `moments`.

    Raises:
        ValueError: If there is neither a stored statistic nor an image.
    """
    kept = [(layer.running_mean, layer.running_var) for layer in _batch_norms(model)]
    if kept:
        return [Moments(mean.float(), variance.float()) for mean, variance in kept]
    if not batches:
        raise ValueError(
            "a tower without BatchNorm has the statistics of images, and there is none"
        )
    with torch.no_grad():
        parts = [moments(model, {}, images) for images in batches]
    weight = torch.tensor([float(len(images)) for images in batches])
    return [_pooled(of_layer, weight / weight.sum()) for of_layer in zip(*parts, strict=True)]


def distance(found: Sequence[Moments], target: Sequence[Moments]) -> Float[Tensor, ""]:
    """How far statistics are from others, in units of the latter's standard deviation.

    The mean over layers and channels of `(μ - μ')²/s² + (r/s - 1)²`, where r² and s² are the
    variances found and aimed at (after the BatchNorm term of 1912.08795, which takes differences
    that are not scaled). Chosen: scaled, so that each layer and channel counts alike; both
    variances are raised by 1% of the layer's mean.

    Args:
        found: One entry a layer.
        target: As many.
    """
    terms = []
    for one, aim in zip(found, target, strict=True):
        floor = _FLOOR * aim.variance.mean() + torch.finfo(aim.variance.dtype).tiny
        s2 = aim.variance + floor
        shift = (one.mean - aim.mean).square() / s2
        terms.append((shift + (((one.variance + floor) / s2).sqrt() - 1).square()).mean())
    return torch.stack(terms).mean()


def align(
    model: nn.Module,
    new: Mapping[str, Tensor],
    images: Float[Tensor, "b 3 rows columns"],
    target: Sequence[Moments],
    steps: int,
    radius: float,
) -> Float[Tensor, "b 3 rows columns"]:
    """Perturb images together so that their statistics come nearer to others (2506.03117).

    Chosen: steepest descent on `distance` in the largest norm, steps of `2.5 · radius / steps`
    (1706.06083); the nearest of all images on the way, so that they never end further away.

    Args:
        model: The model.
        new: Parameters by name that take the place of the model's.
        images: `[b, 3, rows, columns]`, preprocessed.
        target: What to come near to, from `stored`.
        steps: Gradient steps; 0 leaves the images as they are.
        radius: Most that an entry may change by.

    Returns:
        `[b, 3, rows, columns]`, without gradients.
    """
    fixed = {key: value.detach() for key, value in new.items()}
    shift = torch.zeros_like(images)
    best, least = shift, torch.inf
    for step in range(steps + 1):
        shift = shift.detach().requires_grad_()
        off = distance(moments(model, fixed, images + shift), target)
        if float(off.detach()) < least:
            best, least = shift.detach(), float(off.detach())
        if step < steps:
            (slope,) = torch.autograd.grad(off, shift)
            moved = shift.detach() - 2.5 * radius / steps * slope.sign()
            shift = moved.clamp(-radius, radius)
    return images + best


def _batch_norms(model: nn.Module) -> list[Any]:
    """Layers of the image tower that have stored statistics."""
    return [
        layer
        for name, layer in model.named_modules()
        if name.startswith("visual.")
        and isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.running_mean is not None
    ]


def _norms(model: nn.Module) -> list[nn.Module]:
    """Normalisation layers of the image tower, of the one kind that `moments` reads."""
    return _batch_norms(model) or [
        layer
        for name, layer in model.named_modules()
        if name.startswith("visual.") and isinstance(layer, nn.LayerNorm)
    ]


@contextmanager
def _entering(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Note what enters layers; the hooks are gone afterwards."""
    seen: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] = inputs[0].float()

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _moments(layer: nn.Module, inputs: Tensor) -> Moments:
    # Channels stand last before a LayerNorm of tokens, second in maps of features.
    last = isinstance(layer, nn.LayerNorm) and inputs.shape[-1] == layer.normalized_shape[-1]
    rows = (inputs if last else inputs.movedim(1, -1)).flatten(0, -2)
    return Moments(rows.mean(0), rows.var(0, correction=0))


def _pooled(parts: Sequence[Moments], weight: Float[Tensor, " parts"]) -> Moments:
    """Moments of several batches together (the law of total variance)."""
    means, variances = (
        torch.stack([getattr(part, name) for part in parts]) for name in ("mean", "variance")
    )
    weight = weight.to(means)
    mean = weight @ means
    return Moments(mean, weight @ (variances + (means - mean).square()))
