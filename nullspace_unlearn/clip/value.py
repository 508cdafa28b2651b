"""The value projection of an attention pool: an edit before the projection, head by head.

A ModifiedResNet ends in one attention from the mean of its positions x_j to all of them, with H
heads, and nothing but a projection follows:

    v_h = Σ_j a_hj x_j,   u_h = V_h v_h + b_h,   z = Σ_h C_h u_h + c

for the attention a_h of each head (`Σ_j a_hj = 1`), its rows V_h of the value projection and its
columns C_h of the output projection. The queries and keys that a_h is made of are other weights,
so an edit of V leaves v as it is, and what it does to z is linear in v and known exactly:

    V_h' = V_h - write_h read_hᵀ,    z' = z - Σ_h C_h write_h (read_hᵀ v_h)

Head h reads its own v_h, which is as wide as x (the hidden feature has a hundredth of what all v_h
hold), and writes where C_h leads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nullspace_unlearn.clip.network import encode, submodule
from nullspace_unlearn.clip.projection import Projection, find, headless
from nullspace_unlearn.clip.towers import FAMILIES, Pool
from nullspace_unlearn.edit import Edit


@dataclass(frozen=True, eq=False)
class ValueFeatures:
    """What one forward pass says of images, from the value projection to the joint space.

    Attributes:
        rows: `[n, heads * embed]` what enters the value projection, v_h of one head after another.
        hidden: `[n, embed]` what leaves it and enters the final projection, h = u.
        embedding: `[n, dim]` the embedding z, not normalised.
    """

    rows: Float[Tensor, "n source"]
    hidden: Float[Tensor, "n embed"]
    embedding: Float[Tensor, "n dim"]


@dataclass(frozen=True, eq=False)
class ValueProjection:
    """The value projection V of an attention pool, and the projection that follows it.

    Attributes:
        key: Name of V in the model's state_dict.
        weight: V as stored, `[embed, embed]`: the rows of one head after another.
        heads: Number of heads, H.
        pool: Name of the attention pool.
        parts: What its layers are called.
        projection: The final projection, C and c.
    """

    key: str
    weight: Float[Tensor, "embed embed"]
    heads: int
    pool: str
    parts: Pool
    projection: Projection

    @property
    def embed(self) -> int:
        """Dimension of x, and of u, which an edit writes."""
        return self.weight.shape[0]

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers an edit reads, `heads * embed`, and writes; see `folding.Inner`."""
        return self.heads * self.embed, self.embed

    def bases(self) -> Float[Tensor, "heads dim head_dim"]:
        """Where in the joint space each head can write.

        Returns:
            `[heads, dim, head_dim]` orthonormal columns that span the rows of C_h, float64, on the
            CPU; columns of zeros where C_h leads to fewer dimensions.
        """
        left, size, _ = torch.linalg.svd(self._columns().mT, full_matrices=False)
        open_ = size > torch.finfo(self.weight.dtype).eps * size[:, :1]
        return left * open_[:, None]

    def carry_back(
        self, write: Float[Tensor, "*batch heads_dim r"]
    ) -> Float[Tensor, "*batch embed r"]:
        """The least shift of u that makes a shift of z, head by head; see `folding.Inner`.

        Args:
            write: `[*batch, heads * dim, r]` directions of the joint space, a block a head.

        Returns:
            `[*batch, embed, r]`, a block of head_dim a head, float64, on the CPU. Where a head does
            not lead to a direction, what comes nearest.

        Raises:
            ValueError: If there are not as many blocks of the joint space's dimension.
        """
        blocks = (self.heads, self.projection.dim)
        if write.shape[-2] != self.heads * self.projection.dim:
            raise ValueError(
                f"write has {write.shape[-2]} rows; {blocks[0]} heads write {blocks[1]} dimensions"
            )
        # A direction that C lets through by nothing but the rounding of its entries is closed.
        rounding = torch.finfo(self.weight.dtype).eps
        inverse = torch.linalg.pinv(self._columns().mT, rtol=rounding)
        each = write.to("cpu", torch.float64).unflatten(-2, blocks)
        return (inverse @ each).flatten(-3, -2)

    def apply(self, edit: Edit, features: ValueFeatures) -> Float[Tensor, "*batch n dim"]:
        """What an edit makes of embeddings, exactly, without touching weights.

        Args:
            edit: An edit with space "value", or a batch of them.
            features: The images, as the unedited model sees them.

        Returns:
            `[*batch, n, dim]` edited embeddings, not normalised, float64, on the features' device.

        Raises:
            ValueError: If the edit is another kind, or reads or writes other dimensions.
        """
        self.check_fits(edit)
        rows = features.rows.unflatten(-1, (self.heads, -1))
        each = self._columns().to(rows.device)
        read, write = (part.to(rows.device) for part in self._blocks(edit))
        out = features.embedding.double().expand(*edit.batch_shape, -1, -1)
        for h in range(self.heads):  # v of all heads at once is many times the image's embedding
            found = rows[:, h].double() @ read[..., h, :, :]
            out = out - (found @ write[..., h, :, :].mT) @ each[h]
        return out

    def of_prototypes(
        self, rows: Float[Tensor, "n source"], hidden: Float[Tensor, "n embed"]
    ) -> ValueFeatures:
        """What `apply` needs of images, from v and h alone; see `folding.Inner`.

        Args:
            rows: `[n, heads * embed]` v.
            hidden: `[n, embed]` h.
        """
        hidden = hidden.to("cpu", torch.float64)
        return ValueFeatures(rows.to("cpu"), hidden, self.projection.apply(hidden))

    def read(self, model: nn.Module, images: Float[Tensor, "n 3 rows columns"]) -> ValueFeatures:
        """Read images from the value projection on, in one forward pass; see `folding.Inner`.

        Args:
            model: What `headless` makes of the model that this was found in.
            images: `[n, 3, rows, columns]` preprocessed images in the dtype the tower computes in.

        Returns:
            The features, in float32 at least.
        """
        pool: Any = model.get_submodule(self.pool)
        seen: list[Tensor] = []
        with pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            hidden = encode(model, images)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        x = seen[0].to(wide).flatten(2).mT  # [n, positions, embed]
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        x = x + getattr(pool, self.parts.positions).to(wide)

        def of_heads(name: str, rows: Tensor) -> Tensor:
            layer: Any = pool.get_submodule(name)
            bias = None if layer.bias is None else layer.bias.to(wide)
            found = nn.functional.linear(rows, layer.weight.to(wide), bias)
            return found.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key = of_heads(self.parts.query, x[:, :1]), of_heads(self.parts.key, x)
        attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)[:, :, 0]
        rows = (attention @ x).flatten(1)
        return ValueFeatures(rows, hidden.to(wide), self.projection.apply(hidden.to(wide)))

    def check_fits(self, edit: Edit) -> None:
        """Refuse an edit of another space or of other dimensions; see `folding.Place`."""
        if edit.space != "value":
            raise ValueError(
                f"the edit's space is {edit.space!r}; the value projection takes 'value'"
            )
        found = (edit.read.shape[-2], edit.dim)
        if found != self.sizes:
            raise ValueError(
                f"the edit reads {found[0]} and writes {found[1]} dimensions, and {self.key} "
                f"{self.sizes[0]} and {self.sizes[1]}"
            )

    def edited(self, edit: Edit, now: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """V after an edit; see `folding.Place`."""
        read, write = self._blocks(edit)
        weight = now(self.key, self.weight).detach().to("cpu", torch.float64)
        return {self.key: weight - (write @ read.mT).flatten(0, 1)}

    def predict(
        self, model: nn.Module, edit: Edit, inputs: Tensor
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"]]:
        """Embeddings before an edit and what it makes of them; see `folding.Place`."""
        seen = self.read(headless(model), inputs)
        return seen.embedding.double(), self.apply(edit, seen)

    def _blocks(self, edit: Edit) -> tuple[Tensor, Tensor]:
        """Read `[*batch, heads, embed, r]` and write `[*batch, heads, head_dim, r]`, float64."""
        read, write = (
            part.detach().to("cpu", torch.float64).unflatten(-2, (self.heads, -1))
            for part in (edit.read, edit.write)
        )
        return read, write

    def _columns(self) -> Float[Tensor, "heads head_dim dim"]:
        """C_h of each head, as it multiplies rows from the right."""
        return self.projection.matrix().unflatten(0, (self.heads, -1))


def find_value(model: nn.Module) -> ValueProjection:
    """Find the value projection of an image tower by the model's structure.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.

    Returns:
        The projection, and what follows it. It refers to the model's own tensors.

    Raises:
        ValueError: If the image tower does not end in an attention from the mean of its positions
            whose output layer is the final projection.
    """
    for row in FAMILIES:
        parts = row.pool
        place = row.visual.removesuffix(".weight").rpartition(".")[0]
        pool: Any = submodule(model, place)
        if parts is None or type(pool).__name__ != parts.kind:
            continue
        projection = find(model, "visual")
        linear: Any = pool.get_submodule(parts.value)
        if projection.key == row.visual and linear.weight.shape == (projection.width,) * 2:
            return ValueProjection(
                key=f"{place}.{parts.value}.weight",
                weight=linear.weight,
                heads=pool.num_heads,
                pool=place,
                parts=parts,
                projection=projection,
            )
    raise ValueError(
        "the value projection cannot be edited: the image tower does not end in an attention pool "
        "that the final projection is part of; ModifiedResNet (RN50 to RN50x64) does"
    )
