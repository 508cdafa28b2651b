"""Where a model came from, and the names of the files it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.history import History

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
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
        folder: The local folder it came from, if it did.
        weights: The weights file, or None for random weights.
        sha256: Hash of that file.
        config: The open_clip_config.json that describes the model as loaded, as text.
        history: What had been done to them, as the folder says.
        base_model: Hugging Face repository of the weights, where known.
    """

    name: str
    pretrained: str | None
    folder: Path | None
    weights: Path | None
    sha256: str | None
    config: str
    history: History
    base_model: str | None = None


def config_text(config: Mapping[str, Any]) -> str:
    """An open_clip_config.json as text."""
    return json.dumps(config, indent=2, ensure_ascii=False)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut where it goes on and on."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
