"""The retained vocabulary: whose recognition must stay when the user gives no class list."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.linalg import unit
from nullspace_unlearn.words import same_name

DOMAIN_WORDS = ("photo", "painting", "cartoon", "sketch")
"""Domains a model is taken to know where neither its folder nor the data name any."""

_CLOSE = 0.25


def imagenet_names() -> tuple[str, ...]:
    """The 1,000 ImageNet class names open_clip carries, each once.

    Returns:
        Names in ImageNet's order; a name that two classes share is listed once.
    """
    from open_clip import IMAGENET_CLASSNAMES

    return tuple({same_name(name): name for name in reversed(IMAGENET_CLASSNAMES)}.values())[::-1]


def standard_templates() -> tuple[str, ...]:
    """The 80 templates that CLIP's zero-shot accuracy on ImageNet is measured with.

    Returns:
        Templates holding `{class}`.
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(make("{class}") for make in OPENAI_IMAGENET_TEMPLATES)


def near_synonyms(
    forget: Float[Tensor, "m dim"], names: Float[Tensor, "n dim"]
) -> Bool[Tensor, " n"]:
    """Which names mean to the model much the same as something forgotten.

    A name is a near-synonym where its distance `1 - cos` to a forgotten prototype is less than a
    quarter of the mean distance between two names: a rule that means the same for a model whose
    prompts all lie close together. On CLIP ViT-B/32 it amounts to a cosine above 0.90.

    Args:
        forget: `[m, dim]` prototypes of what is forgotten.
        names: `[n, dim]` prototypes of a vocabulary.

    Returns:
        `[n]`, true for near-synonyms.
    """
    rows = unit(names)
    typical = 1 - rows.mean(0).square().sum()
    return (1 - rows @ unit(forget).mT).amin(-1) < _CLOSE * typical
