"""The MLP of an image tower's last block: an edit one closed-form step before the projection.

In the last block of a vision transformer `x = y + C k + c`, with k what the MLP's activation
leaves: `4 width` numbers, nonlinear in the image. Only a layer norm and the final projection
follow, `h = γ (x - mean x)/σ + β` and `z = h W + b`, so what an edit of C does to z is known:

    x' = x - (k @ read) @ write.T
    z' - z° = σ/σ' (z - z° - (k @ read)/σ @ (γ write) W),    z° = β W + b

for columns of `write` with mean zero. So a shift of an image's z by q is a shift of x by q σ,
carried back through W and γ. The factor σ/σ' leaves all decisions among classes alone where
z° is small; where it is not, `LastMlp.apply` says exactly what an edit does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nullspace_unlearn.clip.network import encode, submodule
from nullspace_unlearn.clip.projection import Projection, find, headless
from nullspace_unlearn.clip.towers import FAMILIES
from nullspace_unlearn.edit import Edit


@dataclass(frozen=True, eq=False)
class MlpFeatures:
    """What one forward pass says of images, from the last MLP to the joint space.

    Attributes:
        mlp: `[n, mlp_width]` what enters the last MLP's output layer, k: at the class token, or
            the mean over the tokens where those are averaged.
        residual: `[n, width]` what enters the tower's last layer norm, x.
        deviation: `[n]` what that norm divides by, `σ = sqrt(var x + eps)`.
        hidden: `[n, width]` what leaves it and enters the final projection, h.
        embedding: `[n, dim]` the embedding z, not normalised.
    """

    mlp: Float[Tensor, "n mlp_width"]
    residual: Float[Tensor, "n width"]
    deviation: Float[Tensor, " n"]
    hidden: Float[Tensor, "n width"]
    embedding: Float[Tensor, "n dim"]

    @property
    def rows(self) -> Float[Tensor, "n mlp_width"]:
        """k/σ, on the scale of z: what erasers read."""
        return self.mlp / self.deviation[:, None]


@dataclass(frozen=True, eq=False)
class LastMlp:
    """The output layer C of the last block's MLP, and what follows it.

        x = y + scale · (C k + c),    h = gain · (x - mean x)/σ + offset,    z = h W + b

    Attributes:
        key: Name of C in the model's state_dict.
        weight: C as stored, `[width, mlp_width]`.
        scale: `[width]` layer scale, or None where the block has none.
        tokens: The tokens whose mean is pooled: the class token alone, or all but the prefix.
        norm: Name of the tower's last layer norm.
        gain: `[width]` γ of that norm.
        offset: `[width]` β of that norm.
        eps: What it adds to the variance.
        projection: The final projection.
    """

    key: str
    weight: Float[Tensor, "width mlp_width"]
    scale: Float[Tensor, " width"] | None
    tokens: slice
    norm: str
    gain: Float[Tensor, " width"]
    offset: Float[Tensor, " width"]
    eps: float
    projection: Projection

    @property
    def width(self) -> int:
        """Dimension of the residual stream, which an edit writes."""
        return self.weight.shape[0]

    @property
    def mlp_width(self) -> int:
        """Dimension of k, which an edit reads."""
        return self.weight.shape[1]

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers an edit reads and writes; see `folding.Inner`."""
        return self.mlp_width, self.width

    def carry_forward(
        self, write: Float[Tensor, "*batch width r"]
    ) -> Float[Tensor, "*batch dim r"]:
        """The shift of z that a shift of x makes, where `σ = 1` and up to the scale of `z - z°`.

        Args:
            write: `[*batch, width, r]` directions of the residual stream.

        Returns:
            `[*batch, dim, r]`, `Wᵀ (γ (write - mean write))`, float64, on the CPU.

        Raises:
            ValueError: If the directions are not of the tower's width.
        """
        _check_dimensions("write", write, "residual stream", self.width)
        return self._jacobian().mT @ write.to("cpu", torch.float64)

    def carry_back(self, write: Float[Tensor, "*batch dim r"]) -> Float[Tensor, "*batch width r"]:
        """The least shift of x that makes a shift of z: the pseudo-inverse of `carry_forward`.

        Where no shift of x makes it (`width <= dim`, or a projection that an edit has made
        singular), the one that comes nearest: `carry_forward` says what is achieved.

        Args:
            write: `[*batch, dim, r]` directions of the joint space.

        Returns:
            `[*batch, width, r]`, each column of mean zero, float64, on the CPU.

        Raises:
            ValueError: If the directions are not of the joint space's dimension.
        """
        _check_dimensions("write", write, "joint space", self.projection.dim)
        # A direction that W lets through by nothing but the rounding of its entries is closed.
        rounding = torch.finfo(self.weight.dtype).eps
        inverse = torch.linalg.pinv(self._jacobian().mT, rtol=rounding)
        return inverse @ write.to("cpu", torch.float64)

    def apply(self, edit: Edit, features: MlpFeatures) -> Float[Tensor, "*batch n dim"]:
        """What an edit makes of embeddings, exactly, without touching weights.

        Args:
            edit: An edit with space "mlp", or a batch of them.
            features: The images, as the unedited model sees them.

        Returns:
            `[*batch, n, dim]` edited embeddings, not normalised, float64, on the features' device.

        Raises:
            ValueError: If the edit is another kind, or reads or writes other dimensions.
        """
        self.check_fits(edit)
        read, write = (
            matrix.to(features.mlp.device, torch.float64) for matrix in (edit.read, edit.write)
        )
        shifted = features.residual.double() - (features.mlp.double() @ read) @ write.mT
        hidden = nn.functional.layer_norm(
            shifted, (self.width,), self.gain.to(shifted), self.offset.to(shifted), self.eps
        )
        return self.projection.apply(hidden)

    def of_prototypes(
        self, rows: Float[Tensor, "n mlp_width"], hidden: Float[Tensor, "n width"]
    ) -> MlpFeatures:
        """What `apply` needs of images, from k/σ and h alone: both in units of σ, centred.

        The layer norm gives the same for `(x - mean x)/σ` as for x, but for its eps; and that is
        `(h - β)/γ`. Where γ is 0 nothing of it passes on, and it is taken to be 0.

        Args:
            rows: `[n, mlp_width]` k/σ.
            hidden: `[n, width]` h.

        Returns:
            The features, float64, on the CPU, of deviation 1.
        """
        gain, offset = (one.detach().to("cpu", torch.float64) for one in (self.gain, self.offset))
        mlp, hidden = (one.to("cpu", torch.float64) for one in (rows, hidden))
        residual = (hidden - offset) / gain.masked_fill(gain == 0, torch.inf)
        ones = torch.ones(len(mlp), dtype=torch.float64)
        return MlpFeatures(mlp, residual, ones, hidden, self.projection.apply(hidden))

    def read(self, model: nn.Module, images: Float[Tensor, "n 3 rows columns"]) -> MlpFeatures:
        """Read images from the MLP on, in one forward pass; see `folding.Inner`."""
        return encode_mlp(model, self, images)

    def check_fits(self, edit: Edit) -> None:
        """Refuse an edit of another space or of other dimensions; see `folding.Place`."""
        if edit.space != "mlp":
            raise ValueError(f"the edit's space is {edit.space!r}; the last MLP takes 'mlp'")
        found = (edit.read.shape[-2], edit.dim)
        if found != (self.mlp_width, self.width):
            raise ValueError(
                f"the edit reads {found[0]} and writes {found[1]} dimensions, and {self.key} "
                f"{self.mlp_width} and {self.width}"
            )

    def edited(self, edit: Edit, now: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """C after an edit; see `folding.Place`."""
        return {self.key: _edited(replace(self, weight=now(self.key, self.weight)), edit)}

    def predict(
        self, model: nn.Module, edit: Edit, inputs: Tensor
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"]]:
        """Embeddings before an edit and what it makes of them; see `folding.Place`."""
        seen = self.read(headless(model), inputs)
        return seen.embedding.double(), self.apply(edit, seen)

    def _jacobian(self) -> Float[Tensor, "width dim"]:
        """`dz/dx` at `σ = 1` but for the radial part, which only scales `z - z°`."""
        through = self.gain.detach().to("cpu", torch.float64)[:, None] * self.projection.matrix()
        return through - through.mean(0)


def find_mlp(model: nn.Module) -> LastMlp:
    """Find the last MLP of an image tower by the model's structure.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.

    Returns:
        The MLP's output layer and what follows it. It refers to the model's own tensors.

    Raises:
        ValueError: If the image tower is not a vision transformer whose last MLP is followed by
            one layer norm, after pooling or on the class token, and the final projection alone.
    """
    rows = [family for family in FAMILIES if family.blocks is not None]
    known = dict.fromkeys(row.blocks for row in rows if row.blocks is not None)
    built = [blocks for blocks in known if submodule(model, blocks.stack) is not None]
    if not built:
        raise _unreachable("is no vision transformer")
    stack: Any = model.get_submodule(built[0].stack)
    block = stack[-1]
    kind = type(block).__name__
    alike = [b for b in built if kind in b.kinds and submodule(block, b.output) is not None]
    if not alike:
        raise _unreachable(f"ends in {kind}, no pre-norm block with an MLP")
    blocks, tokens = alike[0], _tokens(model)
    norms = [n for n in blocks.norms if not isinstance(submodule(model, n), nn.Identity | None)]
    if tokens is None or len(norms) != 1:
        raise _unreachable("pools otherwise than by a class token or by a mean before its norm")
    norm: Any = model.get_submodule(norms[0])
    projection = find(model, "visual")
    plain = isinstance(norm, nn.LayerNorm) and projection.key in {row.visual for row in rows}
    if not plain or norm.normalized_shape != (projection.width,):
        raise _unreachable("has more than a layer norm before its projection")
    linear: Any = block.get_submodule(blocks.output)
    like = linear.weight
    return LastMlp(
        key=f"{blocks.stack}.{len(stack) - 1}.{blocks.output}.weight",
        weight=like,
        scale=None if blocks.scale is None else _attribute(block, blocks.scale),
        tokens=tokens,
        norm=norms[0],
        gain=like.new_ones(like.shape[0]) if norm.weight is None else norm.weight,
        offset=like.new_zeros(like.shape[0]) if norm.bias is None else norm.bias,
        eps=norm.eps,
        projection=projection,
    )


def encode_mlp(
    tower: nn.Module, mlp: LastMlp, images: Float[Tensor, "n 3 rows columns"]
) -> MlpFeatures:
    """Read images from the last MLP on, in one forward pass.

    Args:
        tower: What `headless` makes of the model that `mlp` was found in.
        mlp: Its last MLP.
        images: `[n, 3, rows, columns]` preprocessed images in the dtype the tower computes in.

    Returns:
        The features, in float32 at least.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0]

        return tower.get_submodule(name).register_forward_pre_hook(hook)

    linear = mlp.key.removesuffix(".weight")
    with keep(linear), keep(mlp.norm):
        hidden = encode(tower, images)
    wide = torch.promote_types(hidden.dtype, torch.float32)

    def pooled(tokens: Tensor) -> Tensor:
        return (tokens if tokens.ndim == 2 else tokens[:, mlp.tokens].mean(1, dtype=wide)).to(wide)

    residual = pooled(seen[mlp.norm])
    return MlpFeatures(
        mlp=pooled(seen[linear]),
        residual=residual,
        deviation=(residual.var(-1, correction=0) + mlp.eps).sqrt(),
        hidden=hidden.to(wide),
        embedding=mlp.projection.apply(hidden.to(wide)),
    )


def _tokens(model: nn.Module) -> slice | None:
    """The tokens whose mean the last norm takes, or gives; None where it is not so simple."""
    tower: Any = submodule(model, "visual.trunk") or submodule(model, "visual")
    if tower is None:
        return slice(0, 1)  # transformers' towers pool the class token
    if getattr(tower, "attn_pool", None) is not None:
        return None
    ours = hasattr(tower, "pool_type")
    pool = tower.pool_type if ours else getattr(tower, "global_pool", None)
    if pool in ("tok", "token"):
        return slice(0, 1)
    # The mean of normed tokens divides each token by a deviation of its own.
    fc_norm = getattr(tower, "fc_norm", None)
    after = tower.final_ln_after_pool if ours else not isinstance(fc_norm, nn.Identity | None)
    if pool != "avg" or not after:
        return None
    prefix = 1 if ours else tower.num_prefix_tokens
    return slice(0 if getattr(tower, "pool_include_prefix", False) else prefix, None)


def _check_dimensions(name: str, matrix: Tensor, space: str, expected: int) -> None:
    if matrix.shape[-2] != expected:
        raise ValueError(f"{name} has {matrix.shape[-2]} dimensions and the {space} {expected}")


def _attribute(module: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(submodule(module, owner), leaf, None)


def _unreachable(why: str) -> ValueError:
    return ValueError(
        f"the last MLP cannot be edited: the image tower {why}; it can be in ViT, EVA, "
        "MobileCLIP-B (class token) and in CLIPA, ViTamin (mean, then norm)"
    )


def _edited(mlp: LastMlp, edit: Edit) -> Tensor:
    """C after the edit, in float64 on the CPU."""
    weight, read, write = (
        matrix.detach().to("cpu", torch.float64) for matrix in (mlp.weight, edit.read, edit.write)
    )
    if mlp.scale is not None:
        scale = mlp.scale.detach().to("cpu", torch.float64)[:, None]
        if (scale == 0).any():
            raise ValueError(
                f"{mlp.key} cannot carry the edit: {int((scale == 0).sum())} of the {mlp.width} "
                "numbers of the layer scale after it are 0"
            )
        write = write / scale
    return weight - write @ read.mT
