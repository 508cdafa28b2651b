"""A model's facts: each that its features depend on is noticed and named, and no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nullspace_unlearn.clip import Clip, attach, load, new_prompts
from nullspace_unlearn.edit import Edit

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


def configured(folder: Path, **parts: Any) -> Clip:
    """The model with other values in its configuration."""
    config = json.loads((folder / CONFIG).read_text())
    for part, values in parts.items():
        config[part] = {**config[part], **values}
    (folder / CONFIG).write_text(json.dumps(config))
    return load(folder, device="cpu")


def reweighted(folder: Path) -> Clip:
    weights = load_file(folder / WEIGHTS)
    weights["visual.proj"][0, 0] *= 1.0001
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return load(folder, device="cpu")


def folded(folder: Path) -> Clip:
    clip = load(folder, device="cpu")
    row = torch.eye(clip.dim, 1, dtype=torch.float64)
    return clip.fold(Edit(row, row))


def retrained(folder: Path) -> Clip:
    clip = load(folder, device="cpu")
    projection = dict(clip.model.named_parameters())["text_projection"]
    return clip.with_parameters({"text_projection": 2 * projection}, {})


def otherwise_read(folder: Path) -> Clip:
    clip = load(folder, device="cpu")

    def tokens(texts: list[str]) -> Tensor:
        return clip.tokenizer([text.upper().replace("A", "O") for text in texts])

    return replace(clip, tokenizer=tokens)


def prompted(folder: Path) -> Clip:
    clip = load(folder, device="cpu")
    return attach(clip, new_prompts(clip.model, 2, 1, generator=False), {})


CHANGES: dict[str, tuple[Callable[[Path], Clip], set[str]]] = {
    "weights": (reweighted, {"weights"}),
    "activation": (
        lambda folder: configured(folder, model_cfg={"quick_gelu": True}),
        {"model_cfg.quick_gelu"},
    ),
    "mean": (
        lambda folder: configured(folder, preprocess_cfg={"mean": [0.4, 0.5, 0.7]}),
        {"preprocessing.mean"},
    ),
    "std": (
        lambda folder: configured(folder, preprocess_cfg={"std": [0.4, 0.5, 0.7]}),
        {"preprocessing.std"},
    ),
    "interpolation": (
        lambda folder: configured(folder, preprocess_cfg={"interpolation": "bicubic"}),
        {"preprocessing.interpolation"},
    ),
    "precision": (lambda folder: load(folder, device="cpu", precision="bf16"), {"precision"}),
    "edit": (folded, {"edits.visual"}),
    "training": (retrained, {"edits.text"}),
    "tokenizer": (otherwise_read, {"tokenizer"}),
    "visual prompts": (prompted, {"adapter"}),
    "another place": (lambda folder: load(f"local-dir:{folder}", device="cpu"), set()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_model_depends_on_is_named(
    what: str, folder_of: Callable[[str], Path], clip_of: Callable[[str], Clip], tmp_path: Path
) -> None:
    change, named = CHANGES[what]
    changed = change(Path(shutil.copytree(folder_of("ViT-B-32"), tmp_path / "model")))
    differences = clip_of("ViT-B-32").fingerprint.differences(changed.fingerprint)
    assert {line.partition(":")[0] for line in differences} == named


def test_random_weights_are_told_apart(clip_of: Callable[[str], Clip]) -> None:
    clip = clip_of("ViT-B-32")
    random = replace(clip, source=replace(clip.source, sha256=None))
    other = replace(retrained(clip.source.weights.parent), source=random.source)
    assert random.fingerprint == replace(random).fingerprint != clip.fingerprint
    assert random.fingerprint.facts["weights"] != other.fingerprint.facts["weights"]
