"""Storage: what copies of the weights in fewer bits bring back, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NOT_FORGOTTEN,
    Answer,
    Finding,
    Question,
    Row,
)
from nullspace_unlearn.audit.restoring import shown
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.network import share
from nullspace_unlearn.evaluate import figures

Rounding = Callable[[Tensor], Tensor]


def rounded_to(value: Float[Tensor, "*any"], dtype: torch.dtype) -> Float[Tensor, "*any"]:
    """A tensor as it comes back from a narrower floating dtype.

    Args:
        value: Any tensor.
        dtype: What it is stored in.
    """
    return value.to(dtype).to(value.dtype)


def absmax(value: Tensor, bits: int) -> Tensor:
    """A tensor as it comes back from integers: a scale a row, the nearest of `2^bits - 1` levels.

    `round(w / s) s` with `s = max |row| / (2^(bits - 1) - 1)`: round to nearest, the plainest of
    the quantisers of arXiv 2410.16454.

    Args:
        value: `[rows, *any]` floating.
        bits: At least 2.

    Returns:
        The same, each entry moved to its level; a row of zeros stays.
    """
    top = 2 ** (bits - 1) - 1
    largest = value.abs().flatten(1).amax(1).reshape(-1, *[1] * (value.ndim - 1))
    scale = largest / top
    step = scale.masked_fill(scale == 0, 1)
    return (value / step).round() * step


FORMATS: Mapping[str, Rounding] = {
    "float16": lambda w: rounded_to(w, torch.float16),
    "bfloat16": lambda w: rounded_to(w, torch.bfloat16),
    "int8": lambda w: absmax(w, 8),
    "int4": lambda w: absmax(w, 4),
}
"""How weights are stored; integers have a scale a row."""

QUICK = ("int4",)


def stored(clip: Clip, rounding: Rounding) -> Clip:
    """A model as it comes back from storage; vectors and numbers are left as they are.

    Args:
        clip: The model; it is not changed.
        rounding: What storage does to a matrix or kernel.
    """
    new = {
        key: rounding(value.detach())
        for key, value in clip.model.named_parameters()
        if value.ndim >= 2 and value.is_floating_point()
    }
    return replace(clip, model=share(clip.model, new))


def ask(case: Case) -> Answer:
    """Store every model in every format, and measure it beside the untouched one in full.

    Args:
        case: What is audited.
    """
    roles = ("edited", "original") if case.quick else tuple(name for name, _ in case.views())
    views = {name: view for name, view in case.views() if name in roles}
    now = {name: case.against(view).figures["after"] for name, view in views.items()}
    found: dict[str, dict[str, Mapping[str, float | None]]] = {}
    for kind in QUICK if case.quick else FORMATS:
        found[kind] = {}
        for name, view in views.items():
            assert view.clip is not None  # the question needs models
            copy = shown(case, stored(view.clip, FORMATS[kind]))
            found[kind][name] = case.against(copy).figures["after"]
    findings, rows = [], []
    many = int(case.gone.sum())
    for kind, models in found.items():
        for figure in ("left", "over", "cost"):
            values = {name: said[figure] for name, said in models.items()}
            title = f"{figures.FIGURES[figure].title} in {kind}"
            of = len(case.labels) - many if figure == "cost" else many
            findings.append(Finding(f"{kind}_{figure}", title, "low", values, None, of))
        rows.append(
            Row(kind, "format", models["edited"]["left"], models["original"]["left"], 0.0)
        )  # fmt: skip
    worst = max(rows, key=lambda row: row.value or 0.0)
    was, leaks = now["edited"]["left"], worst.value
    if was is None or leaks is None:
        return Answer.unmeasured("The untouched model's name does not tell these images.")
    said = f"As it is left is {was:.2f}; stored in {worst.text} it is {leaks:.2f}"
    cost, own = (found[worst.text][name]["cost"] for name in ("edited", "original"))
    if cost is not None and own is not None:
        said += f", at a cost of {cost:.1f} points ({own:.1f} to the original)"
    verdict = FORGOTTEN if leaks <= figures.FORGOTTEN else NOT_FORGOTTEN
    return Answer(verdict, f"{said}.", tuple(findings), rows=tuple(rows))


STORAGE = Question(
    name="storage",
    title="Stored in fewer bits",
    asks="Does rounding the weights, to 4 bits say, bring back what was forgotten?",
    paper="arXiv 2410.16454 (ICLR 2025)",
    needs=frozenset({"features", "images", "models"}),
    quick=True,
    ask=ask,
)
