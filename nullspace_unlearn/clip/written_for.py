"""A model of open_clip in transformers' terms: configuration, preprocessing, tokenizer."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from timm.layers.activations import GELUTanh
from timm.models import VisionTransformer
from torch import nn

_SIZES = ("layers", "width", "mlp_ratio", "act_kwargs", "norm_kwargs")
_IMAGE = (*_SIZES, "image_size", "patch_size", "head_width", "patch_dropout")
_TEXT = (
    *_SIZES,
    *("heads", "context_length", "vocab_size", "pool_type", "eos_id"),
    *("hf_tokenizer_name", "tokenizer_kwargs", "pad_id"),
)
_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text")
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_START, _END = "<|startoftext|>", "<|endoftext|>"


def clip_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a `CLIPModel` that computes what a model of open_clip does.

    Args:
        config: Contents of an open_clip_config.json.

    Returns:
        Contents of the config.json.

    Raises:
        ValueError: If the model has what transformers' CLIP has not.
    """
    model = config["model_cfg"]
    image = {**asdict(CLIPVisionCfg()), **model["vision_cfg"]}
    text = {**asdict(CLIPTextCfg()), **model["text_cfg"]}
    for place, given, known, default in (
        ("", model, _MODEL, {}),
        ("vision_cfg.", image, _IMAGE, asdict(CLIPVisionCfg())),
        ("text_cfg.", text, _TEXT, asdict(CLIPTextCfg())),
    ):
        for key, value in given.items():
            if key not in known and value != default.get(key):
                raise ValueError(
                    f"transformers' CLIPModel has nothing like {place}{key} = {value!r} of this "
                    "model; vision transformers of open_clip's own with its text tower have a place"
                )
    if not isinstance(image["layers"], int):
        raise ValueError("transformers' CLIPModel is a vision transformer, and this is a ResNet")
    if text["pool_type"] not in ("argmax", "eos"):
        raise ValueError(f"transformers' CLIPModel does not pool by {text['pool_type']!r}")
    last = text["vocab_size"] - 1
    end = text["eos_id"] if text["pool_type"] == "eos" else last
    quick = bool(model.get("quick_gelu"))
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        # Else edited tensors would be rounded to what the others are stored in.
        "torch_dtype": "float32",
        "projection_dim": model["embed_dim"],
        "vision_config": {
            **_tower(image, image["width"] // image["head_width"], quick),
            "model_type": "clip_vision_model",
            "projection_dim": model["embed_dim"],
            "image_size": image["image_size"],
            "patch_size": image["patch_size"],
        },
        "text_config": {
            **_tower(text, text["heads"], quick),
            "model_type": "clip_text_model",
            "projection_dim": model["embed_dim"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": last - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
    }


def is_siglip(config: Mapping[str, Any]) -> bool:
    """Whether a model of open_clip has the towers of SigLIP.

    Args:
        config: Contents of an open_clip_config.json.
    """
    model = config["model_cfg"]
    image, text = model["vision_cfg"], model["text_cfg"]
    return image.get("timm_pool") == "map" and bool(text.get("proj_bias"))


def siglip_config(config: Mapping[str, Any], visual: nn.Module) -> dict[str, Any]:
    """The config.json of a `SiglipModel` that computes what a model of open_clip does.

    Args:
        config: Contents of an open_clip_config.json, for which `is_siglip`.
        visual: The image tower, whose sizes timm knows by its name alone.

    Returns:
        Contents of the config.json.

    Raises:
        ValueError: If the model has what transformers' SigLIP has not.
    """
    model, trunk = config["model_cfg"], getattr(visual, "trunk", None)
    text = {**asdict(CLIPTextCfg()), **model["text_cfg"]}
    needed = {"no_causal_mask": True, "pool_type": "last", "hf_model_name": None}
    for key, value in needed.items():
        if text[key] != value:
            raise ValueError(
                f"transformers' SiglipModel has nothing like text_cfg.{key} = {text[key]!r} of "
                f"this model; it has {value!r}"
            )
    if model["vision_cfg"].get("timm_proj", "linear") != "none":
        raise ValueError(
            "transformers' SiglipModel has no place for the projection of this model's image "
            "tower, which an edit put there: export it to onnx, or leave it open_clip's"
        )
    if not isinstance(trunk, VisionTransformer) or trunk.num_prefix_tokens:
        raise ValueError("transformers' SiglipModel is a vision transformer without class token")
    block: Any = trunk.blocks[0]
    act, image_size, patch = block.mlp.act, trunk.patch_embed.img_size, trunk.patch_embed.patch_size
    tanh = isinstance(act, GELUTanh) or getattr(act, "approximate", "none") == "tanh"
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "torch_dtype": "float32",  # as above
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": trunk.embed_dim,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": block.attn.num_heads,
            "hidden_act": "gelu_pytorch_tanh" if tanh else "gelu",
            "layer_norm_eps": block.norm1.eps,
            "image_size": image_size[0],
            "patch_size": patch[0],
        },
        "text_config": {
            **_tower(text, text["heads"], quick=False),
            "model_type": "siglip_text_model",
            "projection_size": model["embed_dim"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": text["pad_id"],
        },
    }


def _tower(cfg: Mapping[str, Any], heads: int, quick: bool) -> dict[str, Any]:
    act = cfg["act_kwargs"] or {}
    if quick:
        activation = "quick_gelu"
    elif act.get("approximate", "none") == "tanh":
        activation = "gelu_pytorch_tanh"
    else:
        activation = "gelu"
    return {
        "hidden_size": cfg["width"],
        "intermediate_size": int(cfg["width"] * cfg["mlp_ratio"]),
        "num_hidden_layers": cfg["layers"],
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": (cfg["norm_kwargs"] or {}).get("eps", 1e-5),
    }


def preprocessor_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessor_config.json that prepares images as a model of open_clip has them.

    Args:
        config: Contents of an open_clip_config.json.

    Returns:
        Contents of the preprocessor_config.json.

    Raises:
        ValueError: If transformers' CLIP cannot prepare them so.
    """
    cfg, size = config["preprocess_cfg"], config["model_cfg"]["vision_cfg"]["image_size"]
    kind = "SiglipImageProcessor" if is_siglip(config) else "CLIPImageProcessor"
    rows, columns = size if isinstance(size, list | tuple) else (size, size)
    shortest = cfg["resize_mode"] == "shortest" and rows == columns
    if not shortest and cfg["resize_mode"] != "squash":
        raise ValueError(f"transformers' CLIP does not resize images by {cfg['resize_mode']!r}")
    if cfg["interpolation"] not in _RESAMPLE:
        raise ValueError(f"transformers' CLIP does not resize by {cfg['interpolation']!r}")
    whole = {"height": rows, "width": columns}
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": rows} if shortest else whole,
        "resample": _RESAMPLE[cfg["interpolation"]],
        "do_center_crop": shortest,
        "crop_size": whole,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(cfg["mean"]),
        "image_std": list(cfg["std"]),
    }


def write_tokenizer(tokenizer: Any, context_length: int, folder: Path) -> None:
    """Write a tokenizer of open_clip's as transformers reads it.

    Args:
        tokenizer: open_clip's.
        context_length: Tokens that the text tower reads.
        folder: Where to.

    Raises:
        ValueError: If it is neither CLIP's own nor one of transformers.
    """
    if isinstance(tokenizer, HFTokenizer):
        _cleaning(tokenizer).save_pretrained(folder)
        return
    if type(tokenizer) is not SimpleTokenizer or len(tokenizer.encoder) != 49408:
        raise ValueError(f"a {type(tokenizer).__name__} of open_clip has no like in transformers")
    words = sorted(tokenizer.encoder, key=tokenizer.encoder.__getitem__)[:-2]
    ids = {word: i for i, word in enumerate((*words, _START, _END))}
    merges = (" ".join(pair) for pair in tokenizer.bpe_ranks)
    special = {"bos_token": _START, **dict.fromkeys(("eos_token", "unk_token", "pad_token"), _END)}
    about = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "do_lower_case": True,
        **special,
    }
    texts = {
        "vocab.json": json.dumps(ids, ensure_ascii=False),
        "merges.txt": "\n".join(("#version: 0.2", *merges, "")),
        "tokenizer_config.json": json.dumps(about, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _cleaning(tokenizer: HFTokenizer) -> Any:
    """The tokenizer of transformers that one of open_clip holds, with what that does before it."""
    own = tokenizer.tokenizer
    if getattr(tokenizer.clean_fn, "__name__", "") != "_clean_canonicalize":
        return own
    from tokenizers import Regex, normalizers

    made = copy.deepcopy(own)
    backend = made.backend_tokenizer
    steps = [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex("[" + "".join(f"\\{c}" for c in string.punctuation) + "]"), ""),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
        *([] if backend.normalizer is None else [backend.normalizer]),
    ]
    backend.normalizer = normalizers.Sequence(steps)
    return made


def is_clips_own(tokenizer: HFTokenizer) -> bool:
    """Whether a tokenizer of transformers is the one that open_clip brings along."""
    ids, own = tokenizer.tokenizer.get_vocab(), SimpleTokenizer().encoder
    plain = {word: i for word, i in own.items() if i < len(own) - 2}
    return len(ids) == len(own) and all(ids.get(word) == i for word, i in plain.items())
