"""Deep visual prompts: learnable tokens that a frozen vision transformer reads beside an image.

Before each of the first blocks the prompts of that layer stand behind the class token, in place of
what the previous layer made of its own (Visual Prompt Tuning, arXiv 2203.12119, "deep"). They are
taken out again after the last block, so pooling sees the tokens it always sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nullspace_unlearn.clip.network import share, submodule

TOKENS = 8
"""Prompts a layer, as in ADU (arXiv 2510.08132)."""

_BLOCKS = ("visual.transformer.resblocks", "visual.trunk.blocks")
_PLAIN = ("ResidualAttentionBlock", "CustomResidualAttentionBlock", "Block", "EvaBlock")
"""Kinds of block that take a sequence of any length."""


class PromptGenerator(nn.Module):
    """Prompts that depend on the image: the prompts attend to the image's patches.

    `p' = p + Attention(norm(p), norm(patches))` (InstaPG, arXiv 2510.08132, section 4.3). Chosen:
    the norms before the attention and the residual, one attention for the prompts of all layers,
    and an output layer that starts at zero, so that training starts at the plain prompts.

    Args:
        width: Of the tower.
        heads: Of the attention; a divisor of the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_prompts = nn.LayerNorm(width)
        self.norm_patches = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)

    def forward(
        self,
        prompts: Float[Tensor, "layers tokens width"],
        patches: Float[Tensor, "n patches width"],
    ) -> Float[Tensor, "n layers tokens width"]:
        """The prompts of some layers for each image.

        Args:
            prompts: `[layers, tokens, width]` the learnable ones.
            patches: `[n, patches, width]` patch tokens of the images.

        Returns:
            `[n, layers, tokens, width]`.
        """
        queries = self.norm_prompts(prompts).flatten(0, 1).expand(len(patches), -1, -1)
        seen = self.norm_patches(patches)
        added, _ = self.attention(queries, seen, seen, need_weights=False)
        return prompts + added.reshape(len(patches), *prompts.shape)


class VisualPrompts(nn.Module):
    """Prompts for the first blocks of one kind of tower. Make them with `new_prompts`.

    Attributes:
        values: `[depth, tokens, width]` the prompts of each layer.
        generator: Makes those of all layers but the first depend on the image, from its patch
            tokens after the first block; None where they do not.

    Args:
        depth: Blocks that get prompts.
        tokens: Prompts a block.
        width: Of the tower.
        heads: Of the generator's attention; 0 for no generator.
    """

    def __init__(self, depth: int, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.values = nn.Parameter(0.02 * torch.randn(depth, tokens, width))
        self.generator = PromptGenerator(width, heads) if heads else None

    @property
    def heads(self) -> int:
        """Of the generator's attention; 0 where there is none."""
        return 0 if self.generator is None else self.generator.attention.num_heads


@dataclass(frozen=True, eq=False)
class Adapter:
    """What stands in front of a model without being part of its weights.

    Attributes:
        prompts: The visual prompts.
        provenance: How they came to be; plain JSON values.
    """

    prompts: VisualPrompts
    provenance: Mapping[str, Any]


class PromptedBlocks(nn.Module):
    """All blocks of a tower in a row, with prompts put in before the first ones.

    Args:
        blocks: The tower's blocks.
        prompts: The prompts.
        prefix: Tokens of the tower that stand before its patches.
    """

    def __init__(self, blocks: Iterable[nn.Module], prompts: VisualPrompts, prefix: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.prompts = prompts
        self.prefix = prefix

    def forward(
        self, x: Float[Tensor, "n length width"], attn_mask: None = None
    ) -> Float[Tensor, "n length width"]:
        """From the tokens that enter the first block to those that leave the last one.

        Args:
            x: `[n, length, width]`.
            attn_mask: What some towers pass to each block; image towers have no mask.
        """
        values, generator = self.prompts.values, self.prompts.generator
        depth, tokens, _ = values.shape
        made = values.expand(len(x), -1, -1, -1)
        behind = self.prefix  # where the patches begin
        for layer, block in enumerate(self.blocks):
            if layer == 1 and generator is not None:
                later = generator(values[1:], x[:, behind:].to(values))
                made = torch.cat([made[:, :1], later], 1)
            if layer < depth:
                put = made[:, layer].to(x)
                x = torch.cat([x[:, : self.prefix], put, x[:, behind:]], 1)
                behind = self.prefix + tokens
            x = block(x)
        return torch.cat([x[:, : self.prefix], x[:, behind:]], 1)


def new_prompts(
    model: nn.Module, tokens: int = TOKENS, depth: int = 0, generator: bool = True
) -> VisualPrompts:
    """Prompts that fit a model's image tower, drawn from N(0, 0.02²) with torch's global seed.

    Args:
        model: An open_clip model.
        tokens: Prompts a block.
        depth: Blocks that get prompts, from the first; 0 for three quarters of them, as ADU has 9
            of 12.
        generator: Whether those behind the first block depend on the image. Chosen: its attention
            has half as many heads as the tower's (fewer where that does not divide the width).

    Returns:
        The prompts, float32, on the model's device.

    Raises:
        ValueError: If the tower takes no prompts, there are fewer blocks, or a generator is asked
            for with no block behind the first to get its prompts.
    """
    name, blocks, _ = _tower(model)
    depth = depth or max(round(0.75 * len(blocks)), 1)
    if not 1 <= depth <= len(blocks) or tokens < 1:
        raise ValueError(
            f"1 to {len(blocks)} blocks of {name} take prompts, at least 1 each, got {depth} "
            f"blocks and {tokens} prompts"
        )
    if generator and depth < 2:
        raise ValueError("a prompt generator needs prompts in 2 blocks at least, got 1")
    width, heads = _width(blocks[0]), max(blocks[0].attn.num_heads // 2, 1)
    heads = next(few for few in range(heads, 0, -1) if width % few == 0)
    made = VisualPrompts(depth, tokens, width, heads if generator else 0)
    return made.to(next(model.parameters()).device)


def with_prompts(model: nn.Module, prompts: VisualPrompts) -> nn.Module:
    """Copy a model's modules but not its tensors, and let its image tower read prompts.

    Args:
        model: An open_clip model, which is not changed.
        prompts: The prompts; the copy holds this very module, so that gradients reach it.

    Returns:
        The copy.

    Raises:
        ValueError: If the tower takes no prompts, or they are for another kind of tower.
    """
    name, blocks, prefix = _tower(model)
    depth, _, width = prompts.values.shape
    if depth > len(blocks) or width != _width(blocks[0]):
        raise ValueError(
            f"the prompts are for {depth} blocks of width {width}, and {name} has {len(blocks)} "
            f"of width {_width(blocks[0])}"
        )
    copied = share(model, {})
    owner, _, leaf = name.rpartition(".")
    held: Any = copied.get_submodule(name)
    row = PromptedBlocks(held, prompts, prefix)
    # Towers loop over a ModuleList or call a Sequential, and now see one block in it.
    alone = nn.ModuleList([row]) if isinstance(blocks, nn.ModuleList) else nn.Sequential(row)
    setattr(copied.get_submodule(owner), leaf, alone)
    return copied


def _tower(model: nn.Module) -> tuple[str, Any, int]:
    """Name of the blocks, the blocks, and how many tokens stand before the patches."""
    name = next((name for name in _BLOCKS if submodule(model, name) is not None), None)
    if name is None:
        raise _refused("is no vision transformer")
    blocks: Any = model.get_submodule(name)
    kinds = {type(block).__name__ for block in blocks}
    if "PromptedBlocks" in kinds:
        raise _refused("has prompts already")
    if not kinds <= set(_PLAIN):
        raise _refused(f"is made of {', '.join(sorted(kinds))}")
    trunk: Any = submodule(model, "visual.trunk")
    if getattr(trunk, "rope", None) is not None:
        raise _refused("rotates its tokens by their place")
    return name, blocks, 1 if trunk is None else trunk.num_prefix_tokens


def _width(block: nn.Module) -> int:
    return int(next(m for m in block.modules() if isinstance(m, nn.LayerNorm)).normalized_shape[0])


def _refused(why: str) -> ValueError:
    return ValueError(
        f"the image tower {why}, so it takes no visual prompts; plain vision transformers do: ViT, "
        "CoCa, SigLIP, MobileCLIP-B, ViTamin"
    )
