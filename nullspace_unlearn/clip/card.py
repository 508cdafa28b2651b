"""The model card of an output folder: what was done, how to load it, what is not claimed."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from nullspace_unlearn.certificate import SCOPE
from nullspace_unlearn.clip.layout import OPEN_CLIP, Layout
from nullspace_unlearn.clip.source import BUNDLED, RECIPE_NAME, Source
from nullspace_unlearn.clip.visual_prompts import VisualPrompts
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.history import History
from nullspace_unlearn.strict import yaml_text


def model_card(
    name: str,
    history: History,
    base_model: str | None = None,
    report: Mapping[str, Any] | None = None,
    layout: Layout = OPEN_CLIP,
    base_card: str | None = None,
) -> str:
    """The card of a model folder.

    Args:
        name: The folder's name.
        history: What was done.
        base_model: Hugging Face repository of the original weights, where known.
        report: What was measured, where it was.
        layout: How the folder keeps the model.
        base_card: The card of the original weights, where it is at hand: it says their licence.

    Returns:
        The text of README.md.

    Raises:
        ValueError: If the report is none of ours: a patch or a folder may bring any.
    """
    try:
        index, measured = _model_index(name, report), _measured(report)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(
            f"what {name!r} says was measured is malformed: {type(error).__name__}, {error}"
        ) from None
    public = history.model.removeprefix("hf-hub:")
    data = ModelCardData(
        library_name=layout.library,
        pipeline_tag=_TASK,
        **_licence(_OWN_LICENCE if public == BUNDLED else licence_of(base_card)),
        base_model=base_model or public,
        tags=["clip", "unlearning", "nullspace-unlearn"],
        **index,
    )
    trainings = [edit for edit in history.edits if edit.get("trained")]
    how = "edited in closed form" if len(history.edits) > len(trainings) or not trainings else ""
    methods = " and ".join(f"{edit.get('method')} ({edit.get('paper')})" for edit in trainings)
    if methods:
        how = " and ".join(filter(None, (how, f"trained with {methods}")))
    title = " ".join(filter(None, (public, history.pretrained)))
    asked = "\n".join(f"- {asked_for(request)}" for request in history.requests)
    return str(
        ModelCard(f"""---
{data.to_yaml()}
---
# {name}

{title}, {how}{"" if methods else "; no training was done"}.
{_section("What it was asked to forget", asked)}{_section("What was measured", measured)}
## What was edited

{_tensors_of(history)}
{_section("Recipe", _recipe(history))}
## How to load it

```python
{_loaded(name, layout)}
```

## What is not claimed

{limits(history)}
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
    made = ", made from each image by cross-attention" if prompts.heads else ""
    return str(
        ModelCard(f"""---
{data.to_yaml()}
---
# {name}

Visual prompts for {_title(source)}, trained to make it forget: {tokens} tokens of width {width} in
each of the first {depth} blocks of its image tower{made}. The model's own weights
are not changed, and not in this folder (sha256 `{source.sha256}`).

## How to load it

```python
import nullspace_unlearn as nsu

clip = nsu.load("{name}")  # or, where the model is elsewhere: base="PATH OF THE MODEL"
```

## What is not claimed

Whoever leaves the prompts out has the original model. Stock open_clip does not load them.
""")
    )


def _loaded(name: str, layout: Layout) -> str:
    if layout.library == "sentence-transformers":
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{name}")'
        )
    if layout.library == "onnx":
        return (
            "import onnxruntime\n\n"
            f'image = onnxruntime.InferenceSession("{name}/image.onnx")\n'
            'embedding = image.run(["image_embeds"], {"pixel_values": pixels})[0]  # see '
            "preprocess.json\n"
            f'text = onnxruntime.InferenceSession("{name}/text.onnx")\n'
            'embedding = text.run(["text_embeds"], {"input_ids": ids})[0]'
        )
    if layout.library == "transformers":
        return (
            f"from transformers import AutoProcessor, {layout.kind}\n\n"
            f'model = {layout.kind}.from_pretrained("{name}")\n'
            f'processor = AutoProcessor.from_pretrained("{name}")'
        )
    return (
        "import open_clip\n\n"
        "model, _, preprocess = open_clip.create_model_and_transforms("
        f'"local-dir:{name}")\n'
        f'tokenizer = open_clip.get_tokenizer("local-dir:{name}")'
    )


_TASK = "zero-shot-image-classification"
_OWN_LICENCE = "apache-2.0"  # of the bundled model
_WORD = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")
_MOST_ROWS = 60  # of the grid of cells
_ON_THE_HUB = ("left", "over", "cost", "named_2", "named_all", "found", "kept", "kept_search")

_LIMITS = """\
Only the very end of a tower is edited; the features before it are not. A probe on those hidden
features, or a captioner or language model that reads patch tokens, may still find what was
forgotten."""

_LIMITS_OF_TRAINING = """\
What was measured is zero-shot recognition. Training proves nothing: a probe on the features, other
words for the same thing, or training on with a few images may still find what was forgotten."""

_BACK = """\
It hides nothing from whoever wants it back: the original model, where it is public, has it all."""

_INVERTIBLE = """\
An edit here is invertible: whoever derives it again from the recipe can take it back."""

_SINGULAR = "No edit here can be inverted."

_GRID = """\
No edit here can be inverted, but where the original weights were 16-bit numbers, these can be
computed from the edited ones, since they lie on that grid."""

_NOISE = """\
No edit here can be inverted. The original weights were 16-bit numbers, whose grid would give them
away; half a step of noise, added to them before the edit, hides it."""


def licence_of(card: str | None) -> str | None:
    """The licence that a model card names; None where it names none that is a plain word.

    Args:
        card: The text of a README.md, which is not trusted; None where there is none.
    """
    if card is None or not card.startswith("---"):
        return None
    try:
        said = ModelCard(card, ignore_metadata_errors=True).data.get("license")
    except (ValueError, TypeError, YAMLError):
        return None
    plain = isinstance(said, str) and _WORD.fullmatch(said) and said not in ("other", "unknown")
    return said if plain else None


def _licence(known: str | None) -> dict[str, Any]:
    if known is not None:
        return {"license": known}
    return {"license": "other", "license_name": "that-of-the-base-model"}


def _section(title: str, text: str) -> str:
    return f"\n## {title}\n\n{text}\n" if text else ""


def asked_for(request: Forget) -> str:
    """A request in words.

    Args:
        request: The request.
    """
    what = ", ".join(request.names) or "every class"
    return f"{what}: {'in ' + ', '.join(request.domains) if request.domains else 'everywhere'}"


def _measured(report: Mapping[str, Any] | None) -> str:
    report = report or {}
    parts = []
    if "sentence" in report:
        parts += [f"**{_plain(report['sentence'])}**", _shown(report)]
    elif "predicted" in report:
        parts.append(
            "Predicted, no image seen: what the edit makes of prototypes in place of images. "
            f"{_plain(report['predicted']['sentence'])}"
        )
    if (proof := report.get("certificate")) is not None:
        said = "holds" if proof["holds"] else "DOES NOT HOLD"
        parts.append(
            f"The certificate {said}: on every image each forgotten name scores a convex "
            f"combination of kept names (largest violation {proof['largest_violation']:.1e}). "
            f"{SCOPE} `nsu certify` computes it again from the weights."
        )
    return "\n\n".join(parts)


def _shown(report: Mapping[str, Any]) -> str:
    """The figures as a table, what each means folded beneath."""
    ends = report.get("intervals", {})
    lines = ["| figure | before | after | 95 % | chance | images |", "|---|---|---|---|---|---|"]
    for row in report["table"]:
        both = ends.get(row["name"])
        interval = "" if both is None else f"{both[0]:.3g} to {both[1]:.3g}"
        cells = (row["title"], row["before"], row["after"], interval, row["chance"], row["images"])
        lines.append("| " + " | ".join(_plain(str(cell)) for cell in cells) + " |")
    means = "\n".join(
        f"- {_plain(row['title'])}: {_plain(row['meaning'])}." for row in report["table"]
    )
    images = _plain(str(report.get("data") or "images"))
    about = f"On {images}. Chance: what a name that says nothing scores."
    table = "\n".join(lines)
    said = f"{about}\n\n{table}\n\n{_folded('What the figures mean', means)}"
    if not {"before", "after", "forgotten"} <= report.keys():
        return said
    title = "Accuracy in each cell, before → after (* was to be forgotten)"
    return f"{said}\n\n{_folded(title, _grid(report))}"


def _grid(report: Mapping[str, Any]) -> str:
    """Every class in every domain; of many classes those that something was forgotten of first."""
    before, after, mask = report["before"], report["after"], report["forgotten"]
    rows = sorted(range(len(mask)), key=lambda c: not any(mask[c]))
    lines = ["| | " + " | ".join(_plain(d) for d in after["domains"]) + " |"]
    lines.append("|---" * (len(after["domains"]) + 1) + "|")
    for c in rows[:_MOST_ROWS]:
        pairs = zip(before["accuracy"][c], after["accuracy"][c], mask[c], strict=True)
        row = [
            "" if was is None or now is None else f"{was:.2f} → {now:.2f}{'*' * gone}"
            for was, now, gone in pairs
        ]
        lines.append(f"| {_plain(after['classes'][c])} | " + " | ".join(row) + " |")
    if len(rows) > _MOST_ROWS:
        lines.append(f"\nAnd {len(rows) - _MOST_ROWS} more classes, in report.json.")
    return "\n".join(lines)


def _model_index(name: str, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Results as the Hub shows them; none where nothing was measured."""
    if not report or "figures" not in report:
        return {}
    titles = {row["name"]: row["title"] for row in report.get("table", ())}
    after = report["figures"]["after"]
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type="images",
            dataset_name=str(report.get("data") or "images"),
            metric_type="accuracy" if metric == "kept" else metric,
            metric_name=titles.get(metric, metric),
            metric_value=round(after[metric], 5),
        )
        for metric in _ON_THE_HUB
        if after.get(metric) is not None
    ]
    return {"model_name": name, "eval_results": results} if results else {}


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _plain(text: str) -> str:
    """A text that neither ends a cell of a table nor begins HTML."""
    return html.escape(text, quote=False).replace("|", "&#124;")


def _tensors_of(history: History) -> str:
    if not history.edits:
        return "No tensor differs from the original."
    done_to: dict[str, list[str]] = {}
    for edit in history.edits:
        keys, side = edit.get("parameter"), edit.get("side")
        keys = keys if isinstance(keys, list) else [keys]
        named = ", ".join(f"`{key}`" for key in keys) if len(keys) < 4 else f"{len(keys)} tensors"
        where = f"{named} ({'both sides' if side == 'both' else f'{side} side'})"
        done_to.setdefault(where, []).append(str(edit.get("method", "edit")))
    lines = "\n".join(f"- {where}: {', '.join(by)}" for where, by in done_to.items())
    return (
        "Only these tensors differ from the original; they are stored in float32, since rounding "
        f"them to half precision would bring a little back:\n\n{lines}"
    )


def _recipe(history: History) -> str:
    if not history.edits:
        return ""
    recipe = yaml_text(_shortened(history.to_json()))
    return _folded(f"What {RECIPE_NAME} holds", f"```yaml\n{recipe}```")


def limits(history: History) -> str:
    """What is not claimed of a model, in sentences.

    Args:
        history: What was done to it.
    """
    trained = any(edit.get("trained") for edit in history.edits)
    return f"{_LIMITS_OF_TRAINING if trained else _LIMITS}\n{_back(history)}"


def _back(history: History) -> str:
    edits = [edit for edit in history.edits if not edit.get("trained")]
    if not edits:
        return _BACK
    if any(edit.get("invertible", True) for edit in edits):
        return f"{_BACK}\n{_INVERTIBLE}"
    if not all("noise" in edit for edit in edits):  # by a version that added none
        return f"{_BACK}\n{_GRID}"
    return f"{_BACK}\n{_NOISE if any(edit['noise'] for edit in edits) else _SINGULAR}"


def _repository(source: Source) -> str:
    return source.name.removeprefix("hf-hub:")


def _title(source: Source) -> str:
    return " ".join(filter(None, (_repository(source), source.pretrained)))


def _shortened(value: Any, most: int = 12) -> Any:
    """A recipe for the card, which is no place for the names of a thousand classes."""
    if isinstance(value, dict):
        return {key: _shortened(one, most) for key, one in value.items()}
    if not isinstance(value, list):
        return value
    rest = [f"and {len(value) - 2} more, in {RECIPE_NAME}"] if len(value) > most else []
    return [_shortened(one, most) for one in (value[:2] if rest else value)] + rest
