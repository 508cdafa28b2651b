"""Every family of open_clip models, small enough to build in a moment. Imports nothing of ours."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import open_clip  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from timm.models import register_model  # noqa: E402
from torch import nn  # noqa: E402

DIM = 12
SIGLIP_DIM = 16
_OWN_TEXT = {"width": 8, "heads": 2, "layers": 1}


def _register(name: str, original: str, **smaller: Any) -> str:
    """Register a timm model that is `original`, head and all, with smaller numbers."""

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return timm.create_model(original, pretrained=False, **{**smaller, **kwargs})

    build.__name__ = name
    register_model(build)
    return name


_VIT = {"img_size": 32, "patch_size": 16, "depth": 1, "num_heads": 2}
_TIMM = {
    "convnext_base": _register(
        "pico_convnext", "convnext_atto", depths=(1,) * 4, dims=(4, 8, 8, 24)
    ),
    "swin_base_patch4_window7_224": _register(
        "pico_swin",
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 2),
    ),
    "vit_medium_patch16_gap_256": _register(
        "pico_gap", "vit_medium_patch16_gap_256", **_VIT, embed_dim=24
    ),
    "ViTamin-S": _register(
        "pico_vitamin",
        "vitamin_small_224",
        img_size=32,
        depth=1,
    ),
    "EVA02-B-16": _register("pico_eva", "eva02_base_patch16_clip_224", **_VIT, embed_dim=32),
    "MobileCLIP-B": _register("pico_mci", "vit_base_mci_224", img_size=32, depth=1, mlp_ratio=0.1),
    "MobileCLIP-S1": _register(
        "pico_fastvit", "fastvit_mci0", layers=(1, 1, 1, 1), embed_dims=(8, 8, 16, 32)
    ),
    "PE-Core-B-16": _register("pico_pe", "vit_pe_core_tiny_patch16_384", **_VIT, embed_dim=32),
    "ViT-B-16-SigLIP": _register(
        "pico_siglip", "vit_base_patch16_siglip_224", **_VIT, embed_dim=SIGLIP_DIM
    ),
}
_TIMM["convnext_large_d"] = _TIMM["convnext_base"]
for _name in ("nllb-clip-base-siglip", "ViT-SO400M-16-SigLIP-i18n-256"):
    _TIMM[_name] = _TIMM["ViT-B-16-SigLIP"]

_HF_TEXT = {
    "roberta": {
        "model_type": "roberta",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 40,
    },
    "nllb": {
        "model_type": "m2m_100",
        "d_model": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
        "max_position_embeddings": 40,
    },
    "mt5": {
        "model_type": "mt5",
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 2,
    },
}

FAMILIES = (
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "RN50",
    "convnext_base",
    "convnext_large_d",
    "swin_base_patch4_window7_224",
    "vit_medium_patch16_gap_256",
    "ViTamin-S",
    "EVA02-B-16",
    "MobileCLIP-B",
    "MobileCLIP-S1",
    "PE-Core-B-16",
    "coca_base",
    "coca_ViT-B-32",
    "coca_roberta-ViT-B-32",
    "nllb-clip-base",
    "roberta-ViT-B-32",
    "mt5-base-ViT-B-32",
    "ViT-B-16-SigLIP",
    "nllb-clip-base-siglip",
    "ViT-SO400M-16-SigLIP-i18n-256",
)
"""One open_clip configuration of each row of the table, or more where a row has several kinds."""


def config(name: str, folder: Path) -> dict[str, Any]:
    """The open_clip configuration of that name with small numbers; structure untouched.

    Args:
        name: One of `FAMILIES`.
        folder: Where a Hugging Face text tower's own configuration is put.

    Returns:
        Contents of an open_clip_config.json.
    """
    model = open_clip.get_model_config(name)
    vision, text = model["vision_cfg"], model["text_cfg"]
    model["embed_dim"] = SIGLIP_DIM if "siglip" in name.lower() else DIM
    vision["image_size"] = 32
    if "timm_model_name" in vision:
        vision["timm_model_name"] = _TIMM[name]
    elif isinstance(vision["layers"], list):
        vision.update(layers=[1, 1, 1, 1], width=2, image_size=32)
    else:
        vision.update(layers=1, width=16, head_width=8, patch_size=16)
        if vision.get("attentional_pool"):
            vision.update(attn_pooler_heads=2, attn_pooler_queries=4)
    if "hf_model_name" in text:
        kind = next(k for k in _HF_TEXT if k in text["hf_model_name"])
        text_folder = folder / f"text-{kind}"
        text_folder.mkdir(parents=True, exist_ok=True)
        own = {**_HF_TEXT[kind], "vocab_size": 64, "pad_token_id": 1}
        (text_folder / "config.json").write_text(json.dumps(own))
        text.update(hf_model_name=str(text_folder), context_length=8)
    else:
        text.update(_OWN_TEXT, context_length=8)
        if "mlp_ratio" in text:
            text["mlp_ratio"] = 2.0
        if "proj_type" in text:
            text["width"] = model["embed_dim"]
    if "hf_tokenizer_name" in text:
        text["vocab_size"] = 64
        text.pop("tokenizer_kwargs", None)
    if "multimodal_cfg" in model:
        model["multimodal_cfg"].update(
            width=16, heads=2, layers=1, context_length=8, vocab_size=text.get("vocab_size", 64)
        )
    return {
        "model_cfg": model,
        "preprocess_cfg": {
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "interpolation": "bilinear",
            "resize_mode": "squash",
        },
    }


def write(
    name: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    header: dict[str, str] | None = None,
) -> Path:
    """Write a model folder of that family with random weights, none of them zero.

    Args:
        name: One of `FAMILIES`.
        folder: The folder to make.
        dtype: What floating-point tensors are stored in.
        header: Free text of the weights file.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    made = config(name, folder.parent / f"{folder.name}-text")
    return write_config(made, folder, dtype, header)


def write_config(
    made: dict[str, Any],
    folder: Path,
    dtype: torch.dtype = torch.float32,
    header: dict[str, str] | None = None,
) -> Path:
    """The same of any configuration.

    Args:
        made: Contents of an open_clip_config.json.
        folder: The folder to make.
        dtype: What floating-point tensors are stored in.
        header: Free text of the weights file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(made, indent=1))
    if "hf_tokenizer_name" in made["model_cfg"]["text_cfg"]:
        _write_tokenizer(folder)
    model = build(folder)
    state = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    save_file(
        {key: value.clone().contiguous() for key, value in state.items()},
        folder / "open_clip_model.safetensors",
        metadata=header or {"format": "pt"},
    )
    return folder


def build(folder: Path) -> nn.Module:
    """A random model of a folder's configuration, whose features differ from input to input."""
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    try:
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
    finally:
        logging.disable(logging.NOTSET)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim >= 2:
                value.normal_(std=value[0].numel() ** -0.5)
            elif key not in ("logit_scale", "logit_bias"):
                value.add_(torch.randn_like(value), alpha=0.3)
    return model.eval()


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = (
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "a",
        "photo",
        "of",
        "the",
        "cat",
        "dog",
        "car",
        "tree",
    )
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)


PROMPTS = ["a photo of the cat", "dog", "a car of the tree tree"]


def images(count: int = 4) -> torch.Tensor:
    """The same random images every time."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))
