"""Folders of transformers and sentence-transformers: what they hold, in open_clip's terms.

Nothing but configurations is read here, and no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nullspace_unlearn.clip import ties
from nullspace_unlearn.clip.layout import (
    CONFIG_NAME,
    HF_CONFIG_NAME,
    HF_WEIGHTS_NAME,
    MODULES_NAME,
    Layout,
    Library,
)
from nullspace_unlearn.clip.source import one_line
from nullspace_unlearn.files import read_json, read_text
from nullspace_unlearn.spelling import listed

KINDS = {
    "clip": "CLIPModel",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
}
"""Classes of transformers that can be loaded, by what their config.json calls them."""

FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""What a folder holds beside weights: configurations, tokenizer, preprocessing."""

DOWNLOADED = (*FILES, "*.yaml", HF_WEIGHTS_NAME, f"*_*/{HF_WEIGHTS_NAME}")

PADDED = (
    "sentence-transformers pads texts to the longest of a batch, and SigLIP reads a full length, "
    "so that it computes other features there"
)
"""Why the one has no place for the other."""

_WITHOUT = {
    "CLIPVisionModel": "CLIPVisionModelWithProjection",
    "CLIPTextModel": "CLIPTextModelWithProjection",
    "CLIPForImageClassification": "CLIPModel",
    "SiglipForImageClassification": "SiglipModel",
    "Siglip2ForImageClassification": "Siglip2Model",
}
"""Classes that have no projection to the joint space -> the class that has."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "tf_model.h5")
_CODE = (
    HF_CONFIG_NAME,
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_MEAN = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "siglip": ([0.5] * 3, [0.5] * 3),
    "siglip2": ([0.5] * 3, [0.5] * 3),
}


@dataclass(frozen=True)
class Found:
    """What a folder of transformers or sentence-transformers holds.

    Attributes:
        config: The open_clip_config.json that describes it.
        layout: Where it keeps what.
        part: The folder of the model's own files.
        text: Its config.json, verbatim.
    """

    config: dict[str, Any]
    layout: Layout
    part: Path
    text: str


def layout_of(folder: Path) -> Layout | None:
    """How a folder keeps a model, by its configuration alone.

    Args:
        folder: Any folder.

    Returns:
        The layout, without ties where it is not open_clip's; None where it is no model folder.
    """
    if (folder / CONFIG_NAME).is_file():
        return Layout()
    try:
        library, part = _part(folder)
        kind = KINDS.get(_json(folder / part / HF_CONFIG_NAME).get("model_type", ""))
    except ValueError:
        return None
    return None if kind is None else Layout(library, kind, part)


def looks_like_one(folder: Path) -> bool:
    """Whether a folder is one of transformers or sentence-transformers, and of no other library."""
    there = ((folder / name).is_file() for name in (MODULES_NAME, HF_CONFIG_NAME))
    return not (folder / CONFIG_NAME).is_file() and any(there)


def find(folder: Path) -> Found:
    """Read what a folder holds.

    Args:
        folder: The folder.

    Returns:
        Its contents in open_clip's terms.

    Raises:
        ValueError: If it holds no CLIP or SigLIP model, one without projections, weights in
            several files or pickled, or code; or what open_clip's modules cannot compute.
    """
    library, part = _part(folder)
    place = folder / part
    file = place / HF_CONFIG_NAME
    config = _json(file)
    _refuse_code(place)
    kind, given = _kind(file, config), config.get("model_type")
    _check_weights(place)
    try:
        _check_size(file, config)
        clip = given in ("clip", "clip_vision_model", "clip_text_model")
        made, tied, sides = (_clip if clip else _siglip)(kind, config)
        made["preprocess_cfg"] = _preprocessing(place, made, "clip" if clip else given)
    except ImportError:
        raise ValueError(
            f"{folder} is a folder of transformers, which is not installed: "
            "pip install 'nullspace-unlearn[hf]'"
        ) from None
    except KeyError as error:
        raise ValueError(f"{file} cannot be used: it lacks {error}") from None
    except Exception as error:  # of transformers' own checks too, of whatever kind
        raise ValueError(f"{file} cannot be used: {one_line(error)}") from None
    return Found(made, Layout(library, kind, part, tied, sides), place, read_text(file))


def _part(folder: Path) -> tuple[Library, str]:
    """Which library's a folder is, and where in it the model's own files are."""
    file = folder / MODULES_NAME
    if not file.is_file():
        return "transformers", ""
    modules = _json(file, list)
    try:
        first, *rest = ((str(one["type"]).rpartition(".")[2], one["path"]) for one in modules)
        if not all(isinstance(path, str) for _, path in (first, *rest)):
            raise TypeError("a path is no text")
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} lists no modules of sentence-transformers") from None
    kind, part = first
    inside = (folder / part).resolve()
    if not inside.is_relative_to(folder.resolve()):
        raise ValueError(f"{file} names {part!r}, which is outside the folder")
    told = HF_CONFIG_NAME if (inside / HF_CONFIG_NAME).is_file() else None
    model = _json(inside / HF_CONFIG_NAME).get("model_type") if told else "nothing"
    if kind not in ("CLIPModel", "Transformer") or model not in ("clip", "siglip", "siglip2"):
        raise ValueError(
            f"{str(folder)!r} is a folder of sentence-transformers, but of no CLIP: its first "
            f"module is {kind} ({model}), allowed: CLIPModel, or Transformer with clip"
        )
    if model != "clip":
        raise ValueError(
            f"{str(folder)!r} is a SigLIP of sentence-transformers. {PADDED}: give a folder of "
            f"transformers, such as this one without {MODULES_NAME}"
        )
    if further := [name for name, _ in rest if name != "Normalize"]:
        raise ValueError(
            f"{str(folder)!r} changes what CLIP computes by {further[0]}; allowed after CLIPModel: "
            "Normalize"
        )
    return "sentence-transformers", part.strip("/")


def _json(file: Path, kind: type = dict) -> Any:
    if not file.is_file():
        raise ValueError(f"model folder {str(file.parent)!r} holds no {file.name}")
    try:
        value = read_json(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {one_line(error)}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{file} is damaged: it holds no {kind.__name__}")
    return value


def _refuse_code(place: Path) -> None:
    for name in _CODE:
        if (place / name).is_file() and _json(place / name).get("auto_map"):
            raise ValueError(
                f"{place / name} brings code along (auto_map), which is refused: no code that "
                "comes with a model is run"
            )


def _kind(file: Path, config: Mapping[str, Any]) -> str:
    given, classes = config.get("model_type"), config.get("architectures") or [None]
    if (able := _WITHOUT.get(classes[0])) is not None:
        raise ValueError(
            f"{file} is a {classes[0]}, which has no projection to the space that images and "
            f"names share, so there is nothing to edit; allowed: {able}"
        )
    kind = KINDS.get(given) if isinstance(given, str) else None
    if kind is None:
        raise ValueError(
            f"{file} is a model of type {given!r}; allowed: {listed(tuple(KINDS.values()))}"
        )
    return kind


def _check_weights(place: Path) -> None:
    if (place / HF_WEIGHTS_NAME).is_file():
        return
    if (place / f"{HF_WEIGHTS_NAME}.index.json").is_file():
        raise ValueError(
            f"{str(place)!r} keeps its weights in several files, which is not read; save it with "
            "model.save_pretrained(folder, max_shard_size='100GB')"
        )
    if pickles := [name for name in _PICKLES if (place / name).is_file()]:
        raise ValueError(
            f"{str(place)!r} holds {pickles[0]}, which may run code and is never read; save the "
            f"model as {HF_WEIGHTS_NAME} with model.save_pretrained(folder)"
        )
    raise ValueError(f"model folder {str(place)!r} holds no {HF_WEIGHTS_NAME}")


def _check_size(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that would fill the memory, and whose weights are not there."""
    towers = [config.get(name) or {} for name in ("vision_config", "text_config")]
    sizes = [[one.get(name, 0) for name in ("num_hidden_layers", "hidden_size")] for one in towers]
    asked = sum(4 * n * width**2 + 500 * n for n, width in sizes)
    held = (file.parent / HF_WEIGHTS_NAME).stat().st_size
    if asked > max(held, _SMALL):
        raise ValueError(
            f"it asks for a model of at least {asked:,} bytes, and {HF_WEIGHTS_NAME} has "
            f"{held:,}: they do not belong together"
        )


_SMALL = 1 << 28  # bytes; of a smaller model loading itself says what does not fit

_Read = tuple[dict[str, Any], tuple[ties.Tie, ...], tuple[Any, ...]]


def _clip(kind: str, config: Mapping[str, Any]) -> _Read:
    """The configuration in open_clip's terms, the ties, and the sides that can be edited."""
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    image: Any = None
    text: Any = None
    if kind == "CLIPModel":
        whole: Any = CLIPConfig.from_dict(dict(config))
        image, text, dim = whole.vision_config, whole.text_config, whole.projection_dim
    elif kind == "CLIPVisionModelWithProjection":
        image = CLIPVisionConfig.from_dict(dict(config))
        dim = image.projection_dim
    else:
        text = CLIPTextConfig.from_dict(dict(config))
        dim = text.projection_dim
    made: dict[str, Any] = {"embed_dim": dim}
    tied: tuple[ties.Tie, ...] = ()
    quick = {tower.hidden_act == "quick_gelu" for tower in (image, text) if tower is not None}
    if len(quick) > 1:
        raise ValueError("its towers have different activations, one of them quick_gelu")
    made["quick_gelu"] = quick.pop()
    if image is not None:
        made["vision_cfg"] = {
            "image_size": image.image_size,
            "layers": image.num_hidden_layers,
            "width": image.hidden_size,
            "head_width": image.hidden_size // image.num_attention_heads,
            "mlp_ratio": _ratio(image),
            "patch_size": image.patch_size,
            **_activation(image),
            **_norm(image),
        }
        tied += ties.clip_image(image.num_hidden_layers)
    if text is not None:
        eos = text.eos_token_id
        # transformers takes 2 to mean the largest id, as models before 2023 say it.
        pool = {} if eos in (2, text.vocab_size - 1) else {"pool_type": "eos", "eos_id": eos}
        made["text_cfg"] = {**_text(text), **pool}
        tied += ties.clip_text(text.num_hidden_layers)
    if kind == "CLIPModel":
        tied += (ties.Tie(("logit_scale",), ("logit_scale",)),)
    sides = [side for side, tower in (("visual", image), ("text", text)) if tower is not None]
    return {"model_cfg": made}, tied, tuple(sides)


def _siglip(kind: str, config: Mapping[str, Any]) -> _Read:
    import transformers

    class_ = getattr(transformers, "SiglipConfig" if kind == "SiglipModel" else "Siglip2Config")
    whole: Any = class_.from_dict(dict(config))
    image, text = whole.vision_config, whole.text_config
    if not getattr(image, "vision_use_head", True):
        raise ValueError("its image tower has no head, so it gives no embedding")
    patches = kind == "Siglip2Model"
    if patches:
        # Images come in many shapes; those that fill the grid of the position embeddings do here.
        side = int(image.num_patches**0.5) * image.patch_size
        size = side if side * side == image.num_patches * image.patch_size**2 else None
        if size is None:
            raise ValueError(f"its {image.num_patches} patches are no square")
    else:
        size = image.image_size
    made = {
        "embed_dim": image.hidden_size,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": size,
            "timm_model_name": _timm_tower(image, size),
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **_text(text),
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    }
    tied = (
        *ties.siglip_image(image.num_hidden_layers, patches),
        *ties.siglip_text(text.num_hidden_layers),
        *(ties.Tie((name,), (name,)) for name in ("logit_scale", "logit_bias")),
    )
    return {"model_cfg": made}, tied, ("text",)


def _text(text: Any) -> dict[str, Any]:
    return {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": _ratio(text),
        **_activation(text),
        **_norm(text),
    }


def _ratio(tower: Any) -> float:
    ratio = tower.intermediate_size / tower.hidden_size
    # open_clip cuts the product to a whole number, which rounding may have taken below it.
    exact = int(tower.hidden_size * ratio) == tower.intermediate_size
    return ratio if exact else (tower.intermediate_size + 0.5) / tower.hidden_size


_TANH = "gelu_pytorch_tanh"


def _activation(tower: Any) -> dict[str, Any]:
    if tower.hidden_act in ("gelu", "quick_gelu"):
        return {}
    if tower.hidden_act in (_TANH, "gelu_new"):
        return {"act_kwargs": {"approximate": "tanh"}}
    raise ValueError(f"its activation is {tower.hidden_act!r}; allowed: gelu, quick_gelu, {_TANH}")


def _norm(tower: Any) -> dict[str, Any]:
    return {} if tower.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": tower.layer_norm_eps}}


def _timm_tower(image: Any, size: int) -> str:
    """Register SigLIP's image tower in timm, from where open_clip builds it, by a name of its own.

    timm's own are of some sizes only, and some take another approximation of GELU.
    """
    from timm.models import VisionTransformer, is_model, register_model

    approximate = _activation(image).get("act_kwargs", {"approximate": "none"})["approximate"]
    shape = (image.hidden_size, image.num_hidden_layers, image.num_attention_heads)
    of = (*shape, image.intermediate_size, image.patch_size, size, image.layer_norm_eps)
    name = "_".join(("nsu_siglip", *map(str, of), approximate)).replace(".", "p").replace("-", "m")

    def build(pretrained: bool = False, **_: Any) -> nn.Module:
        made: nn.Module = VisionTransformer(
            img_size=size,
            patch_size=image.patch_size,
            embed_dim=image.hidden_size,
            depth=image.num_hidden_layers,
            num_heads=image.num_attention_heads,
            mlp_ratio=_ratio(image),
            class_token=False,
            global_pool="map",
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=image.layer_norm_eps),
            act_layer=partial(nn.GELU, approximate=approximate),
        )
        return made

    if not is_model(name):
        build.__name__ = name
        register_model(build)
    return name


def _preprocessing(place: Path, made: Mapping[str, Any], family: str) -> dict[str, Any]:
    """How images are brought to size, as open_clip says it."""
    said: dict[str, Any] = {}
    if (place / "preprocessor_config.json").is_file():
        said = _json(place / "preprocessor_config.json")
    elif (place / "processor_config.json").is_file():
        said = _json(place / "processor_config.json").get("image_processor") or {}
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not said.get(step, True):
            raise ValueError(f"its images are prepared without {step}, which is not supported")
    mean, std = _MEAN[family]
    resample = said.get("resample", 2 if family == "siglip2" else 3)
    if resample not in _RESAMPLE:
        raise ValueError(f"its images are resized by filter {resample}; allowed: {_RESAMPLE}")
    cfg = {
        "mean": said.get("image_mean", mean),
        "std": said.get("image_std", std),
        "interpolation": _RESAMPLE[resample],
        "resize_mode": "squash",
    }
    if "vision_cfg" not in made["model_cfg"]:
        return cfg
    wanted = made["model_cfg"]["vision_cfg"]["image_size"]
    size = said.get("size", {"shortest_edge": wanted} if family == "clip" else None)
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if size is None or "max_num_patches" in said:
        return cfg
    if "shortest_edge" in size:
        cut = said.get("crop_size", wanted)
        cut = {cut.get("height"), cut.get("width")} if isinstance(cut, dict) else {cut}
        if not said.get("do_center_crop", True) or cut != {size["shortest_edge"]}:
            raise ValueError(
                f"its images are resized to {size} and then cropped to another size, or not at "
                "all, which is not supported"
            )
        size = {"height": size["shortest_edge"], "width": size["shortest_edge"]}
        cfg["resize_mode"] = "shortest"
    both = [size.get("height"), size.get("width")]
    if both != (wanted if isinstance(wanted, list) else [wanted, wanted]):
        raise ValueError(f"its images are resized to {both}, and its tower takes {wanted}")
    return cfg
