"""`Visual`: what stands for the images of each cell, wherever it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.folders import ImageSet, few, load_batches
from nullspace_unlearn.features import Features, embed
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes.pixels import Synthesis

MOST_SHOTS = 64
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Visual:
    """Visual prototypes of a grid of cells: rows as the model sees images of each cell.

    Attributes:
        features: Embeddings and hidden features, with the class and domain each row stands for.
        real: Whether they are of real images, so that one can be judged by others.
        mlp: `[n, mlp_width]` what enters the output layer of the tower's last MLP, divided by the
            deviation that the last norm divides by; None unless it was asked for.
    """

    features: Features
    real: bool
    mlp: Float[Tensor, "n mlp_width"] | None = None

    def on(self, classes: Sequence[str], domains: Sequence[str]) -> Visual:
        """These prototypes with labels that index other lists of names; other rows left out.

        Args:
            classes: Class names.
            domains: Domain keys.

        Returns:
            The rows of cells in that grid.

        Raises:
            ValueError: If a cell of it has no row; names such cells.
        """
        f = self.features
        if f.domains is None:
            raise ValueError("the prototypes name no domains")
        labels = _positions(f.class_names, classes)[f.labels]
        columns = _positions(f.domain_names, domains)[f.domains]
        kept = ((labels >= 0) & (columns >= 0)).nonzero()[:, 0]
        cell = (labels * len(domains) + columns)[kept]
        empty = torch.bincount(cell, minlength=len(classes) * len(domains)) == 0
        if empty.any():
            cells = [f"{c}/{d}" for c in classes for d in domains]
            missing = [name for name, gone in zip(cells, empty.tolist(), strict=True) if gone]
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ValueError(
                f"there is no image of {len(missing)} cells that the request needs: "
                f"{', '.join(missing[:5])}{more}"
            )
        features = replace(
            f,
            embeddings=f.embeddings[kept],
            hidden=None if f.hidden is None else f.hidden[kept],
            labels=labels[kept],
            class_names=tuple(classes),
            domains=columns[kept],
            domain_names=tuple(domains),
            text=None,
        )
        return Visual(features, self.real, None if self.mlp is None else self.mlp[kept])

    def cell_means(self) -> Float[Tensor, "classes domains dim"]:
        """One unit prototype a cell: the mean of its unit embeddings, normalised; float64.

        Every cell must have a row, as after `on`.
        """
        f = self.features
        assert f.domains is not None
        shape = (len(f.class_names), len(f.domain_names))
        rows = unit(f.embeddings.double())
        cell = f.labels * shape[1] + f.domains
        sums = rows.new_zeros(shape[0] * shape[1], rows.shape[-1]).index_add(0, cell, rows)
        return unit(sums).reshape(*shape, -1)


def from_images(
    clip: Clip,
    image_set: ImageSet,
    *,
    shots: int = 8,
    seed: int = 0,
    deeper: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    quiet: bool = False,
) -> Visual:
    """Visual prototypes from a few real images a cell.

    Args:
        clip: The model.
        image_set: Images of every cell that requests will speak of.
        shots: At most so many images a cell, drawn at random, 1 to 64.
        seed: Of the draw.
        deeper: Whether to read the last MLP too, for an edit there.
        batch_size: Images per forward pass.
        workers: Threads that read images ahead.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        The prototypes; the provenance names the files.

    Raises:
        ValueError: If `shots` is out of range, an image cannot be embedded, or `deeper` is asked of
            a model whose last MLP cannot be reached.
    """
    if not 1 <= shots <= MOST_SHOTS:
        raise ValueError(f"shots must be from 1 to {MOST_SHOTS}, got {shots}")
    drawn = few(image_set, shots, seed)
    features = embed(clip, drawn, batch_size=batch_size, workers=workers, quiet=quiet, hidden=True)
    files = [path.relative_to(drawn.root).as_posix() for path in drawn.paths]
    features = replace(features, provenance={**features.provenance, "files": files})
    if not deeper:
        return Visual(features, real=True)
    batches = load_batches(drawn, clip.preprocess, batch_size, workers)
    return Visual(features, True, _mlp(clip, [b.images for b in batches if len(b.indices)]))


def from_pictures(clip: Clip, synthesis: Synthesis, *, deeper: bool = False) -> Visual:
    """Visual prototypes from synthesised pictures.

    Args:
        clip: The model that made them.
        synthesis: The pictures.
        deeper: Whether to read the last MLP too, for an edit there.

    Returns:
        The prototypes.

    Raises:
        ValueError: If `deeper` is asked of a model whose last MLP cannot be reached.
    """
    if not deeper:
        return Visual(synthesis.features, real=False)
    images = [clip.normalise(batch / 255) for batch in synthesis.images.split(_BATCH)]
    return Visual(synthesis.features, False, _mlp(clip, images))


def _mlp(clip: Clip, batches: Sequence[Tensor]) -> Float[Tensor, "n mlp_width"]:
    parts = [clip.mlp_image(batch) for batch in batches]
    return torch.cat([(part.mlp / part.deviation[:, None]).cpu() for part in parts])


def _positions(names: Sequence[str], among: Sequence[str]) -> Int[Tensor, " names"]:
    """Where each name stands in another list; -1 where it does not."""
    place = {name: i for i, name in enumerate(among)}
    return torch.tensor([place.get(name, -1) for name in names])
