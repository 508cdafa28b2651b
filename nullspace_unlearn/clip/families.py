"""The table of supported models: where each family, or a given model, keeps what is edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from nullspace_unlearn.clip import mlp, projection
from nullspace_unlearn.edit import Side


@dataclass(frozen=True)
class Family:
    """A row of the table of supported models.

    Attributes:
        name: What its models are called.
        visual: Key of the visual projection's weight, or why there is none.
        text: Key of the text projection's weight, or why there is none.
        examples: Names of open_clip configurations in the family.
    """

    name: str
    visual: str
    text: str
    examples: tuple[str, ...]


_ADDED = "none (attention pool); visual.head.proj.weight is added"

FAMILIES: tuple[Family, ...] = (
    Family(
        "ViT (OpenAI, LAION, DataComp, MetaCLIP)",
        "visual.proj",
        "text_projection",
        ("ViT-B-32", "ViT-L-14-quickgelu", "ViT-H-14"),
    ),
    Family(
        "ModifiedResNet", "visual.attnpool.c_proj.weight", "text_projection", ("RN50", "RN50x64")
    ),
    Family(
        "ConvNeXt, Swin, ViT with average pooling",
        "visual.head.proj.weight",
        "text_projection",
        ("convnext_base", "swin_base_patch4_window7_224", "vit_medium_patch16_gap_256"),
    ),
    Family(
        "ConvNeXt with an MLP head",
        "visual.head.mlp.fc2.weight",
        "text_projection",
        ("convnext_large_d", "convnext_large_d_320"),
    ),
    Family(
        "ViTamin", "visual.head.proj.weight", "text.text_projection", ("ViTamin-S", "ViTamin-L-384")
    ),
    Family(
        "EVA, MobileCLIP-B",
        "visual.trunk.head.weight",
        "text.text_projection",
        ("EVA02-B-16", "EVA01-g-14", "MobileCLIP-B"),
    ),
    Family(
        "MobileCLIP-S",
        "visual.trunk.head.fc.weight",
        "text.text_projection",
        ("MobileCLIP-S1", "MobileCLIP2-S4"),
    ),
    Family(
        "PE-Core",
        "visual.trunk.head.weight",
        "text.text_projection",
        ("PE-Core-B-16", "PE-Core-L-14-336"),
    ),
    Family("CoCa", "visual.proj", "text.text_projection", ("coca_base", "coca_ViT-B-32")),
    Family(
        "CoCa and NLLB-CLIP with a Hugging Face text tower",
        "visual.proj",
        "text.proj.weight",
        ("coca_roberta-ViT-B-32", "nllb-clip-base"),
    ),
    Family(
        "RoBERTa, XLM-RoBERTa, mT5 text towers",
        "visual.proj",
        "text.proj.2.weight",
        ("roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32", "mt5-base-ViT-B-32"),
    ),
    Family(
        "SigLIP, SigLIP2",
        _ADDED,
        "text.text_projection.weight",
        ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"),
    ),
    Family("NLLB-SigLIP", _ADDED, "text.proj.weight", ("nllb-clip-base-siglip",)),
    Family(
        "SigLIP SO400M i18n",
        _ADDED,
        "none (the text tower ends in a layer norm)",
        ("ViT-SO400M-16-SigLIP-i18n-256",),
    ),
    Family(
        "transformers' CLIPModel (library only)",
        "visual_projection.weight",
        "text_projection.weight",
        (),
    ),
)
"""Every way a supported model stores its final projections."""


def describe(model: nn.Module) -> dict[str, Any]:
    """Say where a model keeps what can be edited, in plain JSON values.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.

    Returns:
        For "visual" and "text": key, bias, layout, width, dim of the final projection, whether it
        is stored (or would be added), and "mlp", the key of the last MLP's weight where an edit
        can reach that; None for a side that cannot be edited.
    """
    return {"visual": _side(model, "visual"), "text": _side(model, "text")}


def _side(model: nn.Module, side: Side) -> dict[str, Any] | None:
    try:
        found = projection.find(model, side)
    except ValueError:
        return None
    return {
        "key": found.key,
        "bias": found.bias_key,
        "layout": found.layout,
        "width": found.width,
        "dim": found.dim,
        "stored": found.weight is not None,
        "mlp": _mlp(model) if side == "visual" else None,
    }


def _mlp(model: nn.Module) -> str | None:
    try:
        return mlp.find_mlp(model).key
    except ValueError:
        return None
