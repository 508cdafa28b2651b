"""The one embedding loop: batches of images through a model, every feature in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Skipped, Source
from nullspace_unlearn.edit import DEEPER, Space
from nullspace_unlearn.features.features import Features
from nullspace_unlearn.fingerprint import Fingerprint, in_words, machine
from nullspace_unlearn.progress import progress

_OF_IMAGES = ("weights", "edits.visual", "model_cfg", "preprocessing", "adapter")
"""Facts of a model that tell whose features images have."""


def encode(
    clip: Clip, images: Float[Tensor, "n 3 rows columns"], *spaces: Space
) -> dict[Space, Float[Tensor, "n _"]]:
    """Read some images in one forward pass.

    Args:
        clip: The model.
        images: `[n, 3, rows, columns]`, preprocessed.
        *spaces: What to read besides the embedding.

    Returns:
        By space, `[n, dim or width]` float32 on the CPU. "embedding": what the image tower gives,
        not normalised. "hidden": what enters its final projection. "mlp": what enters the output
        layer of its last MLP, divided by the deviation that the last norm divides by. "value": what
        enters the value projection of its attention pool, a block a head.

    Raises:
        ValueError: If the model has no visual projection and "hidden" is asked for, or lacks the
            layer of a deeper space that is.
    """
    rows: dict[Space, Tensor]
    if deeper := [space for space in spaces if space in DEEPER]:
        seen = clip.read_inner(deeper[0], images)
        rows = {"embedding": seen.embedding, "hidden": seen.hidden, deeper[0]: seen.rows}
    elif "hidden" in spaces:
        hidden, embedding = clip.encode_both(images)
        rows = {"embedding": embedding, "hidden": hidden}
    else:
        rows = {"embedding": clip.encode_image(images)}
    return {space: row.cpu() for space, row in rows.items() if space in ("embedding", *spaces)}


def encode_all(
    clip: Clip,
    batches: Iterable[Float[Tensor, "n 3 rows columns"]],
    *spaces: Space,
) -> dict[Space, Float[Tensor, "n _"]]:
    """Read batches of images one after another.

    Args:
        clip: The model.
        batches: `[n, 3, rows, columns]` each, preprocessed; empty ones are passed over.
        *spaces: As for `encode`.

    Returns:
        The rows of all, in order, as `encode` gives them.

    Raises:
        ValueError: As `encode`; and if there is no image.
    """
    return _encoded((clip,), batches, *spaces)[0]


def _encoded(
    clips: Sequence[Clip], batches: Iterable[Float[Tensor, "n 3 rows columns"]], *spaces: Space
) -> list[dict[Space, Float[Tensor, "n _"]]]:
    parts: list[dict[Space, list[Tensor]]] = [{} for _ in clips]
    for images in batches:
        for clip, part in zip(clips, parts, strict=True) if len(images) else ():
            for space, rows in encode(clip, images, *spaces).items():
                part.setdefault(space, []).append(rows)
    if not all(parts):
        raise ValueError("there is no image to embed")
    return [{space: torch.cat(rows) for space, rows in part.items()} for part in parts]


def embed(
    clip: Clip,
    source: Source,
    *,
    batch_size: int = 64,
    workers: int = 2,
    quiet: bool = False,
    hidden: bool = False,
) -> Features:
    """Features of a source under a model: computed, or those that it holds.

    Args:
        clip: The model.
        source: The images.
        batch_size: Images per forward pass.
        workers: Threads that read images ahead.
        quiet: Whether to leave out the progress bar on stderr.
        hidden: Whether to keep the hidden features too, which an edit of the hidden space reads.

    Returns:
        Features on the CPU, in the source's order; without text where they were computed. Images
        that could not be read are missing, and named under "skipped" in the provenance.

    Raises:
        ValueError: If a cell has images but no readable one, the model gives NaN or Inf, `hidden`
            is asked of a model without a visual projection, or the features that the source holds
            are of another model.
    """
    return embed_each(
        (clip,), source, batch_size=batch_size, workers=workers, quiet=quiet, hidden=hidden
    )[0]


def embed_each(
    clips: Sequence[Clip],
    source: Source,
    *,
    batch_size: int = 64,
    workers: int = 2,
    quiet: bool = False,
    hidden: bool = False,
) -> list[Features]:
    """Features of a source under several models: of models that prepare images alike each is read
    once, since to read it often takes longer than to embed it.

    Args:
        clips: The models.
        source: As for `embed`.
        batch_size: As for `embed`.
        workers: As for `embed`.
        quiet: As for `embed`.
        hidden: As for `embed`.

    Returns:
        What `embed` gives of each model.

    Raises:
        ValueError: As `embed`.
    """
    if source.features is not None:
        for clip in clips:
            check_made_with(source.features, clip)
        return [source.features] * len(clips)
    spaces: tuple[Space, ...] = ("hidden",) if hidden else ()
    options: Any = {"batch_size": batch_size, "workers": workers, "quiet": quiet}
    prepared = [clip.fingerprint.only("preprocessing") for clip in clips]
    if all(one == prepared[0] for one in prepared):
        return [features for features, _ in _read(clips, source, *spaces, **options)]
    return [_read((clip,), source, *spaces, **options)[0][0] for clip in clips]


def embed_spaces(
    clip: Clip,
    source: Source,
    *spaces: Space,
    batch_size: int = 64,
    workers: int = 2,
    quiet: bool = False,
) -> tuple[Features, dict[Space, Float[Tensor, "n _"]]]:
    """Features of images, and what lies deeper, from one pass over them.

    Args:
        clip: The model.
        source: The images.
        *spaces: As for `encode`; "hidden" becomes a part of the features.
        batch_size: Images per forward pass.
        workers: Threads that read images ahead.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        The features, and the rows of the other spaces.

    Raises:
        ValueError: If the source holds no images, a cell has images but no readable one, or a space
            cannot be read.
    """
    return _read((clip,), source, *spaces, batch_size=batch_size, workers=workers, quiet=quiet)[0]


def _read(
    clips: Sequence[Clip],
    source: Source,
    *spaces: Space,
    batch_size: int,
    workers: int,
    quiet: bool,
) -> list[tuple[Features, dict[Space, Float[Tensor, "n _"]]]]:
    """One pass over the images, as the first of the models prepares them, for all models."""
    kept: list[Tensor] = []
    skipped: list[Skipped] = []
    with progress(total=len(source), unit="image", hidden=quiet, desc="embedding") as bar:

        def images() -> Iterator[Tensor]:
            for batch in source.batches(clips[0].preprocess, batch_size, workers):
                yield batch.images
                kept.append(batch.indices)
                skipped.extend(batch.skipped)
                bar.update(len(batch.indices) + len(batch.skipped))

        found = _encoded(clips, images(), *spaces)
    index = torch.cat(kept)
    return [
        (
            Features(
                embeddings=rows.pop("embedding"),
                labels=source.class_index[index],
                class_names=source.classes,
                hidden=rows.pop("hidden", None),
                domains=source.domain_index[index],
                domain_names=source.domains,
                provenance={
                    **made_with(clip),
                    "images": source.name,
                    "skipped": skipped_files(skipped),
                },
            ),
            rows,
        )
        for clip, rows in zip(clips, found, strict=True)
    ]


def skipped_files(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    """Images of a source that could not be read, for the provenance."""
    return [{"file": one.picture.name, "reason": one.reason} for one in skipped]


def made_with(clip: Clip) -> dict[str, Any]:
    """What a model's features depend on besides the images, as plain JSON values.

    Args:
        clip: The model.

    Returns:
        "model" and "pretrained", what it is called; "made_with", the facts of `Clip.fingerprint`;
        "machine", those of `fingerprint.machine`.
    """
    return {
        "model": clip.source.name,
        "pretrained": clip.source.pretrained,
        "made_with": dict(clip.fingerprint.facts),
        "machine": machine(clip.device),
    }


def check_made_with(features: Features, clip: Clip) -> None:
    """Refuse features of another model, as far as they say what they were made with.

    Precision and machine may differ: they change the last digits.

    Args:
        features: The features.
        clip: The model.

    Raises:
        ValueError: If the dimensions differ, or the weights, activation, preprocessing, visual
            prompts or edits of the image tower; says which.
    """
    dim = features.embeddings.shape[-1]
    if dim != clip.dim:
        raise ValueError(
            f"the features have {dim} dimensions and the model {clip.dim}: they are not of this "
            "model"
        )
    theirs = features.provenance.get("made_with")
    if not isinstance(theirs, dict):
        return
    differences = (
        Fingerprint(theirs).only(*_OF_IMAGES).differences(clip.fingerprint.only(*_OF_IMAGES))
    )
    if differences:
        raise ValueError(
            "the features were made with another model; they are not of this model: "
            f"{in_words(differences)}"
        )
