"""A forgotten name in other words: each of the 80 standard templates alone, every class in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import _cells as cells
import _plane as planes
import torch
from _tables import markdown
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.plans import given_for, plan
from nullspace_unlearn.prototypes import prompt_features, standard_templates

HALF = "hull, of every other template; the others"
AVERT_HALF = "avert, of every other template; the others"
ROWS: dict[str, tuple[str, bool] | None] = {
    "untouched": None,
    "hull, --no-wordings": ("hull", False),
    "hull": ("hull", True),
    HALF: ("hull", True),
    "avert, --side text, --no-wordings": ("avert", False),
    "avert, --side text": ("avert", True),
    AVERT_HALF: ("avert", True),
}
"""Row -> method, and whether it looks at other words."""


def measure(bench: cells.Bench) -> dict[str, list[dict[str, Any]]]:
    """Every row of one model, one entry a class."""
    f = bench.features
    prompts = prompt_features(bench.clip, f.class_names, standard_templates())
    return {
        name: [_measured(bench, prompts, name, Forget([c])) for c in tqdm(f.class_names, desc=name)]
        for name in ROWS
    }


def _measured(
    bench: cells.Bench, prompts: Float[Tensor, "n templates dim"], row: str, request: Forget
) -> dict[str, Any]:
    f, made = bench.features, ROWS[row]
    images, classes, told = f.embeddings.double(), bench.classes, prompts
    rank = 0
    if made is not None:
        edit = _edit(bench, *made, request, row in (HALF, AVERT_HALF))
        rank = edit.rank
        if made[0] == "avert":
            classes, told = (
                unit(rows - (rows @ edit.write) @ edit.read.mT)
                for rows in (classes.double(), prompts)
            )
        else:
            images = edit.apply(images)
    if row in (HALF, AVERT_HALF):
        told = told[:, 1::2]
    # By each template alone: how often it wins the whole list on its own images.
    own = f.class_names.index(request.classes[0])
    shown = unit(images[f.labels == own])
    scores = torch.einsum("id,ntd->tin", shown, told)
    best = scores[..., torch.arange(len(told)) != own].amax(-1)
    named = (scores[..., own] > best).double().mean(-1).tolist()
    figures = planes.judged(images, f, bench.classes, request, classes)
    return {**figures, "named": named, "rank": rank}


def _edit(bench: cells.Bench, method: str, wordings: bool, request: Forget, half: bool) -> Edit:
    side = METHODS[method].sides[0]
    made = plan(
        bench.clip, request, classes=bench.features.class_names, method=method, side=side,
        wordings=wordings,
    )  # fmt: skip
    given = given_for(bench.clip, made)
    if half:
        assert given.moves is not None
        given = replace(given, moves=given.moves[..., : len(standard_templates()) : 2, :])
    return METHODS[method].edit(given)


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What comes back, and what it costs."""
    lines = []
    for name, rows in found.items():
        worst = torch.tensor([max(row["named"]) for row in rows])
        every = torch.tensor([row["named"] for row in rows])
        figures = (sum(row[key] for row in rows) / len(rows)
                   for key in ("left", "over", "cost", "kept_search"))  # fmt: skip
        left, over, cost, search = figures
        lines.append(
            [
                name,
                f"{worst.max():.3f}",
                f"{worst.mean():.3f}",
                f"{every.mean():.4f}",
                f"{left:.2f}",
                f"{over:.2f}",
                f"{cost:.2f}",
                f"{search:.3f}",
                f"{sum(row['rank'] for row in rows) / len(rows):.0f}",
            ]
        )
    header = ["method", "worst template", "of each class, mean", "all templates", "left", "over",
              "cost", "kept search", "rank"]  # fmt: skip
    return markdown(header, lines)
