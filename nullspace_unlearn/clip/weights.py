"""A weights file: what it is, whether it can be the configuration's, and its way into a network."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors import SafetensorError, safe_open
from torch import nn

from nullspace_unlearn.clip.source import one_line
from nullspace_unlearn.clip.trust import weights_only
from nullspace_unlearn.files import check_regular

_POSITIONS = {
    "visual.positional_embedding": "image_size",
    "positional_embedding": "context_length",
    "text.positional_embedding": "context_length",
}
_SMALL = 1 << 28  # bytes; of a smaller model loading itself says what does not fit
_A_LAYER = 500  # bytes of a file that the names of a layer's tensors take at least
# What others put before the names of a state_dict; open_clip itself takes "module." away.
_PREFIX = re.compile(r'Unexpected key\(s\) in state_dict: "((?:_orig_mod|model|module|clip)\.)')


def check_weights(path: Path, model_cfg: Mapping[str, Any]) -> None:
    """Refuse what cannot be the weights of a configuration, before the model is built.

    Args:
        path: The file.
        model_cfg: The configuration's, whose towers must be such as the file has room for: one that
            asks for a million layers would fill the memory.

    Raises:
        ValueError: Saying what the file is, or what the configuration asks for.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            start = file.read(200)
        if said := _what_it_is(path, start):
            raise ValueError(said)
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as tensors:
                tensors.keys()
    except SafetensorError as error:
        raise ValueError(f"weights file {path} is damaged: {one_line(error)}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"weights file {path} cannot be read: {one_line(error)}") from None
    least, size = _least_bytes(model_cfg), path.stat().st_size
    if least > max(size, _SMALL):
        raise ValueError(
            f"the configuration asks for a model of at least {least:,} bytes, and weights file "
            f"{path} has {size:,}: they do not belong together"
        )


def load_weights(model: nn.Module, path: Path) -> None:
    """Read a weights file into a network, running nothing that is in it.

    Args:
        model: The network, built by open_clip.
        path: The file, as `check_weights` lets it through.

    Raises:
        ValueError: If it cannot be read, or does not fit the network.
    """
    try:
        with weights_only():
            open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:
        text, message = str(error), one_line(error)
        if "weights_only" in text or "Weights only" in text:
            message = "it holds pickled code rather than weights only; save its state_dict instead"
        elif "not implemented for 'Half'" in text or "not implemented for 'BFloat16'" in text:
            message = (
                "it is for images of another size than the configuration's image_size, and 16-bit "
                "position embeddings are not resized: set image_size to that of the weights"
            )
        elif prefix := _PREFIX.search(text):
            message = (
                f"the names of its tensors begin with {prefix[1]!r}, which wrapping a model puts "
                "before them: save the state_dict without that, {name.removeprefix("
                f"{prefix[1]!r}): value for name, value in state.items()}}"
            )
        elif "Missing key" in text or "size mismatch" in text:
            message = f"it does not fit the model: {message}"
        raise ValueError(f"cannot load weights file {path}: {message}") from None


def warn_of_resized(model: nn.Module, path: Path) -> None:
    """Warn where open_clip stretches position embeddings to another length.

    Args:
        model: The network.
        path: Its weights file; only of a safetensors file is this known.
    """
    if path.suffix != ".safetensors":
        return
    own = {name: len(value) for name, value in model.named_parameters() if name in _POSITIONS}
    with safe_open(str(path), framework="pt") as file:
        held = {name: file.get_slice(name).get_shape()[0] for name in own if name in file.keys()}
    for name, length in held.items():
        if length != own[name]:
            warnings.warn(
                f"weights file {path} has {length} position embeddings, and the configuration's "
                f"{_POSITIONS[name]} asks for {own[name]}: they are resized",
                stacklevel=5,
            )


def _what_it_is(path: Path, start: bytes) -> str | None:
    """What stands in the place of weights, and what to do; None where it may be weights."""
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and no weights: git lfs pull brings them"
    if start.lstrip()[:1] == b"<":
        return "it is a web page and no weights: download the file itself"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                return (
                    "it is a TorchScript archive, which is code: torch.save its state_dict() "
                    "instead, from torch.jit.load"
                )
    return None


def _least_bytes(model_cfg: Mapping[str, Any]) -> int:
    """Less than any weights file of a configuration has, at a byte a number.

    Towers of timm and of Hugging Face are not counted: others say how large they are.
    """
    vision = {**asdict(CLIPVisionCfg()), **model_cfg["vision_cfg"]}
    text = {**asdict(CLIPTextCfg()), **model_cfg["text_cfg"]}
    least = 0
    if not vision["timm_model_name"]:
        patches = _number(vision["image_size"]) // max(_number(vision["patch_size"]), 1)
        # Of a ResNet, whose layers are a list, the first of a stage's blocks are as small as this.
        least += _blocks(vision) + (
            0 if isinstance(vision["layers"], list) else patches**2 * _number(vision["width"])
        )
    if not text["hf_model_name"]:
        rows = _number(text["vocab_size"]) + _number(text["context_length"])
        least += _blocks(text) + rows * _number(text["width"])
    return least


def _blocks(tower: Mapping[str, Any]) -> int:
    layers, width = tower["layers"], _number(tower["width"])
    count = sum(map(_number, layers)) if isinstance(layers, list) else _number(layers)
    return count * (4 * width**2 + _A_LAYER)


def _number(value: Any) -> int:
    """A size; of what is none, which open_clip will refuse, 0; of rows and columns the smaller."""
    if isinstance(value, list | tuple):
        return min(map(_number, value), default=0)
    return value if isinstance(value, int) and value > 0 else 0
