"""How an edit is judged on prototypes: a smooth version of the figures."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.forget import groups, harmonic_mean
from nullspace_unlearn.linalg import group_means

SOFTNESS = 0.3
"""Width of the logistic function in `harmonic`, as a share of the mean lead of a right name."""


def leads(scores: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """By how much the right class scores above the best other one; negative where it does not."""
    own = torch.nn.functional.one_hot(labels, scores.shape[-1]).bool()
    return scores[own] - scores.masked_fill(own, -torch.inf).amax(-1)


def harmonic(
    scores: Float[Tensor, "n classes"],
    softness: Float[Tensor, ""],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    mask: Bool[Tensor, "classes domains"],
) -> float:
    """`harmonic_of` scores.

    Args:
        scores: `[n, classes]` of the prototypes, after an edit.
        softness: Width of the logistic function.
        labels: `[n]` classes.
        domains: `[n]` domains.
        mask: `[classes, domains]`, true where a cell is forgotten.

    Returns:
        From 0 to 1.
    """
    return harmonic_of(leads(scores, labels), softness, labels, domains, mask)


def harmonic_of(
    lead: Float[Tensor, " n"],
    softness: Float[Tensor, ""],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    mask: Bool[Tensor, "classes domains"],
) -> float:
    """What a request is judged by, predicted from prototypes.

    The harmonic mean of 1 - forgotten and the groups that stay, each cell counting once, where a
    prototype is right to the degree of the logistic function of its lead: a few prototypes a cell
    would make a coarse accuracy.

    Args:
        lead: `[n]` of the prototypes after an edit; see `leads`.
        softness: Width of the logistic function.
        labels: `[n]` classes.
        domains: `[n]` domains.
        mask: `[classes, domains]`, true where a cell is forgotten.

    Returns:
        From 0 to 1.
    """
    right = torch.sigmoid(lead / softness)
    cell = labels * mask.shape[-1] + domains
    grid = group_means(right, cell, mask.numel()).reshape(mask.shape)
    stay = [group for group in groups(mask)[1:] if group.any()]
    parts = [1 - grid[mask].mean(), *(grid[group].mean() for group in stay)]
    return harmonic_mean([float(part.clamp(min=1e-9)) for part in parts])
