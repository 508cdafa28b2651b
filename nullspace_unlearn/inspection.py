"""What an edit would touch, before anything is written: near names, what moves, spectra."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import DEEPER, Edit
from nullspace_unlearn.linalg import as_float64, group_means
from nullspace_unlearn.plans import Plan, cells_of_images
from nullspace_unlearn.prototypes import Visual


def inspection(
    clip: Clip, made: Plan, edit: Edit, visual: Visual | None = None, top: int = 10
) -> dict[str, Any]:
    """Measure an edit on what it was made of: the names, or the cells that images show.

    Args:
        clip: The model.
        made: The plan.
        edit: The edit made from it.
        visual: The visual prototypes it was made from. An edit that reads more than embeddings is
            measured on these.
        top: Names or cells to list, at most.

    Returns:
        Plain values: the kept names "nearest" to what is forgotten, with the "cosine" of each;
        those "most_changed", with the "change" `|t' - t|` of their unit prototypes as scores see
        it, or of kept cells "class/domain" that of their images, `|z' - z|/|z|`;
        "mean_change_of_kept" and "change_of_forgotten"; "spectrum", the singular values of the
        forgotten prototypes; "operator_singular_values" of the update.
    """
    cosine = (made.keep_rows @ made.forget_rows.mT).amax(-1)
    near = cosine.argsort(descending=True)[:top].tolist() if made.forget.classes else []
    update = edit.write @ edit.read.mT
    if edit.space == "embedding":
        names = list(made.keep)
        moved, gone = ((rows @ update).norm(dim=-1) for rows in (made.keep_rows, made.forget_rows))
    else:
        assert visual is not None  # only images show these spaces, and `erase` has seen to it
        names, moved, gone = _cells_moved(clip, made, edit, visual)
    most = moved.argsort(descending=True)[:top].tolist()
    return {
        "nearest": [{"name": made.keep[i], "cosine": float(cosine[i])} for i in near],
        "change_of_forgotten": float(gone.mean()),
        "most_changed": [{"name": names[i], "change": float(moved[i])} for i in most],
        "mean_change_of_kept": float(moved.mean()),
        "spectrum": torch.linalg.svdvals(made.forget_rows).tolist(),
        "operator_singular_values": edit.spectrum().tolist(),
    }


def _cells_moved(
    clip: Clip, made: Plan, edit: Edit, visual: Visual
) -> tuple[list[str], Float[Tensor, " kept"], Float[Tensor, " forgotten"]]:
    """Kept cells and their mean shift, and the mean shift of forgotten ones."""
    shown = visual.features
    classes, domains = cells_of_images(made, shown.class_names, shown.domain_names)
    seen = visual.on(classes, domains).seen(classes)
    rows = as_float64("images", seen.read(edit.space))
    if edit.space in DEEPER:
        assert seen.hidden is not None  # whoever reads deeper has read it too
        inner = clip.inner(edit.space)
        images = inner.of_prototypes(rows, seen.hidden)
        shift = inner.apply(edit, images) - images.embedding
    else:
        shift = (rows @ edit.read) @ edit.write.mT
    size = shift.norm(dim=-1) / seen.embeddings.double().norm(dim=-1)
    mask = made.forget.mask(classes, domains).flatten()
    means = group_means(size[:, None], seen.labels * len(domains) + seen.domains, len(mask))[:, 0]
    names = [f"{name}/{domain}" for name in classes for domain in domains]
    kept = [name for name, gone in zip(names, mask.tolist(), strict=True) if not gone]
    return kept, means[~mask], means[mask]
