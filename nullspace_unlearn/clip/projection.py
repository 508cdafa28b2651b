"""The final projection of each tower: where it is stored, how an edit goes in, proof of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nullspace_unlearn.edit import Edit, Side

Layout = Literal["in_out", "out_in"]

_GROWN = "visual.head.proj"
"""Where a tower that ends in attention pooling can be given a projection stock open_clip loads."""

_PLACES: dict[Side, tuple[str, ...]] = {
    "visual": (
        "visual.proj",
        "visual.attnpool.c_proj",
        _GROWN,
        "visual.head.mlp.fc2",
        "visual.trunk.head.fc",
        "visual.trunk.head",
        "visual_projection",
    ),
    "text": ("text.text_projection", "text.proj.2", "text.proj", "text_projection"),
}
"""Candidate places, the last one the features pass through first."""

_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Allowed distance from the exact operator, relative to the features: ~1000 roundings."""


@dataclass(frozen=True, eq=False)
class Projection:
    """One tower's final projection, `z = h W + b`.

    Attributes:
        side: The tower.
        key: Name of the weight in the model's state_dict.
        bias_key: Name of the bias there, if it has one.
        layout: "in_out" for a parameter that multiplies from the right, "out_in" for a Linear.
        width: Dimension of the hidden feature h that enters it.
        dim: Dimension of the joint space it leads to.
        weight: The stored tensor, or None where the tower ends in attention pooling: W is then
            the identity, and an edit adds the tensor under `key`.
        offset: The stored bias, `[dim]`, or None.
    """

    side: Side
    key: str
    bias_key: str | None
    layout: Layout
    width: int
    dim: int
    weight: Tensor | None
    offset: Float[Tensor, " dim"] | None

    def matrix(self) -> Float[Tensor, "width dim"]:
        """W: `[width, dim]`, float64, on the CPU."""
        if self.weight is None:
            return torch.eye(self.dim, dtype=torch.float64)
        stored = self.weight.detach().to("cpu", torch.float64)
        return stored if self.layout == "in_out" else stored.mT

    def bias(self) -> Float[Tensor, " dim"] | None:
        """b: `[dim]`, float64, on the CPU; None where there is none."""
        return None if self.offset is None else self.offset.detach().to("cpu", torch.float64)

    def stored(self, matrix: Float[Tensor, "width dim"]) -> Tensor:
        """A matrix W in the layout of the stored weight, contiguous."""
        return (matrix if self.layout == "in_out" else matrix.mT).contiguous()


@dataclass(frozen=True, eq=False)
class Change:
    """What edits did to one parameter.

    Attributes:
        key: The parameter's name in the model's state_dict.
        side: The tower it belongs to.
        original: The parameter as it was loaded, or None where the edit added it.
        edited: The edited parameter in float32 at least, whatever the model computes in: rounding
            to half precision would bring 2e-4 of an erased direction back.
        provenance: How each edit folded into it came to be, first to last.
    """

    key: str
    side: Side
    original: Tensor | None
    edited: Tensor
    provenance: tuple[Mapping[str, Any], ...]

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


def find(model: nn.Module, side: Side = "visual") -> Projection:
    """Find a tower's final projection by the model's structure.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.
        side: The tower, "visual" or "text".

    Returns:
        The projection. It refers to the model's own tensors.

    Raises:
        ValueError: If there is none on that side; says which side can be edited.
    """
    found = _find(model, side)
    if found is None:
        other: Side = "text" if side == "visual" else "visual"
        editable = _find(model, other) is not None
        raise ValueError(
            f"{type(model).__name__} has no {side} projection to edit; "
            + (f"its {other} side can be edited" if editable else f"nor has it a {other} one")
        )
    return found


def describe(model: nn.Module) -> dict[str, Any]:
    """Say where a model keeps its projections, in plain JSON values.

    Args:
        model: As in `find`.

    Returns:
        For "visual" and "text": key, bias, layout, width, dim, and whether it is stored (or would
        be added); None for a side that cannot be edited.
    """
    sides: tuple[Side, ...] = ("visual", "text")
    return {
        side: None
        if (found := _find(model, side)) is None
        else {
            "key": found.key,
            "bias": found.bias_key,
            "layout": found.layout,
            "width": found.width,
            "dim": found.dim,
            "stored": found.weight is not None,
        }
        for side in sides
    }


def fold(
    model: nn.Module, edit: Edit, side: Side = "visual", before: Sequence[Change] = ()
) -> tuple[nn.Module, tuple[Change, ...]]:
    """Write an edit into a copy of a model, and prove by a forward pass that it took.

    The arithmetic is float64, cast back to the parameter's dtype. The copy is in the original's
    training mode and shares every tensor but the edited ones with it.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.
        edit: One edit, not a batch. A joint edit goes on either side (transposed on the text
            side); a hidden edit on the visual side only.
        side: The tower to change.
        before: The changes that made `model`, so that edits compose without rounding in between.

    Returns:
        The edited copy, and all changes so far, one a parameter. An edit that removes nothing
        returns the model itself and `before`.

    Raises:
        ValueError: If the edit does not fit, or the edited weights overflow the model's dtype.
        RuntimeError: If the edited tower does not compute what the edit says.
    """
    projection = find(model, side)
    _check_fits(edit, projection)
    if not (edit.read.any() and edit.write.any()):
        return model, tuple(before)
    known = {change.key: change for change in before}
    if projection.weight is not None and projection.key in known:
        weight = known[projection.key].current(projection.weight)
        projection = replace(projection, weight=weight)
    if projection.offset is not None and projection.bias_key in known:
        offset = known[projection.bias_key].current(projection.offset)
        projection = replace(projection, offset=offset)

    new = _edited(projection, edit)
    current = model.state_dict(keep_vars=True)
    like = current.get(projection.key, _entry(model))
    edited = share(model, {key: _cast(key, value, like) for key, value in new.items()})
    _verify(model, edited, edit, side)

    for key, value in new.items():
        wide = value.to(torch.promote_types(like.dtype, torch.float32))
        earlier = known.get(key)
        known[key] = Change(
            key=key,
            side=side,
            original=earlier.original if earlier else current.get(key),
            edited=wide,
            provenance=(*(earlier.provenance if earlier else ()), dict(edit.provenance)),
        )
    return edited, tuple(known.values())


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
        if owner == _GROWN and _module(copied, owner) is None:
            head = copied.get_submodule("visual.head")
            head.add_module("drop", nn.Dropout(0.0))
            dim, width = value.shape
            head.add_module("proj", nn.Linear(width, dim, bias=False, device="meta"))
        parameter = nn.Parameter(value, requires_grad=False)
        setattr(copied.get_submodule(owner), leaf, parameter)
    return copied


def headless(model: nn.Module) -> nn.Module:
    """Copy a model so that `encode(copy, images)` gives the hidden feature h instead of z.

    The visual projection is replaced by the identity; every other tensor is shared.

    Args:
        model: As in `find`.

    Returns:
        The copy; gradients flow through it to the images.

    Raises:
        ValueError: If the model has no visual projection.
    """
    projection = find(model, "visual")
    if projection.weight is None:
        return share(model, {})
    like = projection.weight
    new = {projection.key: torch.eye(projection.width, dtype=like.dtype, device=like.device)}
    if projection.bias_key is not None:
        new[projection.bias_key] = like.new_zeros(projection.width)
    return share(model, new)


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


def _entry(model: nn.Module) -> nn.Parameter:
    """Kernel of the layer that images enter."""
    tower = _module(model, "visual") or model
    return next(p for p in tower.parameters() if p.ndim == 4)


def _find(model: nn.Module, side: Side) -> Projection | None:
    if side not in _PLACES:
        raise ValueError(f"side is {side!r}; it must be 'visual' or 'text'")
    head = _module(model, "visual.head")
    for place in _PLACES[side]:
        if place.startswith("visual.trunk.") and isinstance(head, nn.Sequential) and len(head):
            continue  # the trunk's classifier is not the last thing the features pass through
        owner, _, leaf = place.rpartition(".")
        held = getattr(_module(model, owner), leaf, None)
        if isinstance(held, nn.Parameter) and held.ndim == 2:
            width, dim = held.shape
            return Projection(side, place, None, "in_out", width, dim, held, None)
        if isinstance(held, nn.Linear):
            dim, width = held.weight.shape
            bias = None if held.bias is None else f"{place}.bias"
            return Projection(
                side, f"{place}.weight", bias, "out_in", width, dim, held.weight, held.bias
            )
    if side == "visual" and _ends_in_attention_pool(model):
        trunk: Any = model.get_submodule("visual.trunk")
        dim = trunk.num_features
        return Projection(side, f"{_GROWN}.weight", None, "out_in", dim, dim, None, None)
    return None


def _ends_in_attention_pool(model: nn.Module) -> bool:
    head = _module(model, "visual.head")
    pool = _module(model, "visual.trunk.attn_pool")
    classifier = _module(model, "visual.trunk.head")
    return (
        isinstance(head, nn.Sequential)
        and len(head) == 0
        and pool is not None
        and isinstance(classifier, nn.Identity)
    )


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """The submodule of that name; None where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _check_fits(edit: Edit, projection: Projection) -> None:
    side = projection.side
    if edit.batch_shape:
        raise ValueError(f"a batch of edits {list(edit.batch_shape)} cannot be folded: index one")
    if edit.space == "hidden" and side == "text":
        raise ValueError("a hidden edit reads the visual hidden feature; fold it on side 'visual'")
    if edit.dim != projection.dim:
        raise ValueError(
            f"the edit has {edit.dim} dimensions and the {side} projection {projection.dim}"
        )
    if edit.space == "hidden" and edit.read.shape[-2] != projection.width:
        raise ValueError(
            f"the edit reads hidden features of {edit.read.shape[-2]} dimensions and the model has "
            f"{projection.width}"
        )


def _joint_on(edit: Edit, side: Side) -> Edit:
    """The joint edit as the rows of that side see it: z' = z M, t' = t Mt."""
    return edit if side == "visual" else replace(edit, read=edit.write, write=edit.read)


def _edited(projection: Projection, edit: Edit) -> dict[str, Tensor]:
    """The parameters the edit changes, as they are stored, in float64 on the CPU."""
    matrix, bias = projection.matrix(), projection.bias()
    read = edit.read.detach().to("cpu", torch.float64)
    write = edit.write.detach().to("cpu", torch.float64)
    if edit.space == "hidden":
        return {projection.key: projection.stored(matrix - read @ write.mT)}
    rows = _joint_on(replace(edit, read=read, write=write), projection.side)
    new = {projection.key: projection.stored(rows.apply(matrix))}
    if bias is not None and projection.bias_key is not None:
        new[projection.bias_key] = rows.apply(bias[None])[0]
    return new


def _cast(key: str, value: Tensor, like: Tensor) -> Tensor:
    cast = value.to(like.device, like.dtype)
    if not torch.isfinite(cast).all():
        raise ValueError(
            f"edited {key} does not fit {str(like.dtype).removeprefix('torch.')}: its largest "
            f"entry is {value.abs().max():.3g}, the largest allowed {torch.finfo(like.dtype).max:g}"
        )
    return cast


@torch.no_grad()
def _verify(model: nn.Module, edited: nn.Module, edit: Edit, side: Side) -> None:
    """Compare the edited tower on random inputs with the operator on the original's outputs."""
    # Copies, because a forward pass in training mode would move the running statistics.
    original, changed = share(model, {}).eval(), share(edited, {}).eval()
    inputs = _probe(model, side)
    with _exact_products():
        plain = encode(original, inputs, side).double()
        actual = encode(changed, inputs, side).double()
        if edit.space == "hidden":
            hidden = encode(headless(original), inputs, side).double()
            expected = edit.apply(plain, hidden)
        else:
            expected = _joint_on(edit, side).apply(plain)
    scale = plain.norm() + (plain - expected).norm()
    error = float((actual - expected).norm() / scale) if scale > 0 else 0.0
    key = find(edited, side).key
    tolerance = _TOLERANCE[edited.get_parameter(key).dtype]
    if not error <= tolerance:
        raise RuntimeError(
            f"folding into {key} did not do what the edit says: features are "
            f"off by {error:.2g} of their size, allowed {tolerance:g}; the model was not changed"
        )


def _probe(
    model: nn.Module, side: Side
) -> Float[Tensor, "2 3 rows columns"] | Int[Tensor, "2 context"]:
    """Two random inputs for a tower, the same ones every time."""
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
def _exact_products() -> Iterator[None]:
    """Switch TF32 products off: their rounding is larger than what is looked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
