"""The table of supported models: one row a family, with all that open_clip calls its parts.

Whoever looks for a part of a model looks for it under the names in this table, so that a new
family is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass

GROWN = "visual.head.proj"
"""Where a tower that ends in attention pooling can be given a projection stock open_clip loads."""


@dataclass(frozen=True)
class Blocks:
    """The stack of blocks of a vision transformer that ends in `x = y + scale · mlp(norm(y))`.

    Attributes:
        stack: Name of the stack.
        kinds: Names of the classes of its blocks.
        output: Name of the MLP's output layer in a block.
        scale: Name of the layer scale in a block; None where the kind has none.
        norms: Names of the norms that may follow the stack; a model has one of them.
    """

    stack: str
    kinds: tuple[str, ...]
    output: str
    scale: str | None
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """An attention pool that attends from the mean of its positions, projection and all.

    Attributes:
        kind: Name of its class.
        query: Name of the layer that makes queries.
        key: Name of the layer that makes keys.
        value: Name of the layer that makes values.
        positions: Name of what is added to the positions, the mean first.
    """

    kind: str
    query: str
    key: str
    value: str
    positions: str


@dataclass(frozen=True)
class Family:
    """A row of the table of supported models.

    Attributes:
        name: What its models are called.
        examples: Names of open_clip configurations in the family.
        visual: Key of the visual projection's weight.
        text: Key of the text projection's weight; None where the tower ends in a layer norm.
        pooled: Whether the image tower ends in attention pooling, so that there is no projection
            before an edit adds it under `visual`.
        blocks: Where the image tower is a vision transformer with nothing but a layer norm between
            its last block and its projection, that block.
        pool: Where the final projection is the output layer of an attention pool, that pool.
    """

    name: str
    examples: tuple[str, ...]
    visual: str
    text: str | None
    pooled: bool = False
    blocks: Blocks | None = None
    pool: Pool | None = None


_TRUNK = ("visual.trunk.norm", "visual.trunk.fc_norm")
_VIT = Blocks(
    "visual.transformer.resblocks",
    ("ResidualAttentionBlock", "CustomResidualAttentionBlock"),
    "mlp.c_proj",
    "ls_2.gamma",
    ("visual.ln_post",),
)
_TIMM = Blocks("visual.trunk.blocks", ("Block",), "mlp.fc2", "ls2.gamma", _TRUNK)
_VITAMIN = Blocks("visual.trunk.blocks", ("Block",), "mlp.w2", "ls2.gamma", _TRUNK)
_EVA = Blocks("visual.trunk.blocks", ("EvaBlock",), "mlp.fc2", "gamma_2", _TRUNK)
_TRANSFORMERS = Blocks(
    "vision_model.encoder.layers",
    ("CLIPEncoderLayer",),
    "mlp.fc2",
    None,
    ("vision_model.post_layernorm",),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "ViT (OpenAI, LAION, DataComp, MetaCLIP)",
        ("ViT-B-32", "ViT-L-14-quickgelu", "ViT-H-14"),
        "visual.proj",
        "text_projection",
        blocks=_VIT,
    ),
    Family(
        "ModifiedResNet",
        ("RN50", "RN50x64"),
        "visual.attnpool.c_proj.weight",
        "text_projection",
        pool=Pool("AttentionPool2d", "q_proj", "k_proj", "v_proj", "positional_embedding"),
    ),
    Family(
        "ConvNeXt, Swin",
        ("convnext_base", "swin_base_patch4_window7_224"),
        "visual.head.proj.weight",
        "text_projection",
    ),
    Family(
        "ViT with average pooling",
        ("vit_medium_patch16_gap_256",),
        "visual.head.proj.weight",
        "text_projection",
        blocks=_TIMM,
    ),
    Family(
        "ConvNeXt with an MLP head",
        ("convnext_large_d", "convnext_large_d_320"),
        "visual.head.mlp.fc2.weight",
        "text_projection",
    ),
    Family(
        "ViTamin",
        ("ViTamin-S", "ViTamin-L-384"),
        "visual.head.proj.weight",
        "text.text_projection",
        blocks=_VITAMIN,
    ),
    Family(
        "EVA",
        ("EVA02-B-16", "EVA01-g-14"),
        "visual.trunk.head.weight",
        "text.text_projection",
        blocks=_EVA,
    ),
    Family(
        "MobileCLIP-B",
        ("MobileCLIP-B", "MobileCLIP2-B"),
        "visual.trunk.head.weight",
        "text.text_projection",
        blocks=_TIMM,
    ),
    Family(
        "MobileCLIP-S",
        ("MobileCLIP-S1", "MobileCLIP2-S4"),
        "visual.trunk.head.fc.weight",
        "text.text_projection",
    ),
    Family(
        "PE-Core",
        ("PE-Core-B-16", "PE-Core-L-14-336"),
        "visual.trunk.head.weight",
        "text.text_projection",
    ),
    Family(
        "CoCa",
        ("coca_base", "coca_ViT-B-32"),
        "visual.proj",
        "text.text_projection",
        blocks=_VIT,
    ),
    Family(
        "CoCa and NLLB-CLIP with a Hugging Face text tower",
        ("coca_roberta-ViT-B-32", "nllb-clip-base"),
        "visual.proj",
        "text.proj.weight",
        blocks=_VIT,
    ),
    Family(
        "RoBERTa, XLM-RoBERTa, mT5 text towers",
        ("roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32", "mt5-base-ViT-B-32"),
        "visual.proj",
        "text.proj.2.weight",
        blocks=_VIT,
    ),
    Family(
        "SigLIP, SigLIP2",
        ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"),
        f"{GROWN}.weight",
        "text.text_projection.weight",
        pooled=True,
    ),
    Family(
        "NLLB-SigLIP",
        ("nllb-clip-base-siglip",),
        f"{GROWN}.weight",
        "text.proj.weight",
        pooled=True,
    ),
    Family(
        "SigLIP SO400M i18n",
        ("ViT-SO400M-16-SigLIP-i18n-256",),
        f"{GROWN}.weight",
        None,
        pooled=True,
    ),
    Family(
        "transformers' CLIPModel (library only)",
        (),
        "visual_projection.weight",
        "text_projection.weight",
        blocks=_TRANSFORMERS,
    ),
)
"""Every way a supported model stores what can be edited."""
