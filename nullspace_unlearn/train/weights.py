"""Weights that train beside a frozen model: whole tensors, or low-rank additions to them.

The model itself is never touched. What trains is a small module whose forward pass gives the
model's new parameters by name; a forward pass of the model with these in place is a pure function
of them. So the untouched model is always there to be distilled from, interpolated with, or undone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nullspace_unlearn.clip.network import encode
from nullspace_unlearn.clip.prompts import encode_prompts
from nullspace_unlearn.edit import Side

Towers = Literal["visual", "text", "both"]
"""Which towers train."""


class Weights(nn.Module):
    """Copies of some of a model's parameters, to be trained whole.

    Attributes:
        keys: Their names in the model's state_dict.
    """

    def __init__(self, model: nn.Module, keys: Sequence[str]) -> None:
        super().__init__()
        self.keys = tuple(keys)
        held = (model.get_parameter(key).detach().float().clone() for key in self.keys)
        self.values = nn.ParameterList(nn.Parameter(value) for value in held)

    def forward(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return dict(zip(self.keys, self.values, strict=True))


class Lora(nn.Module):
    """Low-rank additions to some of a model's parameters: `W + (up @ down) · scale` (2106.09685).

    A kernel `[out, in, rows, columns]` counts as a matrix `[out, in · rows · columns]`.

    Attributes:
        keys: Names of the parameters in the model's state_dict; each has at least two dimensions.
        rank: Rank of each addition; 0 adds nothing.
        scale: What the additions are multiplied by.
    """

    def __init__(
        self,
        model: nn.Module,
        keys: Sequence[str],
        rank: int,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if rank < 0:
            raise ValueError(f"the rank of a low-rank addition must be at least 0, got {rank}")
        self.keys, self.rank, self.scale = tuple(keys), rank, scale
        self._base = [model.get_parameter(key).detach() for key in self.keys]
        thin = [key for key, value in zip(self.keys, self._base, strict=True) if value.ndim < 2]
        if thin:
            raise ValueError(f"only matrices and kernels take low-rank additions, not {thin[0]}")
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for value in self._base:
            rows, columns = value.shape[0], value[0].numel()
            start = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
            # One factor starts at zero, so that training starts at the model itself.
            self.down.append(nn.Parameter(start.to(value.device)))
            self.up.append(nn.Parameter(torch.zeros(rows, rank, device=value.device)))

    def forward(self) -> dict[str, Tensor]:
        """The parameters by name, additions merged in."""
        triples = zip(self.keys, self._base, self.up, self.down, strict=True)
        return {
            key: base.float() + self.scale * (up @ down).reshape(base.shape)
            for key, base, up, down in triples
        }


def matrices(model: nn.Module, towers: Towers = "both") -> list[str]:
    """Names of the parameters of some towers with at least two dimensions, tables of tokens aside.

    Args:
        model: An open_clip model.
        towers: Which towers.
    """
    return [
        key
        for key in tower_keys(model, towers)
        if model.get_parameter(key).ndim >= 2 and "embedding" not in key
    ]


def tower_keys(model: nn.Module, towers: Towers = "both") -> list[str]:
    """Names of all parameters of some towers; the logit scale belongs to none.

    Args:
        model: An open_clip model.
        towers: Which towers.
    """
    return [
        key
        for key, value in model.named_parameters()
        if key not in ("logit_scale", "logit_bias")
        and towers in ("both", "visual" if key.startswith("visual.") else "text")
        and value.is_floating_point()
    ]


def encode_with(
    model: nn.Module,
    new: Mapping[str, Tensor],
    inputs: Float[Tensor, "n 3 rows columns"] | Int[Tensor, "n context"],
    side: Side = "visual",
) -> Float[Tensor, "n dim"]:
    """Embed a batch with some parameters replaced, with gradients to them.

    Args:
        model: The model, which is not changed.
        new: Parameters by name in its state_dict.
        inputs: `[n, 3, rows, columns]` preprocessed images, or `[n, context]` token ids.
        side: The tower.

    Returns:
        `[n, dim]` float32 embeddings, not normalised.
    """
    tower = _Tower(model, side)
    placed = {f"model.{key}": value for key, value in new.items()}
    features: Tensor = torch.func.functional_call(tower, placed, (inputs,))
    return features.float()


class _Tower(nn.Module):
    """A model whose forward pass is one of its sides."""

    def __init__(self, model: nn.Module, side: Side) -> None:
        super().__init__()
        self.model: Any = model
        self.side: Side = side

    def forward(self, inputs: Tensor) -> Tensor:
        if self.side == "text":
            return encode_prompts(self.model, inputs)
        return encode(self.model, inputs)
