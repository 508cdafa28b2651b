"""How near synthesised prototypes come to real images of the same cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.features import Features
from nullspace_unlearn.linalg import as_float64, group_means, unit, weighted_ridge


@dataclass(frozen=True)
class SpaceNearness:
    """Nearness in one feature space.

    Attributes:
        cosine: Cosine between a cell's mean and the real one, each set centred by its own mean
            over cells; mean over cells. A shift that all cells share costs nothing.
        cosine_real_mean: The same with both sets centred by the real images' mean over cells, so
            that such a shift costs.
        rank: Rank of the right cell among real cell means by the first cosine, 1 at best; mean over
            cells.
        domain_transfer: Accuracy on the real images of a linear probe for the domain that was
            trained on the synthesised rows; mean over domains, chance is one over their number.
        class_transfer: The same for the class.
    """

    cosine: float
    cosine_real_mean: float
    rank: float
    domain_transfer: float
    class_transfer: float


@dataclass(frozen=True)
class Nearness:
    """Nearness of two sets of features.

    Attributes:
        embedding: In the joint space, rows at unit norm.
        hidden: In the space that the final projection reads, rows scaled as their embeddings are;
            None where either set has no hidden features.
    """

    embedding: SpaceNearness
    hidden: SpaceNearness | None


def nearness(synthesised: Features, real: Features, *, ridge: float = 1.0) -> Nearness:
    """Compare synthesised features with those of real images of the same cells.

    Args:
        synthesised: At least one row in each cell.
        real: At least one row in each cell; of the same classes and domains, in the same order.
        ridge: Ridge of the probes, relative to the centred rows' mean square per dimension.

    Returns:
        The figures in the joint space, and in the hidden one where both sets have it.

    Raises:
        ValueError: If classes, domains or dimensions differ, there are no domains, a cell is empty,
            or `ridge` is not above 0.
    """
    for what in ("class_names", "domain_names"):
        ours, theirs = getattr(synthesised, what), getattr(real, what)
        if not ours or ours != theirs:
            raise ValueError(
                f"{what} must be given and the same in both, got {list(ours)} and {list(theirs)}"
            )
    if not ridge > 0:
        raise ValueError(f"ridge must be above 0, got {ridge}")
    hidden = synthesised.hidden is not None and real.hidden is not None
    return Nearness(
        embedding=_compare(synthesised, real, False, ridge),
        hidden=_compare(synthesised, real, True, ridge) if hidden else None,
    )


def _compare(synthesised: Features, real: Features, hidden: bool, ridge: float) -> SpaceNearness:
    ours, theirs = _rows(synthesised, hidden), _rows(real, hidden)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"features have {ours.shape[1]} dimensions and {theirs.shape[1]}")
    ours_mean = _cell_means(ours, synthesised, "synthesised")
    theirs_mean = _cell_means(theirs, real, "real")
    centred = unit(theirs_mean - theirs_mean.mean(0))
    cosines = unit(ours_mean - ours_mean.mean(0)) @ centred.mT
    own = cosines.diagonal()
    shifted = (unit(ours_mean - theirs_mean.mean(0)) * centred).sum(-1)
    return SpaceNearness(
        cosine=float(own.mean()),
        cosine_real_mean=float(shifted.mean()),
        rank=float(1 + (cosines > own[:, None]).sum(-1).double().mean()),
        domain_transfer=_transfer(ours, _domains(synthesised), theirs, _domains(real), ridge),
        class_transfer=_transfer(ours, synthesised.labels, theirs, real.labels, ridge),
    )


def _rows(features: Features, hidden: bool) -> Float[Tensor, "n dim"]:
    embeddings = as_float64("embeddings", features.embeddings)
    if not hidden or features.hidden is None:
        return unit(embeddings)
    # What a hidden feature contributes to a cosine is measured against its embedding's length.
    return features.hidden.double() / torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)


def _domains(features: Features) -> Int[Tensor, " n"]:
    if features.domains is None:
        raise ValueError("the features have no domains")
    return features.domains


def _cell_means(
    rows: Float[Tensor, "n dim"], features: Features, whose: str
) -> Float[Tensor, "cells dim"]:
    domains = len(features.domain_names)
    cell = features.labels * domains + _domains(features)
    cells = len(features.class_names) * domains
    count = torch.bincount(cell, minlength=cells)
    if not count.all():
        class_, domain = divmod(int((count == 0).nonzero()[0]), domains)
        raise ValueError(
            f"the {whose} features have no row of "
            f"{features.class_names[class_]}/{features.domain_names[domain]}"
        )
    return group_means(rows, cell, cells)


def _transfer(
    rows: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    real_rows: Float[Tensor, "m dim"],
    real_labels: Int[Tensor, " m"],
    ridge: float,
) -> float:
    """Train ridge one-vs-all probes on one set; balanced accuracy on the other."""
    count = int(labels.max()) + 1
    mean = rows.mean(0)
    target = torch.nn.functional.one_hot(labels, count).to(rows).mT
    target = target - target.mean(-1, keepdim=True)
    weight = torch.ones_like(target)
    probes = weighted_ridge(rows - mean, weight, target, ridge * weight.sum(-1))
    right = ((real_rows - mean) @ probes.mT).argmax(-1) == real_labels
    return float(
        torch.stack([right[real_labels == i].double().mean() for i in range(count)]).mean()
    )
