"""The final projection of each tower: where it is stored, and what an edit makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nullspace_unlearn.clip.network import encode, share, submodule
from nullspace_unlearn.clip.towers import FAMILIES, GROWN
from nullspace_unlearn.edit import Edit, Side

Layout = Literal["in_out", "out_in"]


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

    def unseen(self) -> Float[Tensor, "dim r"]:
        """The directions k with `W k = b k = 0`, so that `z k = 0` whatever the image.

        Returns:
            `[dim, r]` an orthonormal basis, float64, on the CPU; r is 0 for a projection that no
            edit has made singular. Rounding of the stored entries counts for nothing.
        """
        rows, bias = self.matrix(), self.bias()
        if bias is not None:
            rows = torch.cat([rows, bias[None]])
        _, size, directions = torch.linalg.svd(rows)
        dtype = torch.float32 if self.weight is None else self.weight.dtype
        seen = int((size > 2 * torch.finfo(dtype).eps * size[0]).sum())
        return directions[seen:].mT

    def stored(self, matrix: Float[Tensor, "width dim"]) -> Tensor:
        """A matrix W in the layout of the stored weight, contiguous."""
        return (matrix if self.layout == "in_out" else matrix.mT).contiguous()

    def check_fits(self, edit: Edit) -> None:
        """Refuse an edit of other dimensions; see `folding.Place`."""
        if edit.dim != self.dim:
            raise ValueError(
                f"the edit has {edit.dim} dimensions and the {self.side} projection {self.dim}"
            )
        if edit.space == "hidden" and edit.read.shape[-2] != self.width:
            raise ValueError(
                f"the edit reads hidden features of {edit.read.shape[-2]} dimensions and the model "
                f"has {self.width}"
            )

    def edited(self, edit: Edit, now: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """W and b after an edit; see `folding.Place`."""
        return _edited(self.exact(now), edit)

    def exact(self, now: Callable[[str, Tensor], Tensor]) -> Projection:
        """The projection with its parameters as edits left them, before rounding.

        Args:
            now: Key and parameter -> that parameter.

        Returns:
            The projection.
        """
        exact = self
        if self.weight is not None:
            exact = replace(exact, weight=now(self.key, self.weight))
        if self.offset is not None and self.bias_key is not None:
            exact = replace(exact, offset=now(self.bias_key, self.offset))
        return exact

    def predict(
        self, model: nn.Module, edit: Edit, inputs: Tensor
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"]]:
        """Embeddings before an edit and what it makes of them; see `folding.Place`."""
        plain = encode(model, inputs, self.side).double()
        if edit.space == "hidden":
            hidden = encode(headless(model), inputs, self.side).double()
            return plain, edit.apply(plain, hidden)
        return plain, _embedding_edit_on(edit, self.side).apply(plain)


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
    if side not in ("visual", "text"):
        raise ValueError(f"side is {side!r}; it must be 'visual' or 'text'")
    head = submodule(model, "visual.head")
    keys = [family.visual if side == "visual" else family.text for family in FAMILIES]
    for place in dict.fromkeys(key.removesuffix(".weight") for key in keys if key):
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
