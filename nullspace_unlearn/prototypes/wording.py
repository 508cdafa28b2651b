"""Other words for a name: how templates that a classifier may be made with move it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.prototypes.text import TextEncoder, prompt_features, templates_that_fit
from nullspace_unlearn.prototypes.vocabulary import standard_templates

# Kept names that show what a template does to any name. More would say the same more dearly.
_SHOWN = 8


@lru_cache(maxsize=1)
def wordings() -> tuple[str, ...]:
    """The 80 templates that CLIP's authors used on ImageNet, and plain ways to speak of a thing.

    Returns:
        Templates holding `{class}`.
    """
    plain = ("{class}", "a {class}", "the {class}", "{class}s", "many {class}s",
             "a type of {class}", "something like a {class}")  # fmt: skip
    return tuple(dict.fromkeys((*standard_templates(), *plain)))


def moved_by_wording(
    model: TextEncoder,
    forget: Sequence[str],
    forget_rows: Float[Tensor, "m dim"],
    keep: Sequence[str],
    keep_rows: Float[Tensor, "n dim"],
) -> Float[Tensor, "m wordings dim"]:
    """How each wording moves each forgotten name, beyond how it moves any name.

    Args:
        model: The text encoder.
        forget: Forgotten names.
        forget_rows: Their prototypes.
        keep: Names that stay; the nearest few show how a wording moves any name. Of none, nothing
            is taken off.
        keep_rows: Their prototypes.

    Returns:
        `[m, wordings, dim]` float64, of those wordings whose prompts the text tower reads as far as
        the end of every name.
    """
    order = (keep_rows @ forget_rows.mT).amax(-1).topk(min(_SHOWN, len(keep))).indices
    names = (*forget, *(keep[i] for i in order.tolist()))
    fit = templates_that_fit(model, names, wordings())
    if not fit:
        return forget_rows.new_zeros(len(forget), 0, forget_rows.shape[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a wording that is cut behind the name is one
        found = prompt_features(model, names, fit)
    moves = found - torch.cat([forget_rows, keep_rows[order]])[:, None]
    own, shown = moves[: len(forget)], moves[len(forget) :]
    return own - shown.mean(0) if keep else own
