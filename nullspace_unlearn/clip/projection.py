"""The final projection of each tower: where it is stored, how an edit goes in, proof of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nullspace_unlearn.clip.network import (
    GROWN,
    Change,
    check_took,
    current,
    encode,
    exact_products,
    probe_inputs,
    record,
    replace_parameters,
    share,
    submodule,
)
from nullspace_unlearn.edit import Edit, Side

Layout = Literal["in_out", "out_in"]

_PLACES: dict[Side, tuple[str, ...]] = {
    "visual": (
        "visual.proj",
        "visual.attnpool.c_proj",
        GROWN,
        "visual.head.mlp.fc2",
        "visual.trunk.head.fc",
        "visual.trunk.head",
        "visual_projection",
    ),
    "text": ("text.text_projection", "text.proj.2", "text.proj", "text_projection"),
}
"""Candidate places, the last one the features pass through first."""


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

    def apply(self, hidden: Float[Tensor, "*any width"]) -> Float[Tensor, "*any dim"]:
        """`z = h W + b`, in the dtype and on the device of h."""
        embeddings = hidden @ self.matrix().to(hidden)
        bias = self.bias()
        return embeddings if bias is None else embeddings + bias.to(hidden)

    def stored(self, matrix: Float[Tensor, "width dim"]) -> Tensor:
        """A matrix W in the layout of the stored weight, contiguous."""
        return (matrix if self.layout == "in_out" else matrix.mT).contiguous()


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


def fold(
    model: nn.Module, edit: Edit, side: Side = "visual", before: Sequence[Change] = ()
) -> tuple[nn.Module, tuple[Change, ...]]:
    """Write an edit into a copy of a model, and prove by a forward pass that it took.

    The arithmetic is float64, cast back to the parameter's dtype. The copy is in the original's
    training mode and shares every tensor but the edited ones with it.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.
        edit: One edit, not a batch. An embedding edit goes on either side (transposed on the text
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
    if projection.weight is not None:
        weight = current(before, projection.key, projection.weight)
        projection = replace(projection, weight=weight)
    if projection.offset is not None and projection.bias_key is not None:
        offset = current(before, projection.bias_key, projection.offset)
        projection = replace(projection, offset=offset)
    new = _edited(projection, edit)
    edited = replace_parameters(model, new)
    _verify(model, edited, edit, side)
    return edited, record(model, new, side, edit.provenance, before)


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


def _find(model: nn.Module, side: Side) -> Projection | None:
    if side not in _PLACES:
        raise ValueError(f"side is {side!r}; it must be 'visual' or 'text'")
    head = submodule(model, "visual.head")
    for place in _PLACES[side]:
        if place.startswith("visual.trunk.") and isinstance(head, nn.Sequential) and len(head):
            continue  # the trunk's classifier is not the last thing the features pass through
        owner, _, leaf = place.rpartition(".")
        held = getattr(submodule(model, owner), leaf, None)
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
        return Projection(side, f"{GROWN}.weight", None, "out_in", dim, dim, None, None)
    return None


def _ends_in_attention_pool(model: nn.Module) -> bool:
    head = submodule(model, "visual.head")
    pool = submodule(model, "visual.trunk.attn_pool")
    classifier = submodule(model, "visual.trunk.head")
    return (
        isinstance(head, nn.Sequential)
        and len(head) == 0
        and pool is not None
        and isinstance(classifier, nn.Identity)
    )


def _check_fits(edit: Edit, projection: Projection) -> None:
    side = projection.side
    if edit.space == "mlp":
        raise ValueError("an MLP edit does not go into a projection: fold it with `fold_mlp`")
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


def _embedding_edit_on(edit: Edit, side: Side) -> Edit:
    """The embedding edit as the rows of that side see it: z' = z M, t' = t Mt."""
    return edit if side == "visual" else replace(edit, read=edit.write, write=edit.read)


def _edited(projection: Projection, edit: Edit) -> dict[str, Tensor]:
    """The parameters the edit changes, as they are stored, in float64 on the CPU."""
    matrix, bias = projection.matrix(), projection.bias()
    read = edit.read.detach().to("cpu", torch.float64)
    write = edit.write.detach().to("cpu", torch.float64)
    if edit.space == "hidden":
        return {projection.key: projection.stored(matrix - read @ write.mT)}
    rows = _embedding_edit_on(replace(edit, read=read, write=write), projection.side)
    new = {projection.key: projection.stored(rows.apply(matrix))}
    if bias is not None and projection.bias_key is not None:
        new[projection.bias_key] = rows.apply(bias[None])[0]
    return new


@torch.no_grad()
def _verify(model: nn.Module, edited: nn.Module, edit: Edit, side: Side) -> None:
    """Compare the edited tower on random inputs with the operator on the original's outputs."""
    # Copies, because a forward pass in training mode would move the running statistics.
    original, changed = share(model, {}).eval(), share(edited, {}).eval()
    inputs = probe_inputs(model, side)
    with exact_products():
        plain = encode(original, inputs, side).double()
        actual = encode(changed, inputs, side).double()
        if edit.space == "hidden":
            hidden = encode(headless(original), inputs, side).double()
            expected = edit.apply(plain, hidden)
        else:
            expected = _embedding_edit_on(edit, side).apply(plain)
    check_took(edited, find(edited, side).key, plain, expected, actual)
