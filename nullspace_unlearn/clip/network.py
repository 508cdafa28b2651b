"""What folding does to a network, whatever the edit: copy, replace, record, compare.

Nothing here knows an edit or where a family keeps its parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nullspace_unlearn.clip.towers import GROWN
from nullspace_unlearn.edit import Side

_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Allowed distance from the exact operator, relative to the features: ~1000 roundings."""


@dataclass(frozen=True, eq=False)
class Change:
    """What edits did to one parameter.

    Attributes:
        key: The parameter's name in the model's state_dict.
        side: The tower it belongs to.
        original: The parameter as it was loaded, or None where the edit added it.
        edited: The edited parameter in float32 at least, whatever the model computes in: rounding
            to half precision would bring 2e-4 of an erased direction back.
    """

    key: str
    side: Side
    original: Tensor | None
    edited: Tensor

    def current(self, parameter: Tensor) -> Tensor:
        """The parameter as the model holds it now, without its rounding where it is known.

        Args:
            parameter: The parameter in the edited model.

        Returns:
            `edited`, on the CPU; unless the model has been trained on since, then `parameter`.
        """
        held = parameter.detach().cpu()
        if torch.equal(self.edited.to(held.dtype), held):
            return self.edited
        return held.to(self.edited.dtype)


def share(model: nn.Module, replaced: Mapping[str, Tensor]) -> nn.Module:
    """Copy a model's modules but not its tensors, except for some parameters.

    Args:
        model: The model.
        replaced: New values, by name in the state_dict. The added projection of an attention-pool
            tower may be among them; any other name must exist.

    Returns:
        The copy; replaced parameters do not require gradients.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copied = copy.deepcopy(model, shared)
    for key, value in replaced.items():
        owner, _, leaf = key.rpartition(".")
        if owner == GROWN and submodule(copied, owner) is None:
            head = copied.get_submodule("visual.head")
            head.add_module("drop", nn.Dropout(0.0))
            dim, width = value.shape
            head.add_module("proj", nn.Linear(width, dim, bias=False, device="meta"))
        parameter = nn.Parameter(value, requires_grad=False)
        setattr(copied.get_submodule(owner), leaf, parameter)
    return copied


def replace_parameters(model: nn.Module, new: Mapping[str, Tensor]) -> nn.Module:
    """`share`, with the new parameters cast to what the model computes in.

    Args:
        model: The model.
        new: New parameters, by name in the state_dict, in float64.

    Returns:
        The copy.

    Raises:
        ValueError: If a parameter overflows the model's dtype.
    """
    held = model.state_dict(keep_vars=True)
    cast = {key: _cast(key, value, held.get(key, _entry(model))) for key, value in new.items()}
    return share(model, cast)


def current(before: Sequence[Change], key: str, parameter: Tensor) -> Tensor:
    """A parameter without the rounding of the changes made to it before.

    Args:
        before: The changes that made the model.
        key: The parameter's name in the state_dict.
        parameter: The parameter as the model holds it.

    Returns:
        `parameter` itself where no change concerns it, else what `Change.current` says.
    """
    known = {change.key: change for change in before}
    return known[key].current(parameter) if key in known else parameter


def record(
    model: nn.Module,
    new: Mapping[str, Tensor],
    side: Side,
    before: Sequence[Change],
) -> tuple[Change, ...]:
    """All changes after one more edit, one a parameter.

    Args:
        model: The model before the edit.
        new: The parameters the edit changed, by name in the state_dict, in float64.
        side: The tower they belong to.
        before: The changes that made `model`.

    Returns:
        The changes that made the edited model from the one that was loaded.
    """
    known = {change.key: change for change in before}
    held = model.state_dict(keep_vars=True)
    for key, value in new.items():
        dtype = held.get(key, _entry(model)).dtype
        earlier = known.get(key)
        known[key] = Change(
            key=key,
            side=side,
            original=earlier.original if earlier else held.get(key),
            edited=value.to(torch.promote_types(dtype, torch.float32)),
        )
    return tuple(known.values())


def encode(model: nn.Module, inputs: Tensor, side: Side = "visual") -> Float[Tensor, "n dim"]:
    """Embed a batch, unnormalised, with gradients.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.
        inputs: `[n, 3, rows, columns]` preprocessed images in the dtype the tower computes in, or
            `[n, context]` token ids.
        side: The tower.

    Returns:
        `[n, dim]` embeddings as the tower gives them.
    """
    network: Any = model
    if hasattr(model, "get_image_features"):
        features = (
            network.get_image_features(pixel_values=inputs)
            if side == "visual"
            else network.get_text_features(input_ids=inputs)
        )
        return features if isinstance(features, Tensor) else features.pooler_output
    # Said explicitly, since CoCa normalises by default and the others do not.
    encoder = network.encode_image if side == "visual" else network.encode_text
    return encoder(inputs, normalize=False)


def input_dtype(model: nn.Module) -> torch.dtype:
    """The dtype a model wants its images in: that of the layer they enter."""
    return _entry(model).dtype


def check_took(
    edited: nn.Module,
    key: str,
    plain: Float[Tensor, "n dim"],
    expected: Float[Tensor, "n dim"],
    actual: Float[Tensor, "n dim"],
) -> None:
    """Refuse an edit whose tower does not compute what the edit says.

    Args:
        edited: The edited model.
        key: The edited parameter, whose dtype decides what rounding may do.
        plain: `[n, dim]` features of the model before the edit.
        expected: `[n, dim]` what the edit says they become.
        actual: `[n, dim]` what the edited tower computes.

    Raises:
        RuntimeError: If actual and expected differ by more than rounding.
    """
    scale = plain.norm() + (plain - expected).norm()
    error = float((actual - expected).norm() / scale) if scale > 0 else 0.0
    tolerance = _TOLERANCE[edited.get_parameter(key).dtype]
    if not error <= tolerance:
        raise RuntimeError(
            f"folding into {key} did not do what the edit says: features are "
            f"off by {error:.2g} of their size, allowed {tolerance:g}; the model was not changed"
        )


def probe_inputs(
    model: nn.Module, side: Side
) -> Float[Tensor, "2 3 rows columns"] | Int[Tensor, "2 context"]:
    """Two random inputs for a tower, the same ones every time.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.
        side: The tower.

    Returns:
        `[2, 3, rows, columns]` images in the dtype the tower computes in, or `[2, context]` ids.
    """
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(0)
    network: Any = model
    ours = hasattr(model, "visual")
    if side == "visual":
        size = network.visual.image_size if ours else network.config.vision_config.image_size
        rows, columns = (size, size) if isinstance(size, int) else size
        images = torch.randn(2, 3, rows, columns, generator=random)
        return images.to(device, input_dtype(model))
    text = getattr(network, "text", network)
    if not ours:
        vocabulary, length = network.config.text_config.vocab_size, 8
    else:
        # A Hugging Face tower takes any length; open_clip's own want the full context.
        vocabulary = text.vocab_size
        length = 8 if hasattr(text, "pooler") else text.context_length
    tokens = torch.randint(3, vocabulary, (2, length), generator=random)
    return tokens.to(device)


@contextmanager
def exact_products() -> Iterator[None]:
    """Switch TF32 products off: their rounding is larger than what is looked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """The submodule of that name; None where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _entry(model: nn.Module) -> nn.Parameter:
    """Kernel of the layer that images enter."""
    tower = submodule(model, "visual") or model
    first = next((p for p in tower.parameters() if p.ndim == 4), None)
    return next(model.parameters()) if first is None else first  # a text tower alone


def _cast(key: str, value: Tensor, like: Tensor) -> Tensor:
    cast = value.to(like.device, like.dtype)
    if not torch.isfinite(cast).all():
        raise ValueError(
            f"edited {key} does not fit {str(like.dtype).removeprefix('torch.')}: its largest "
            f"entry is {value.abs().max():.3g}, the largest allowed {torch.finfo(like.dtype).max:g}"
        )
    return cast
