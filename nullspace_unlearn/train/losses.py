"""The terms that several methods are made of; each is a plain function of logits or features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

BANDWIDTHS = (1.0, 2.0, 4.0, 8.0)


def classify(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean cross-entropy with the labels; 0 where there is no row.

    Args:
        logits: `[n, classes]`.
        labels: `[n]`.
    """
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(logits), 1)


def confuse(logits: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """Mean cross-entropy with the uniform distribution; 0 where there is no row.

    Least, `log classes`, where every class is equally likely (the forgetting loss of ADU, arXiv
    2510.08132).

    Args:
        logits: `[n, classes]`.
    """
    return -logits.log_softmax(-1).mean(-1).sum() / max(len(logits), 1)


def divergence(
    of: Float[Tensor, "n classes"], from_: Float[Tensor, "n classes"]
) -> Float[Tensor, ""]:
    """Mean Kullback-Leibler divergence `KL(softmax of || softmax from_)`; 0 where there is no row.

    Args:
        of: `[n, classes]` logits of the reference.
        from_: `[n, classes]` logits of what is to come near it.
    """
    p = of.log_softmax(-1)
    return (p.exp() * (p - from_.log_softmax(-1))).sum() / max(len(of), 1)


def contrastive(logits: Float[Tensor, "n n"], captions: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """CLIP's symmetric loss on pairs of an image and a caption, where several may share a caption.

    `1/2 mean_i H(t_i, softmax of row i) + 1/2 mean_j H(t_j, softmax of column j)`, with `H` the
    cross-entropy and `t_i` uniform over the pairs that have the caption of pair `i`. Where no two
    pairs share one, this is CLIP's loss (arXiv 2103.00020, figure 3).

    Args:
        logits: `[n, n]` scaled cosines, an image a row and the caption of a pair a column.
        captions: `[n]` which caption each pair has.

    Returns:
        The loss; 0 where there is no pair.
    """
    fits = (captions[:, None] == captions[None, :]).to(logits)
    target = fits / fits.sum(1, keepdim=True)
    both = logits.log_softmax(1) + logits.mT.log_softmax(1)
    return -(target * both).sum() / (2 * max(len(logits), 1))


def mmd2(
    features: Float[Tensor, "n dim"],
    groups: Int[Tensor, " n"],
    bandwidths: tuple[float, ...] = BANDWIDTHS,
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy between groups, averaged over pairs of groups present.

    The biased estimate `mean k(x, x') + mean k(y, y') - 2 mean k(x, y)` with a mixture of Gaussian
    kernels `k(x, y) = mean over σ of exp(-|x - y|² / (2σ²))` (Gretton et al., 2012; the pairs of
    domains as in ADU, arXiv 2510.08132, which does not state its kernel).

    Args:
        features: `[n, dim]`.
        groups: `[n]` which group each row belongs to.
        bandwidths: The σ.

    Returns:
        The mean over pairs; 0 where fewer than two groups are present.
    """
    distances = (features[:, None, :] - features[None, :, :]).square().sum(-1)
    kernel = torch.stack([torch.exp(-distances / (2 * s * s)) for s in bandwidths]).mean(0)
    present = groups.unique()
    if len(present) < 2:
        return features.sum() * 0
    member: Bool[Tensor, "groups n"] = groups[None, :] == present[:, None]
    average = member.to(kernel) / member.sum(1, keepdim=True)
    means = average @ kernel @ average.mT
    first, second = torch.triu_indices(len(present), len(present), 1)
    own = means.diagonal()
    return (own[first] + own[second] - 2 * means[first, second]).mean()
