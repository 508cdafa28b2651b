"""Numbers for `gated`, chosen by leaving prototypes out: no held-out image, nothing to tune."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.erasers.gated import NothingForgotten, Numbers, gated
from nullspace_unlearn.erasers.judged import SOFTNESS, harmonic, leads

RIDGE = (0.01, 0.1, 1.0)
MARGIN = (1.0, 1.5, 2.0)
SLACK = (0.2, 0.4)


def leave_out(
    embeddings: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    classes: Float[Tensor, "classes dim"],
    mask: Bool[Tensor, "classes domains"],
    *,
    hidden: Float[Tensor, "n width"] | None = None,
    folds: int = 4,
) -> Numbers:
    """Choose ridge, margin and slack by how the edit does on prototypes it was not made from.

    The prototypes of each cell are dealt into folds. For every setting and fold the edit is made
    from the other folds and judged on this one, by `judged.harmonic`. Real images tell settings
    apart this way; synthesised ones, being all alike, do not.

    Args:
        embeddings: As for `gated`, and so `labels`, `domains`, `classes` and `hidden`.
        labels: `[n]`.
        domains: `[n]`.
        classes: `[classes, dim]`.
        mask: `[classes, domains]`, one request.
        hidden: `[n, width]`, where they are read.
        folds: At least 2; fewer are used where some cell has fewer prototypes.

    Returns:
        The numbers; the defaults where a cell has only one prototype, or no fold tells.

    Raises:
        ValueError: As `gated`.
    """
    cell = labels * mask.shape[-1] + domains
    order = torch.argsort(cell, stable=True)
    place = torch.empty_like(order)
    starts = torch.bincount(cell).cumsum(0) - torch.bincount(cell)
    place[order] = torch.arange(len(cell), device=cell.device) - starts[cell[order]]
    folds = min(folds, int(torch.bincount(cell)[cell].min()))
    if folds < 2:
        return Numbers()
    fold = place % folds
    unit = torch.nn.functional.normalize(embeddings.to(classes.dtype), dim=-1)
    softness = leads(unit @ classes.mT, labels).clamp(min=0).mean() * SOFTNESS
    best, chosen = 0.0, Numbers()
    for ridge, margin, slack in product(RIDGE, MARGIN, SLACK):
        numbers = Numbers(ridge, margin, slack)
        total = 0.0
        for k in range(folds):
            made, held = fold != k, fold == k
            try:
                edit = gated(
                    embeddings[made], labels[made], domains[made], classes, mask,
                    hidden=None if hidden is None else hidden[made], numbers=numbers,
                )  # fmt: skip
            except NothingForgotten:  # the same for all settings, so they compare by other folds
                continue
            moved = edit.apply(embeddings[held], None if hidden is None else hidden[held])
            norm = torch.linalg.vector_norm(embeddings[held], dim=-1, keepdim=True)
            scores = (moved / norm).to(classes.dtype) @ classes.mT
            total += harmonic(scores, softness, labels[held], domains[held], mask)
        if total > best:
            best, chosen = total, numbers
    return chosen
