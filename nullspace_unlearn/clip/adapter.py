"""Visual prompts as a `Clip` and as a folder: a small file beside the model it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nullspace_unlearn.clip import tensors
from nullspace_unlearn.clip.card import adapter_card
from nullspace_unlearn.clip.folder import check_outputs, plain_texts
from nullspace_unlearn.clip.model import Clip
from nullspace_unlearn.clip.source import ADAPTER_NAME, CARD_NAME, one_line
from nullspace_unlearn.clip.visual_prompts import Adapter, VisualPrompts, with_prompts
from nullspace_unlearn.files import check_regular, new_folder

_FORMAT = "nullspace-unlearn visual prompts 1"


@dataclass(frozen=True)
class Stored:
    """What an adapter file holds.

    Attributes:
        path: The file.
        model: What the model it belongs to was asked for by; a local folder by its name alone.
        pretrained: The tag that was asked for with it, or a weights file by its name alone.
        sha256: Hash of that model's weights file.
        provenance: How the prompts came to be.
        depth: Blocks that get prompts.
        tokens: Prompts a block.
        heads: Of the generator's attention; 0 where there is none.
        state: The parameters by name.
    """

    path: Path
    model: str
    pretrained: str | None
    sha256: str
    provenance: Mapping[str, Any]
    depth: int
    tokens: int
    heads: int
    state: Mapping[str, Tensor]


def attach(clip: Clip, prompts: VisualPrompts, provenance: Mapping[str, Any]) -> Clip:
    """Let a model's image tower read visual prompts.

    Args:
        clip: The model.
        prompts: The prompts; frozen and put on the model's device.
        provenance: How they came to be; plain JSON values.

    Returns:
        A copy that shares every tensor with this model. It encodes and is evaluated like any other,
        but cannot be edited or saved as a model folder; `save_adapter` writes the prompts.

    Raises:
        ValueError: If the tower takes no prompts, or they are for another kind of tower.
    """
    prompts = prompts.to(clip.device).eval().requires_grad_(False)
    model = with_prompts(clip.model, prompts)
    return replace(clip, model=model, adapter=Adapter(prompts, dict(provenance)))


def save_adapter(
    clip: Clip,
    path: str | Path,
    overwrite: bool = False,
    recipe: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Write a folder with the prompts of a model, which `load` puts back into the model.

    `adapter.safetensors` holds the prompts as `values` `[depth, tokens, width]` and, if they depend
    on the image, the generator's parameters as `generator.*`, all float32. Its header says, all as
    text, "format" ("nullspace-unlearn visual prompts 1"), "model" and "pretrained" (what was asked
    for, a local folder or file by its name alone), "base_model" (its Hugging Face repository, where
    known), "sha256" (of the model's weights file), "depth", "tokens", "heads" (0 without a
    generator) and "provenance" (JSON).

    Args:
        clip: A model that `attach` or `load` gave its prompts.
        path: The folder to write.
        overwrite: Whether an existing adapter or model folder may be replaced.
        recipe: What was asked for, written to recipe.yaml; absent: what the prompts say of
            themselves.
        report: What was measured, written to report.json.
        card: Text of README.md; one is written if absent.

    Returns:
        The folder.

    Raises:
        OutputExists: If the folder exists and `overwrite` is false.
        ValueError: If the model has no prompts or no weights file, has been edited since it was
            loaded, or an argument cannot be used.
        OSError: If writing fails; nothing is left half-written.
    """
    path = Path(path)
    check_outputs(clip.source, path, None, overwrite)
    if clip.adapter is None:
        raise ValueError("the model has no visual prompts to write; `Clip.save` saves a model")
    if clip.source.sha256 is None or clip.changes:
        why = "has been edited since it was loaded" if clip.changes else "has random weights"
        raise ValueError(
            f"the prompts belong to a model that {why}, which could not be found again; save the "
            "model, load that, and train prompts for it"
        )
    prompts, provenance = clip.adapter.prompts, dict(clip.adapter.provenance)
    depth, tokens, _ = prompts.values.shape
    base = {
        "model": clip.source.name,
        "pretrained": clip.source.pretrained or "",
        "base_model": clip.source.base_model or "",
        "sha256": clip.source.sha256,
    }
    try:
        made = json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance holds more than finite plain values: {error}") from None
    header = {
        "format": _FORMAT,
        **base,
        "depth": str(depth),
        "tokens": str(tokens),
        "heads": str(prompts.heads),
        "provenance": made,
    }
    texts = plain_texts(recipe or {**base, "adapter": provenance}, report)
    texts[CARD_NAME] = (
        adapter_card(path.resolve().name, clip.source, prompts) if card is None else card
    )
    state = {key: value.cpu().contiguous() for key, value in prompts.state_dict().items()}
    with new_folder(path, overwrite) as folder:
        tensors.write(folder / ADAPTER_NAME, state, header)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return path


def read_adapter(folder: str | Path) -> Stored:
    """Read what `save_adapter` wrote.

    Args:
        folder: The folder.

    Returns:
        The prompts, and the model they are for.

    Raises:
        ValueError: If the file is damaged, or not such a file.
    """
    path = Path(folder) / ADAPTER_NAME
    try:
        check_regular(Path(path))
        with safe_open(str(path), framework="pt") as file:
            said = file.metadata() or {}
            if said.get("format") != _FORMAT:
                raise ValueError(f"its format is {said.get('format')!r}, not {_FORMAT!r}")
            state = {key: file.get_tensor(key) for key in file.keys()}
        depth, tokens, heads = (int(said[name]) for name in ("depth", "tokens", "heads"))
        provenance = json.loads(said["provenance"])
        if not isinstance(provenance, dict):
            raise ValueError("its provenance is no mapping")
        if list(state["values"].shape[:-1]) != [depth, tokens] or not 0 <= heads <= 1024:
            raise ValueError(
                f"its header says {depth} blocks, {tokens} prompts and {heads} heads, and its "
                f"prompts are {list(state['values'].shape)}"
            )
        for key, value in state.items():
            if value.dtype != torch.float32 or not value.isfinite().all():
                raise ValueError(f"{key} holds other than finite float32 numbers")
        return Stored(
            path=path,
            model=said["model"],
            pretrained=said["pretrained"] or None,
            sha256=said["sha256"],
            provenance=provenance,
            depth=depth,
            tokens=tokens,
            heads=heads,
            state=state,
        )
    except KeyError as error:
        raise ValueError(f"{path} is no adapter file: it lacks {error}") from None
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no adapter file: {one_line(error)}") from None


def put_back(clip: Clip, stored: Stored) -> Clip:
    """Attach prompts that were read from a file to the model they were trained for.

    Args:
        clip: That model.
        stored: From `read_adapter`.

    Returns:
        The model with its prompts.

    Raises:
        ValueError: If it is another model, or the prompts do not fit it.
    """
    if clip.source.sha256 != stored.sha256:
        raise ValueError(
            f"{stored.path} belongs to {stored.model} with weights of sha256 {stored.sha256}, and "
            f"{clip.source.name} has {clip.source.sha256}"
        )
    width = stored.state["values"].shape[-1]
    if stored.heads and width % stored.heads:
        raise ValueError(
            f"{stored.path} is no adapter file: {stored.heads} heads do not divide width {width}"
        )
    # Without memory, since a damaged file may ask for any amount of it.
    with torch.device("meta"):
        prompts = VisualPrompts(stored.depth, stored.tokens, width, stored.heads)
    expected = {key: value.shape for key, value in prompts.state_dict().items()}
    if expected != {key: value.shape for key, value in stored.state.items()}:
        raise ValueError(
            f"{stored.path} is no adapter file: its tensors are not those of prompts of width "
            f"{width} with {stored.heads} heads"
        )
    prompts.load_state_dict(dict(stored.state), assign=True)
    return attach(clip, prompts, stored.provenance)
