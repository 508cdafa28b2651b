"""What an edit would touch, before anything is written: near names, moved names, spectra."""

from __future__ import annotations

from typing import Any

import torch

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.plans import Plan


def inspection(made: Plan, edit: Edit, top: int = 10) -> dict[str, Any]:
    """Measure an embedding edit on the names of its plan.

    Args:
        made: The plan.
        edit: The edit made from it.
        top: Names to list, at most.

    Returns:
        Plain values: the kept names "nearest" to what is forgotten, with the "cosine" of each;
        those "most_changed", with the "change" `|t' - t|` of their unit prototypes as scores see
        it; "mean_change_of_kept" and "change_of_forgotten"; "spectrum", the singular values of the
        forgotten prototypes; "operator_singular_values" of the update.
    """
    cosine = (made.keep_rows @ made.forget_rows.mT).amax(-1)
    near = cosine.argsort(descending=True)[:top].tolist() if made.forget.classes else []
    update = edit.write @ edit.read.mT
    moved, gone = ((rows @ update).norm(dim=-1) for rows in (made.keep_rows, made.forget_rows))
    most = moved.argsort(descending=True)[:top].tolist()
    return {
        "nearest": [{"name": made.keep[i], "cosine": float(cosine[i])} for i in near],
        "change_of_forgotten": float(gone.mean()),
        "most_changed": [{"name": made.keep[i], "change": float(moved[i])} for i in most],
        "mean_change_of_kept": float(moved.mean()),
        "spectrum": torch.linalg.svdvals(made.forget_rows).tolist(),
        "operator_singular_values": torch.linalg.svdvals(update)[: edit.rank].tolist(),
    }
