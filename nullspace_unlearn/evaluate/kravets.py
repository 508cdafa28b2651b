"""The score of Kravets & Namboodiri: how much is left of a class, and how much else was lost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.evaluate.zeroshot import Grid


def kravets_score(
    before: Grid,
    after: Grid,
    mask: Bool[Tensor, "classes domains"],
    others: Sequence[tuple[float, float]] = (),
) -> float:
    """The average score of Zero-Shot Class Unlearning in CLIP (arXiv 2407.07485); lower is better.

    `mean{a_f / a_f0, max(0, 1 - a_r / a_r0), max(0, 1 - a_d / a_d0) of every other data set d}`
    with the accuracies, over images, of what is forgotten (f) and of the rest of its data set (r),
    before (0) and after; as the authors' published code has it. The share left of the forgotten is
    not clipped. There are four data sets in the paper, so five terms; with fewer there are fewer.
    Chosen: for requests in some domains f and r are the forgotten and all other cells; a rest or a
    data set that the untouched model never gets right lost nothing.

    Args:
        before: The untouched model's accuracy in each cell.
        after: The edited model's.
        mask: True where a cell is forgotten, as from `Forget.mask`.
        others: Accuracy before and after on every other data set.

    Returns:
        The score, 0 at best; a model that did nothing scores 1 over the number of terms.

    Raises:
        ValueError: If the shapes differ, there are no images of kept cells, or the untouched model
            gets no image of what is forgotten right.
    """
    if not mask.shape == before.count.shape == after.count.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask and grids must be of one shape, got {list(mask.shape)}, "
            f"{list(before.count.shape)} and {list(after.count.shape)}"
        )
    mask = mask.cpu()
    gone0, gone = before.mean(mask), after.mean(mask)
    kept0, kept = before.mean(~mask), after.mean(~mask)
    if kept0 is None or kept is None:
        raise ValueError("there are no images of kept cells, so nothing can be said of them")
    if not gone0 or gone is None:
        raise ValueError("the untouched model gets no image of what is forgotten right")
    lost = [max(0.0, 1 - now / was) if was else 0.0 for was, now in ((kept0, kept), *others)]
    return (gone / gone0 + sum(lost)) / (1 + len(lost))
