"""Data to measure on, as options: --data and how to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli.options import BUNDLED, gathered

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.features import Features


@dataclass(frozen=True)
class DataOptions:
    """The options of `data_options`, as given."""

    data: str | None
    listing: str | None
    batch_size: int
    num_workers: int
    seed: int

    def find(self, domain_words: Mapping[str, str], model: str) -> Any:
        """Look at the data before anything is computed.

        Args:
            domain_words: Domain folder -> word.
            model: The model's name; the bundled one is measured on the bundled pictures.

        Returns:
            An image set, features read from a file, the string "nsu-mini", or None.

        Raises:
            ValueError: If the data cannot be used.
        """
        from nullspace_unlearn.data.folders import find_images
        from nullspace_unlearn.data.shards import are_shards, find_shards
        from nullspace_unlearn.features import read_features

        if self.data is None or self.data == BUNDLED:
            if self.listing is not None:
                raise ValueError("--list names images of a folder: give --data ROOT")
            return BUNDLED if BUNDLED in (self.data, model) else None
        if are_shards(self.data):
            if self.listing is not None:
                raise ValueError("--list names images of a folder, and --data is shards")
            return find_shards(self.data, domain_words)
        if Path(self.data).is_file():
            if self.listing is not None:
                raise ValueError("--list names images of a folder, and --data is a file")
            return read_features(self.data)
        return find_images(self.data, domain_words, self.listing)

    def embed(self, clip: Clip, found: Any, quiet: bool, hidden: bool = False) -> Features:
        """Features of what `find` found, under a model.

        Args:
            clip: The model.
            found: The data.
            quiet: Whether to leave out progress bars.
            hidden: Whether to keep hidden features too.

        Raises:
            ValueError: If the data cannot be embedded, or a feature file is of another model.
        """
        from nullspace_unlearn.evaluate.pictures import embed_pictures
        from nullspace_unlearn.features import Features, check_made_with, embed

        if isinstance(found, Features):
            check_made_with(found, clip)
            return found
        if found == BUNDLED:
            return embed_pictures(
                clip, seed=self.seed, batch_size=self.batch_size, quiet=quiet, hidden=hidden
            )
        features = embed(
            clip,
            found,
            batch_size=self.batch_size,
            workers=self.num_workers,
            quiet=quiet,
            hidden=hidden,
        )
        say_skipped(features)
        return features


data_options = gathered(
    "data",
    DataOptions,
    click.option(
        "--data",
        metavar="ROOT|FILE",
        help="Images root/<domain>/<class>/*, webdataset shards (a folder, or DIR/{00..03}.tar), a "
        "feature file, or nsu-mini: the bundled pictures.",
    ),
    click.option("--list", "listing", metavar="FILE", help="Use only the images this file lists."),
    click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1)),
    click.option("--num-workers", default=2, show_default=True, type=click.IntRange(1)),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0, 100_000),
        help="Which bundled pictures are drawn.",
    ),
)


def say_skipped(features: Features) -> None:
    """Name on stderr the files that could not be read."""
    skipped = features.provenance["skipped"]
    if skipped:
        named = ", ".join(f"{one['file']} ({one['reason']})" for one in skipped[:5])
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        click.echo(f"nsu: skipped {len(skipped)} files: {named}{more}", err=True)


def names_of(data: Any) -> tuple[tuple[str, ...] | None, dict[str, str]]:
    """Class names and domain words that the data brings along."""
    from nullspace_unlearn.data import mini
    from nullspace_unlearn.data.folders import ImageSet
    from nullspace_unlearn.data.shards import NO_DOMAIN, NO_DOMAIN_WORD
    from nullspace_unlearn.features import Features

    if isinstance(data, ImageSet):
        return data.classes, dict(zip(data.domains, data.domain_words, strict=True))
    if isinstance(data, Features):
        own = {NO_DOMAIN: NO_DOMAIN_WORD}
        return data.class_names or None, {name: own.get(name, name) for name in data.domain_names}
    if data == BUNDLED:
        return mini.CLASSES, {name: name for name in mini.DOMAINS}
    return None, {}
