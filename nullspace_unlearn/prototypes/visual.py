"""`Visual`: what stands for the images of each cell, wherever it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.edit import DEEPER, Space
from nullspace_unlearn.erasers import Seen
from nullspace_unlearn.erasers.method import MadeOf
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import embed_spaces, encode_all
from nullspace_unlearn.prototypes.closed import closed_prototypes
from nullspace_unlearn.prototypes.pixels import Pictures

MOST_SHOTS = 64
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Visual:
    """Visual prototypes of a grid of cells: rows as the model sees images of each cell.

    Attributes:
        features: Embeddings and hidden features, with the class and domain each row stands for.
        made_of: What they come from: "prompts", "pictures" synthesised from the model, or real
            "images", which can be judged by one another.
        mlp: `[n, mlp_width]` what enters the output layer of the tower's last MLP, divided by the
            deviation that the last norm divides by; None unless it was asked for.
        value: `[n, heads * embed]` what enters the value projection of an attention pool; the same.
        beside: Of synthesised pictures, beside real images.
    """

    features: Features
    made_of: MadeOf
    mlp: Float[Tensor, "n mlp_width"] | None = None
    value: Float[Tensor, "n heads_embed"] | None = None
    beside: Visual | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the rows come from, and those beside them."""
        beside = {} if self.beside is None else {"beside": self.beside.provenance}
        return {**self.features.provenance, **beside}

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
        labels = positions(f.class_names, classes)[f.labels]
        columns = positions(f.domain_names, domains)[f.domains]
        kept = _covered(labels, columns, classes, domains)
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
        deeper = {name: getattr(self, name) for name in DEEPER}
        rows = {name: row[kept] for name, row in deeper.items() if row is not None}
        beside = None if self.beside is None else self.beside.on(classes, domains)
        return replace(self, features=features, beside=beside, **rows)

    def seen(self, vocabulary: Sequence[str]) -> Seen:
        """The rows as an eraser is given them.

        Args:
            vocabulary: Names that the labels are to index; those of the prototypes are among them.

        Returns:
            The rows, without names.
        """
        f = self.features
        assert f.domains is not None  # `on` has seen to it
        return Seen(
            embeddings=f.embeddings,
            labels=positions(f.class_names, vocabulary)[f.labels],
            domains=f.domains,
            made_of=self.made_of,
            hidden=f.hidden,
            mlp=self.mlp,
            value=self.value,
            beside=None if self.beside is None else self.beside.seen(vocabulary),
        )


def draw(
    source: Source,
    classes: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    shots: int = 8,
    seed: int = 0,
) -> Source:
    """The few images of each cell that prototypes are made from.

    Args:
        source: Images of every cell that requests will speak of.
        classes: The classes of these cells; absent: all of the source.
        domains: The domains of these cells; absent: all of the source.
        shots: At most so many images a cell, drawn at random, 1 to 64.
        seed: Of the draw.

    Returns:
        The images. Drawn from once more, they are the same.

    Raises:
        ValueError: If `shots` is out of range, or a cell has no image.
    """
    if not 1 <= shots <= MOST_SHOTS:
        raise ValueError(f"shots must be from 1 to {MOST_SHOTS}, got {shots}")
    classes, domains = classes or source.classes, domains or source.domains
    labels = positions(source.classes, classes)[source.class_index]
    columns = positions(source.domains, domains)[source.domain_index]
    return source.subset(_covered(labels, columns, classes, domains)).few(shots, seed)


def from_images(
    clip: Clip,
    source: Source,
    classes: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    *,
    shots: int = 8,
    seed: int = 0,
    space: Space = "embedding",
    batch_size: int = 64,
    workers: int = 2,
    quiet: bool = False,
) -> Visual:
    """Visual prototypes from a few real images a cell, as `draw` draws them.

    Args:
        clip: The model.
        source: As for `draw`.
        classes: As for `draw`.
        domains: As for `draw`.
        shots: As for `draw`.
        seed: As for `draw`.
        space: What an edit will read of them.
        batch_size: Images per forward pass.
        workers: Threads that read images ahead.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        The prototypes; the provenance names the files.

    Raises:
        ValueError: As `draw`; if an image cannot be embedded, or the model has nothing to read in
            that space.
    """
    drawn = draw(source, classes, domains, shots, seed)
    features, deeper = embed_spaces(
        clip, drawn, "hidden", space, batch_size=batch_size, workers=workers, quiet=quiet
    )
    files = [picture.name for picture in drawn.pictures]
    features = replace(features, provenance={**features.provenance, "files": files})
    return Visual(features, "images", **_deeper(deeper))


def from_batches(
    clip: Clip,
    batches: Iterable[Float[Tensor, "n 3 rows columns"]],
    labels: Int[Tensor, " images"],
    domains: Int[Tensor, " images"],
    class_names: Sequence[str],
    domain_names: Sequence[str],
    *,
    space: Space = "embedding",
    source: Mapping[str, Any] | None = None,
) -> Visual:
    """Visual prototypes from preprocessed images in memory.

    Args:
        clip: The model.
        batches: `[n, 3, rows, columns]` images, some at a time.
        labels: `[images]` the class of each.
        domains: `[images]` the domain of each.
        class_names: What labels index.
        domain_names: What domains index.
        space: What an edit will read of them.
        source: Where the images come from, for the provenance.

    Returns:
        The prototypes, one an image.

    Raises:
        ValueError: If the model has nothing to read in that space.
    """
    rows = encode_all(clip, batches, "hidden", space)
    features = Features(
        embeddings=rows["embedding"],
        hidden=rows["hidden"],
        labels=labels,
        class_names=tuple(class_names),
        domains=domains,
        domain_names=tuple(domain_names),
        provenance=source or {},
    )
    return Visual(features, "images", **_deeper(rows))


def from_pictures(clip: Clip, pictures: Pictures, *, space: Space = "embedding") -> Visual:
    """Visual prototypes from synthesised pictures.

    Args:
        clip: The model that made them.
        pictures: The pictures.
        space: What an edit will read of them; those of `DEEPER` look at every image once more.

    Returns:
        The prototypes.

    Raises:
        ValueError: If the model has nothing to read in that space.
    """
    if space not in DEEPER:
        return Visual(pictures.features, "pictures")
    batches = (clip.normalise(batch / 255) for batch in pictures.images.split(_BATCH))
    return Visual(pictures.features, "pictures", **_deeper(encode_all(clip, batches, space)))


def from_text(
    clip: Clip, classes: Sequence[str], domains: Mapping[str, str], templates: Sequence[str]
) -> Visual:
    """Visual prototypes in closed form, from prompts: see `closed_prototypes`.

    Args:
        clip: The model.
        classes: Names of the classes.
        domains: Key of each domain -> the word prompts use for it.
        templates: Templates holding `{class}` and `{domain}`.

    Returns:
        The prototypes, one a cell.

    Raises:
        ValueError: As `closed_prototypes`.
    """
    return Visual(closed_prototypes(clip, classes, domains, templates), "prompts")


def _deeper(rows: Mapping[Space, Tensor]) -> dict[str, Any]:
    return {space: rows[space] for space in DEEPER if space in rows}


def _covered(
    labels: Int[Tensor, " n"],
    columns: Int[Tensor, " n"],
    classes: Sequence[str],
    domains: Sequence[str],
) -> Int[Tensor, " kept"]:
    """The rows that lie in the grid (-1 says they do not), refused unless every cell has one."""
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
    return kept


def positions(names: Sequence[str], among: Sequence[str]) -> Int[Tensor, " names"]:
    """Where each name stands in another list; -1 where it does not."""
    if names == among:  # in which a name may come twice
        return torch.arange(len(among))
    place = {name: i for i, name in enumerate(among)}
    return torch.tensor([place.get(name, -1) for name in names])
