"""Where a model came from, and the names of the files it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.clip.layout import OPEN_CLIP, Layout
from nullspace_unlearn.history import History

ADAPTER_NAME = "adapter.safetensors"
RECIPE_NAME = "recipe.yaml"
REPORT_NAME = "report.json"
CARD_NAME = "README.md"
BUNDLED = "nsu-mini"
"""Name of the model that comes with the package."""


@dataclass(frozen=True)
class Source:
    """Where a model's weights and configuration came from.

    Attributes:
        name: What was asked for, such as "nsu-mini", "ViT-B-32" or "hf-hub:org/repo"; a local
            folder by its own name, since where it lies is nobody else's business.
        pretrained: The tag that was asked for with it, or the name of the weights file.
        folder: The local folder it came from, if it did; the download of transformers' files.
        weights: The weights file, or None for random weights.
        sha256: Hash of that file.
        config: The folder's configuration as loaded, as text; of a built-in model, the
            open_clip_config.json that describes it.
        history: What had been done to them, as the folder says.
        base_model: Hugging Face repository of the weights, where known.
        layout: How the folder keeps the model, and a folder made from it will.
    """

    name: str
    pretrained: str | None
    folder: Path | None
    weights: Path | None
    sha256: str | None
    config: str
    history: History
    base_model: str | None = None
    layout: Layout = OPEN_CLIP


def config_text(config: Mapping[str, Any]) -> str:
    """An open_clip_config.json as text."""
    return json.dumps(config, indent=2, ensure_ascii=False)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut where it goes on and on."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
