"""Prompts: short ones without paying for the padding behind them, long ones not cut in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nullspace_unlearn.clip.network import encode


class _TextTower(nn.Module):
    """A model whose forward pass is its text side."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return encode(self.model, tokens, "text")


def encode_prompts(model: nn.Module, tokens: Int[Tensor, "n context"]) -> Float[Tensor, "n dim"]:
    """Embed token ids, cut behind the longest prompt where that changes nothing.

    A causal tower that pools at the end-of-text token never looks at what stands behind it, and a
    class prompt fills some 10 of 77 places, so a forward pass costs an eighth. Other towers
    (bidirectional, pooled elsewhere, from transformers) get the whole context.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.
        tokens: `[n, context]` token ids, padded.

    Returns:
        `[n, dim]` embeddings as the tower gives them: those of `encode` up to rounding.
    """
    network: Any = model
    name, tower = ("model.text.", network.text) if hasattr(model, "text") else ("model.", network)
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    mask = getattr(tower, "attn_mask", None)
    position = getattr(tower, "positional_embedding", None)
    plain = getattr(tower, "cls_emb", None) is None and not getattr(tower, "use_pad_mask", False)
    if pool != "argmax" or mask is None or position is None or not plain:
        return encode(model, tokens, "text")
    length = int(tokens.argmax(-1).max()) + 1
    short = {
        name + "positional_embedding": position[:length],
        name + "attn_mask": mask[:length, :length],
    }
    features: Tensor = torch.func.functional_call(_TextTower(model), short, (tokens[:, :length],))
    return features


def cut_by(tokenizer: Any, texts: Sequence[str]) -> tuple[list[bool], int]:
    """Which prompts are longer than what the text tower reads.

    Args:
        tokenizer: open_clip's of the model, which cuts and pads to the context length.
        texts: The prompts.

    Returns:
        Whether each is cut; and the context length, in tokens.
    """
    context = tokenizer(["a"]).shape[1]
    # A token is a byte or more, and beginning and end take one each (some add a blank).
    long = [i for i, text in enumerate(texts) if len(text.encode()) > context - 3]
    cut = [False] * len(texts)
    if not long:
        return cut, context
    some, wide = [texts[i] for i in long], 2 * context
    try:
        padding = tokenizer(["a"], context_length=wide)[0, -1]
    except TypeError:  # a tokenizer of one's own, which cannot be asked
        return cut, context
    tokens = tokenizer(some)
    full = (tokens[:, -2:] != padding).any(1).nonzero()[:, 0]  # one may be the end of the text
    if len(full):
        whole = tokenizer([some[i] for i in full], context_length=wide)
        fits = (whole[:, :context] == tokens[full]).all(1) & (whole[:, context:] == padding).all(1)
        for i, fit in zip(full.tolist(), fits.tolist(), strict=True):
            cut[long[i]] = not fit
    return cut, context
