"""The model card of an output folder: what was done, how to load it, what is not claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from nullspace_unlearn.clip.source import RECIPE_NAME, Source
from nullspace_unlearn.clip.visual_prompts import VisualPrompts


def model_card(
    name: str, source: Source, edits: Sequence[Mapping[str, Any]], recipe: str | None
) -> str:
    """The card of a model folder.

    Args:
        name: The folder's name.
        source: Where the model came from.
        edits: What was done, as the recipe says it.
        recipe: The recipe's text, where there is one.

    Returns:
        The text of README.md.
    """
    data = ModelCardData(
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        base_model=source.base_model or _repository(source),
        tags=["clip", "unlearning", "nullspace-unlearn"],
    )
    trainings = [made for made in edits if made.get("trained")]
    if edits:
        done_to: dict[str, list[str]] = {}
        for made in edits:
            where = f"{_tensors(made['parameter'])} ({_side(made['side'])})"
            done_to.setdefault(where, []).append(str(made.get("method", "edit")))
        lines = "\n".join(f"- {where}: {', '.join(by)}" for where, by in done_to.items())
        edited = (
            "Only these tensors differ from the original; they are stored in float32, since "
            f"rounding them to half precision would bring a little back:\n\n{lines}"
        )
    else:
        edited = "No tensor differs from the original."
    if recipe and trainings:
        recipe = _text(_shortened(yaml.safe_load(recipe)))
    asked = f"\n## Recipe\n\n```yaml\n{recipe}```\n" if recipe else ""
    how = "edited in closed form" if len(edits) > len(trainings) or not edits else ""
    methods = " and ".join(f"{made['method']} ({made.get('paper')})" for made in trainings)
    if methods:
        how = " and ".join(filter(None, (how, f"trained with {methods}")))
    done = "" if methods else " No\ntraining was done."
    limits = _LIMITS_OF_TRAINING if methods else _LIMITS
    return str(
        ModelCard(f"""---
{data.to_yaml()}
---
# {name}

{_title(source)}, {how} so that it no longer recognises what it was asked to forget.{done}

## What was edited

{edited}
{asked}
## How to load it

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")
tokenizer = open_clip.get_tokenizer("local-dir:{name}")
```

## What is not claimed

{limits}
This folder holds nothing that brings it back, but the original model, where it is public, does.
""")
    )


def adapter_card(name: str, source: Source, prompts: VisualPrompts) -> str:
    """The card of a folder of visual prompts.

    Args:
        name: The folder's name.
        source: Where the model they belong to came from.
        prompts: The prompts.

    Returns:
        The text of README.md.
    """
    depth, tokens, width = prompts.values.shape
    data = ModelCardData(
        library_name="nullspace-unlearn",
        pipeline_tag="zero-shot-image-classification",
        base_model=source.base_model or _repository(source),
        base_model_relation="adapter",
        tags=["clip", "unlearning", "nullspace-unlearn"],
    )
    made = "made from each image by cross-attention, " if prompts.heads else ""
    return str(
        ModelCard(f"""---
{data.to_yaml()}
---
# {name}

Visual prompts with which {_title(source)} no longer recognises what it was
asked to forget: {tokens} tokens of width {width} in each of the first {depth} blocks of its image
tower, {made}trained. The model's own weights are not changed, and not in this folder
(sha256 `{source.sha256}`).

## How to load it

```python
import nullspace_unlearn as nsu

clip = nsu.load("{name}")  # or, where the model is elsewhere: base="PATH OF THE MODEL"
```

## What is not claimed

Whoever leaves the prompts out has the original model. Stock open_clip does not load them.
""")
    )


_LIMITS = """\
Only the very end of a tower is edited; the features before it are not. A probe on those hidden
features, or a captioner or language model that reads patch tokens, may still find what was
forgotten."""

_LIMITS_OF_TRAINING = """\
What was measured is zero-shot recognition. Training proves nothing: a probe on the features, other
words for the same thing, or training on with a few images may still find what was forgotten."""


def _repository(source: Source) -> str:
    return source.name.removeprefix("hf-hub:")


def _title(source: Source) -> str:
    return " ".join(filter(None, (_repository(source), source.pretrained)))


def _tensors(parameter: str | list[str]) -> str:
    return f"`{parameter}`" if isinstance(parameter, str) else f"{len(parameter)} tensors"


def _side(side: str) -> str:
    return "both sides" if side == "both" else f"{side} side"


def _shortened(value: Any, most: int = 12) -> Any:
    """A recipe for the card, which is no place for the names of a thousand images."""
    if isinstance(value, dict):
        return {key: _shortened(one, most) for key, one in value.items()}
    if not isinstance(value, list):
        return value
    rest = [f"and {len(value) - 2} more, in {RECIPE_NAME}"] if len(value) > most else []
    return [_shortened(one, most) for one in (value[:2] if rest else value)] + rest


def _text(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
