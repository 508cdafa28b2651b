"""Data to measure on, as options: --data and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli.options import BUNDLED, gathered, pairs
from nullspace_unlearn.spelling import printable

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.features import Features

KINDS = (
    "Images root/<domain>/<class>/* or root/<class>/*, DOMAIN=FOLDER,... of folders <class>/*, "
    "webdataset shards (a folder, or DIR/{00..03}.tar), CIFAR's binary files, a feature file, or "
    "nsu-mini: the bundled pictures."
)

class_word_option = click.option(
    "--class-word",
    multiple=True,
    metavar="FOLDER=WORD",
    help="The word that prompts use for a class, in place of its folder's: n02958343=car.",
)


@dataclass(frozen=True)
class DataOptions:
    """The options of `data_options`, as given."""

    data: str | None
    listing: str | None
    class_word: tuple[str, ...]
    batch_size: int
    num_workers: int
    seed: int

    def find(
        self, domain_words: Mapping[str, str], model: str, quiet: bool = False
    ) -> Source | None:
        """Look at the data before anything is computed.

        Args:
            domain_words: Domain folder -> word.
            model: The model's name; the bundled one is measured on the bundled pictures.
            quiet: Whether to say nothing of how the data were read.

        Returns:
            The data; None where none are named and the model brings none along.

        Raises:
            ValueError: If the data cannot be used.
        """
        if self.data is None and self.listing is not None:
            raise ValueError("--list names images of a folder: give --data ROOT")
        if self.data is None and model != BUNDLED:
            return None
        return self.open(domain_words, quiet)

    def open(self, domain_words: Mapping[str, str], quiet: bool = False) -> Source:
        """The data that are named, or the bundled pictures.

        Args:
            domain_words: Domain folder -> word.
            quiet: Whether to say nothing of how the data were read.

        Raises:
            ValueError: If the data cannot be used.
        """
        from nullspace_unlearn.data.find import open_source

        source = open_source(
            self.data or BUNDLED,
            domain_words=domain_words,
            class_words=self.class_words,
            listing=self.listing,
            seed=self.seed,
        )
        return source if quiet else said(source)

    @property
    def class_words(self) -> dict[str, str]:
        """Class folder -> word, as --class-word says.

        Raises:
            ValueError: If one is malformed or given twice.
        """
        return pairs("--class-word", self.class_word)

    def embed(
        self, clips: Sequence[Clip], source: Source, quiet: bool, hidden: bool = False
    ) -> list[Features]:
        """Features of some data under each of some models.

        Args:
            clips: The models.
            source: The data.
            quiet: Whether to leave out progress bars.
            hidden: Whether to keep hidden features too.

        Raises:
            ValueError: If the data cannot be embedded, or a feature file is of another model.
        """
        from nullspace_unlearn.features.embed import embed_each

        features = embed_each(
            clips,
            source,
            batch_size=self.batch_size,
            workers=self.num_workers,
            quiet=quiet,
            hidden=hidden,
        )
        say_skipped(features[0])
        return features


data_options = gathered(
    "data",
    DataOptions,
    click.option("--data", metavar="ROOT|FILE", help=KINDS),
    click.option("--list", "listing", metavar="FILE", help="Use only the images this file lists."),
    class_word_option,
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


def said(source: Source) -> Source:
    """The data, after a line on stderr about how they were read where that is to be known."""
    notes = list(source.notes)
    if source.twice:
        named = ", ".join(source.twice[:5]) + ", ..." * (len(source.twice) > 5)
        notes.append(f"several classes are called {named}: they stay or go together")
    if notes:
        click.echo(printable(f"nsu: {source.name}, {source.kind}: {'; '.join(notes)}"), err=True)
    return source


def say_skipped(features: Features | None) -> None:
    """Name on stderr the files that could not be read."""
    skipped = () if features is None else features.provenance.get("skipped", ())
    if skipped:
        named = ", ".join(f"{one['file']} ({one['reason']})" for one in skipped[:5])
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        click.echo(printable(f"nsu: skipped {len(skipped)} files: {named}{more}"), err=True)
