"""What a model's files may not do: run code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SAFE, _UNSAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def weights_only() -> Iterator[None]:
    """Let torch read tensors and nothing else, whoever calls it and whatever the user's settings.

    open_clip calls `torch.load` again without `weights_only` where the first call ends in a
    TypeError, which a file can bring about.
    """
    before = {name: os.environ.pop(name, None) for name in (_SAFE, _UNSAFE)}
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        del os.environ[_SAFE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def refuse_remote_code(text_cfg: Mapping[str, Any], folder: Path | None, **where: Any) -> None:
    """Refuse a text tower or tokenizer that brings code along, before transformers asks about it.

    Args:
        text_cfg: That of the model's configuration.
        folder: The local folder that the tokenizer is read from; None for the one that the
            configuration names.
        **where: For transformers, such as cache_dir.

    Raises:
        ValueError: If one of their configurations has an auto_map, or asks for trust.
        OSError: If a configuration cannot be had.
    """
    if (text_cfg.get("tokenizer_kwargs") or {}).get("trust_remote_code"):
        raise ValueError("it asks to run code that a tokenizer brings along, which is refused")
    tower, tokenizer = text_cfg.get("hf_model_name"), text_cfg.get("hf_tokenizer_name")
    if not tower and not tokenizer:
        return
    from transformers import PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    said: dict[str, Mapping[str, Any]] = {}
    if tower:
        said[f"text tower {tower}"], _ = PretrainedConfig.get_config_dict(tower, **where)
    if tokenizer:
        said[f"tokenizer {tokenizer}"] = get_tokenizer_config(folder or tokenizer, **where)
    for what, config in said.items():
        if config.get("auto_map"):
            raise ValueError(
                f"{what} brings code along (auto_map), which is refused: no code that "
                "comes with a model is run"
            )
