"""Visual prototypes in closed form, from prompts and the model alone, for when seconds count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import made_with
from nullspace_unlearn.linalg import as_float64
from nullspace_unlearn.prototypes.starts import start
from nullspace_unlearn.prototypes.text import cell_prototypes, checked_grid

_BATCH = 16
_KINDS = (0, 1, 3)  # samples of `start`: clouds, paper, scribbled paper; they recur every fourth
_RECUR = 4
# Rounding a matrix adds one whose largest singular value is at most about 2 eps of its own: what is
# smaller than this is what an edit removed, not a direction to divide by.
_ROUNDING = 4


def closed_prototypes(
    clip: Clip,
    classes: Sequence[str],
    domains: Mapping[str, str],
    templates: Sequence[str],
    *,
    images: int = 16,
    seed: int = 0,
) -> Features:
    """One visual prototype a cell in closed form: the text prototype, moved to where images lie.

    Embeddings of images keep apart from those of prompts (the "modality gap" of Liang et al.,
    "Mind the gap", 2022), while differences between cells are much alike on both sides. So a cell
    lies at the mean of images plus what sets its text prototype apart, `t - mean of all cells' t`.
    Of the mean of images, three kinds of procedural pictures know what they share: their mean, cut
    to the part of its square that is mean inner product between different kinds. (In full it would
    be too long, as such pictures are more alike than images are.)

    The hidden feature is the one nearest to those pictures' mean, cut alike, that the final
    projection takes to the prototype. What the projection cannot reach no image has either, so the
    embedding is what it makes of the hidden feature. All is derived in float64 for unit embeddings,
    then given the mean length of the pictures' embeddings, at which a bias weighs as for images.

    Args:
        clip: The model.
        classes: Names of the classes.
        domains: Key of each domain -> the word prompts use for it.
        templates: Templates holding `{class}` and `{domain}`.
        images: Procedural pictures of each kind.
        seed: Of these pictures.

    Returns:
        One row a cell, in the order of classes, then domains; float32, on the CPU.

    Raises:
        ValueError: If a name or template is malformed, there are fewer than two cells, `images` is
            not positive, the model gives NaN or Inf, or it has no visual projection.
    """
    why = "a prototype is what sets a cell apart from other cells"
    classes, words, templates = checked_grid(why, classes, domains, templates)
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    projection = clip.projection("visual")
    text = cell_prototypes(clip, classes, words, templates).flatten(0, 1)
    mean, centre, length = _centre(clip, images, seed)
    stored = torch.float32 if projection.weight is None else projection.weight.dtype
    inverse = torch.linalg.pinv(projection.matrix(), rtol=_ROUNDING * torch.finfo(stored).eps)
    wanted = length * (centre + text - text.mean(0))
    hidden = length * mean
    hidden = hidden + (wanted - clip.project(hidden)) @ inverse
    cell = torch.arange(len(text))
    return Features(
        embeddings=clip.project(hidden),
        labels=cell // len(words),
        class_names=classes,
        hidden=hidden,
        domains=cell % len(words),
        domain_names=tuple(domains),
        provenance={
            **made_with(clip),
            "images": f"closed form, from prompts and {images} procedural pictures a "
            f"kind, seed {seed}",
            "words": list(words),
            "templates": list(templates),
        },
    )


def _centre(
    clip: Clip, images: int, seed: int
) -> tuple[Float[Tensor, " width"], Float[Tensor, " dim"], Float[Tensor, ""]]:
    """What pictures share, as a hidden feature and as an embedding; the mean length of the latter.

    Hidden features are divided by the lengths of their embeddings.
    """
    rows, columns = clip.image_size
    hiddens, embeddings, lengths = [], [], []
    for kind in _KINDS:
        samples = range(kind, _RECUR * images, _RECUR)
        for first in range(0, images, _BATCH):
            batch = samples[first : first + _BATCH]
            pictures = torch.stack([start(rows, columns, seed, sample) for sample in batch])
            h, z = clip.encode_both(clip.normalise(pictures))
            z = as_float64("embeddings", z.cpu())
            length = z.norm(dim=-1, keepdim=True)
            hiddens.append(as_float64("hidden features", h.cpu()) / length)
            embeddings.append(z / length)
            lengths.append(length)
    kinds = torch.cat(embeddings).unflatten(0, (len(_KINDS), images)).mean(1)
    centre = kinds.mean(0)
    products = kinds @ kinds.mT
    between = (products.sum() - products.trace()) / (len(kinds) * (len(kinds) - 1))
    shared = (between / centre.square().sum()).clamp(0, 1)
    return shared * torch.cat(hiddens).mean(0), shared * centre, torch.cat(lengths).mean()
