"""Which tensors of transformers are which of open_clip's: one `Tie` a group, both ways.

transformers keeps queries, keys and values apart and projections transposed. Laid end to end along
the first dimension, both sides of a tie hold the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tie:
    """Tensors of open_clip and of transformers that hold the same numbers.

    Attributes:
        ours: Their names in open_clip.
        theirs: Their names in transformers.
        turned: How theirs differ beyond the cut: "transposed", or "patches" where a convolution's
            kernel `[out, channels, rows, columns]` is a matrix `[out, rows · columns · channels]`.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    turned: Literal["", "transposed", "patches"] = ""


def to_ours(
    ties: Iterable[Tie], theirs: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Take tensors from transformers' names and shapes to open_clip's.

    Args:
        ties: Which are which.
        theirs: Tensors by their names in transformers, those of every tie whose own are wanted.
        shapes: Shapes of open_clip's tensors by name.

    Returns:
        Tensors by their names in open_clip, for each tie that has all of its own.

    Raises:
        ValueError: If a tie's tensors do not hold as many numbers as its others.
    """
    made: dict[str, Tensor] = {}
    for tie in ties:
        if all(name in theirs for name in tie.theirs):
            joined = _joined([theirs[name] for name in tie.theirs])
            if tie.turned == "transposed":
                joined = joined.mT
            elif tie.turned == "patches":
                out, channels, rows, columns = shapes[tie.ours[0]]
                joined = joined.reshape(out, rows, columns, channels).permute(0, 3, 1, 2)
            made |= _cut(joined, tie.ours, shapes)
    return made


def to_theirs(
    ties: Iterable[Tie], ours: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Take tensors from open_clip's names and shapes to transformers'; `to_ours` taken back.

    Args:
        ties: Which are which.
        ours: Tensors by their names in open_clip, those of every tie whose others are wanted.
        shapes: Shapes of transformers' tensors by name.

    Returns:
        Tensors by their names in transformers, for each tie that has all of its own.

    Raises:
        ValueError: If a tie's tensors do not hold as many numbers as its others.
    """
    made: dict[str, Tensor] = {}
    for tie in ties:
        if all(name in ours for name in tie.ours):
            joined = _joined([ours[name] for name in tie.ours])
            if tie.turned == "transposed":
                joined = joined.mT
            elif tie.turned == "patches":
                joined = joined.permute(0, 2, 3, 1)
            made |= _cut(joined, tie.theirs, shapes)
    return made


def clip_image(layers: int) -> tuple[Tie, ...]:
    """The ties of CLIP's image tower, with its projection.

    Args:
        layers: Blocks of the tower.
    """
    named = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.weight": "embeddings.patch_embedding.weight",
        **_both("ln_pre", "pre_layrnorm"),
        **_both("ln_post", "post_layernorm"),
    }
    return (
        *_pairs("visual.", "vision_model.", named),
        *_blocks("visual.transformer.resblocks", "vision_model.encoder.layers", layers, _OPEN_CLIP),
        Tie(("visual.proj",), ("visual_projection.weight",), "transposed"),
    )


def clip_text(layers: int) -> tuple[Tie, ...]:
    """The ties of CLIP's text tower, with its projection.

    Args:
        layers: Blocks of the tower.
    """
    return (
        *_text("", layers),
        Tie(("text_projection",), ("text_projection.weight",), "transposed"),
    )


def siglip_image(layers: int, patches: bool) -> tuple[Tie, ...]:
    """The ties of SigLIP's image tower, timm's in open_clip.

    Args:
        layers: Blocks of the tower.
        patches: Whether images come cut into patches, as in SigLIP 2.
    """
    embedding = "embeddings.patch_embedding"
    named = {
        "patch_embed.proj.bias": f"{embedding}.bias",
        "pos_embed": "embeddings.position_embedding.weight",
        **_both("norm", "post_layernorm"),
        "attn_pool.latent": "head.probe",
        **_both("attn_pool.proj", "head.attention.out_proj"),
        **_both("attn_pool.norm", "head.layernorm"),
        **_both("attn_pool.mlp.fc1", "head.mlp.fc1"),
        **_both("attn_pool.mlp.fc2", "head.mlp.fc2"),
    }
    trunk, theirs = "visual.trunk.", "vision_model."
    return (
        Tie(
            (f"{trunk}patch_embed.proj.weight",),
            (f"{theirs}{embedding}.weight",),
            "patches" if patches else "",
        ),
        *_pairs(trunk, theirs, named),
        *_blocks(f"{trunk}blocks", f"{theirs}encoder.layers", layers, _TIMM),
        *(
            Tie(
                (f"{trunk}attn_pool.q.{kind}", f"{trunk}attn_pool.kv.{kind}"),
                (f"{theirs}head.attention.in_proj_{kind}",),
            )
            for kind in _KINDS
        ),
    )


def siglip_text(layers: int) -> tuple[Tie, ...]:
    """The ties of SigLIP's text tower, with its projection.

    Args:
        layers: Blocks of the tower.
    """
    return (
        *_text("text.", layers),
        *_pairs("text.", "text_model.", _both("text_projection", "head")),
    )


_KINDS = ("weight", "bias")
_OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.in_proj_": "self_attn",
}
_TIMM = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.qkv.": "self_attn",
}
"""Parts of a block; the last is where queries, keys and values are one tensor."""


def _text(ours: str, layers: int) -> Iterator[Tie]:
    named = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        **_both("ln_final", "final_layer_norm"),
    }
    yield from _pairs(ours, "text_model.", named)
    places = f"{ours}transformer.resblocks", "text_model.encoder.layers"
    yield from _blocks(*places, layers, _OPEN_CLIP)


def _blocks(ours: str, theirs: str, layers: int, parts: Mapping[str, str]) -> Iterator[Tie]:
    *plain, joined = parts
    for i in range(layers):
        for part in plain:
            yield from _pairs(f"{ours}.{i}.", f"{theirs}.{i}.", _both(part, parts[part]))
        for kind in _KINDS:
            apart = (f"{theirs}.{i}.{parts[joined]}.{one}_proj.{kind}" for one in "qkv")
            yield Tie((f"{ours}.{i}.{joined}{kind}",), tuple(apart))


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in _KINDS}


def _pairs(ours: str, theirs: str, named: Mapping[str, str]) -> Iterator[Tie]:
    for one, other in named.items():
        yield Tie((ours + one,), (theirs + other,))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.to(dtype) for part in parts])


def _cut(
    joined: Tensor, names: Sequence[str], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    sizes = [torch.Size(shapes[name]).numel() for name in names]
    if sum(sizes) != joined.numel():
        of = ", ".join(f"{name} {list(shapes[name])}" for name in names)
        raise ValueError(f"{of} cannot be made of {list(joined.shape)}")
    parts = joined.reshape(-1).split(sizes)
    return {n: part.reshape(tuple(shapes[n])) for n, part in zip(names, parts, strict=True)}
