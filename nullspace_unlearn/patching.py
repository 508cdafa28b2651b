"""Patches made for a model's weights, and folded into them: one or several, in one go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, cast

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import Edit, Side
from nullspace_unlearn.fingerprint import of_tensors
from nullspace_unlearn.patch import DIGITS, Ordered, Patch, Weights, ordered


def make_patch(
    clip: Clip, edit: Edit, side: Side = "visual", figures: Mapping[str, Any] | None = None
) -> Patch:
    """Put an edit together with the weights that it was made for.

    Args:
        clip: The model that it was made for, without the edit.
        edit: One edit.
        side: The tower that it goes to.
        figures: What was measured, in plain JSON values.

    Returns:
        The patch; a few hundred kilobytes, whatever the model's size.

    Raises:
        ValueError: If the edit is a batch.
    """
    if edit.batch_shape:
        raise ValueError(f"a batch of edits {list(edit.batch_shape)} is no patch: index one")
    weights = Weights(
        model=clip.source.name,
        pretrained=clip.source.pretrained,
        sha256=None if clip.changes else clip.source.sha256,
        tensors=_hashes(clip),
    )
    return replace(edit.patch(side), weights=weights, figures=figures)


def check_fits(
    patch: Patch,
    clip: Clip,
    name: str = "the patch",
    hashes: Callable[[], Mapping[str, str]] | None = None,
) -> None:
    """Refuse weights that a patch is not for.

    Args:
        patch: The patch; one that names no weights fits any.
        clip: The model.
        name: What the patch is called in messages.
        hashes: Gives those of the model's tensors, where several patches are checked; absent: they
            are computed.

    Raises:
        ValueError: If the weights are others; names a tensor that differs.
    """
    said = patch.weights
    if said is None or (said.sha256 and not clip.changes and said.sha256 == clip.source.sha256):
        return
    now = _hashes(clip) if hashes is None else hashes()
    differing = said.differing(now)
    if not differing:
        return
    key = differing[0]
    what = "differs" if key in now and key in said.tensors else (
        "is not in the patch's model" if key in now else "is missing"
    )  # fmt: skip
    more = f", and {len(differing) - 1} other tensors" if differing[1:] else ""
    raise ValueError(
        f"{name} is for other weights ({said.title}) than those of {clip.source.name}: "
        f"{key} {what}{more}"
    )


def fold_patches(
    clip: Clip, patches: Sequence[Patch], names: Sequence[str] | None = None
) -> tuple[Clip, tuple[Ordered, ...]]:
    """Fold patches into a model one after another, with nothing coarser than float32 in between.

    Each must be for the weights that the model came with, or for those that the patches before it
    lead to.

    Args:
        clip: The model; it is not changed.
        patches: The patches, first to last.
        names: What they are called in messages; absent: by number.

    Returns:
        The edited model, and for each two patches how much their order counts.

    Raises:
        ValueError: If there is none, a patch is for other weights, or cannot be folded.
        RuntimeError: As `Clip.fold`.
    """
    if not patches:
        raise ValueError("there is no patch to apply")
    names = names or [f"patch {number}" for number in range(1, len(patches) + 1)]
    edited, hashes = clip, cache(lambda: _hashes(clip))
    for patch, name in zip(patches, names, strict=True):
        try:
            check_fits(patch, clip, name, hashes)
        except ValueError:
            if edited is clip:
                raise
            check_fits(patch, edited, name)
        edited = Edit.of(patch).fold(edited, cast(Side, patch.side))
    return edited, ordered(patches)


def _hashes(clip: Clip) -> dict[str, str]:
    """The beginning of the hash of every tensor of a model, by its name."""
    state = clip.model.state_dict()
    return {key: of_tensors({"": value})[:DIGITS] for key, value in state.items()}
