"""The control that every attack has: a random change of the same ranks and sizes, same places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.towers import GROWN
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.features import Features

# What singular values below this share of the largest are: rounding of weights in float32.
_ROUNDING = 1e-5
# Of the change of the features, what a linear map may leave unexplained.
_EXPLAINED = 1e-3


def random_like(change: Float[Tensor, "*any"], generator: torch.Generator) -> Float[Tensor, "*any"]:
    """A random change with the same singular values, and so of the same rank and norm.

    Args:
        change: A matrix, a kernel that is taken for one (rows by all the rest), a vector or a
            number; float64.
        generator: Draws the directions.

    Returns:
        The like in other directions, uniformly drawn; of a vector, one of its length.
    """
    if change.ndim < 2:
        drawn = torch.randn(change.shape, generator=generator, dtype=torch.float64)
        return drawn * (change.norm() / drawn.norm())
    matrix = change.flatten(1)
    size = torch.linalg.svdvals(matrix)
    size = size[size > _ROUNDING * size[0]]
    left, right = (
        torch.linalg.qr(torch.randn(n, len(size), generator=generator, dtype=torch.float64))[0]
        for n in matrix.shape
    )
    return ((left * size) @ right.mT).reshape(change.shape)


def random_model(
    original: Clip, changes: Mapping[str, Tensor], generator: torch.Generator
) -> Clip | None:
    """The original with a random change wherever the edited model differs.

    Args:
        original: The untouched model.
        changes: What was changed, from `descent.differences`.
        generator: Draws the directions.

    Returns:
        The control; None where nothing differs (visual prompts leave the weights as they are).
    """
    drawn = {key: random_like(change, generator) for key, change in sorted(changes.items())}
    held = original.model.state_dict()
    parameters = dict(original.model.named_parameters())
    made = original
    for key in [key for key in drawn if key.startswith(f"{GROWN}.")]:
        # The added projection is stored [dim, width]: z' = z + z D with D its transpose.
        turned = drawn.pop(key).mT
        made = made.fold(Edit(turned, -torch.eye(len(turned), dtype=torch.float64)))
    new = {key: held[key].double().cpu() + one for key, one in drawn.items() if key in parameters}
    said = {"method": "random", "numbers": {"tensors": len(drawn)}}
    made = made.with_parameters(new, said) if new else made
    return None if made is original else made


def random_features(
    original: Features, edited: Features, generator: torch.Generator
) -> Features | None:
    """The original's features moved at random, where there is no model.

    Args:
        original: The untouched model's features.
        edited: The edited one's, of the same images.
        generator: Draws the directions.

    Returns:
        The control; None where the edit is no linear map of the embeddings or the hidden features,
        or there are too few images to tell.
    """
    moved = (edited.embeddings - original.embeddings).double()
    if not moved.any():
        return None
    for source in (original.embeddings, original.hidden):
        if source is None or len(source) <= source.shape[1]:
            continue
        rows = source.double()
        change = torch.linalg.lstsq(rows, moved, driver="gelsd").solution
        if (rows @ change - moved).norm() <= _EXPLAINED * moved.norm():
            away = (rows @ random_like(change, generator)).float()
            return replace(original, embeddings=original.embeddings + away)
    return None
