"""What stands for images, as options: --prototypes, --images and what is read from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli.data import said
from nullspace_unlearn.cli.options import cache_options, gathered
from nullspace_unlearn.cli.request import RequestOptions

if TYPE_CHECKING:
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.edit import Space
    from nullspace_unlearn.looks import Looks, Prototypes


@dataclass(frozen=True)
class VisualOptions:
    """The options of `visual_options`, as given."""

    prototypes: Prototypes
    images: str | None
    shots: int
    space: Space | None
    images_too: bool
    cache: str | None
    no_cache: bool

    def request(self, request: RequestOptions) -> RequestOptions:
        """The request with the method that --images-too asks for.

        Raises:
            ValueError: If options contradict each other.
        """
        if self.images and self.prototypes not in ("auto", "pixels"):
            raise ValueError(
                f"--images say how cells look, and --prototypes {self.prototypes} would say it "
                "otherwise: leave one out (--prototypes pixels makes pictures beside them)"
            )
        if not self.images_too:
            return request
        if request.cells.domain:
            raise ValueError("--images-too forgets a class everywhere: leave out --domain")
        if request.method not in (None, "two_sided"):
            raise ValueError(f"--images-too is method two_sided, not {request.method}")
        return replace(request, method="two_sided")

    def find(
        self, domain_words: Mapping[str, str], class_words: Mapping[str, str], quiet: bool = False
    ) -> Source | None:
        """Look at the images before anything is computed.

        Args:
            domain_words: Domain folder -> word.
            class_words: Class folder -> word.
            quiet: Whether to say nothing of how the images were read.

        Raises:
            ValueError: If they cannot be used.
        """
        from nullspace_unlearn.data.find import open_source

        if self.images is None:
            return None
        source = open_source(self.images, domain_words=domain_words, class_words=class_words)
        if source.features is not None:
            raise ValueError("--images are looked at, and a feature file shows none: give images")
        return source if quiet else said(source)

    def check_shown_by(self, measured: Source | None) -> None:
        """Refuse to measure on features what they do not show.

        Args:
            measured: What the edit will be measured on.

        Raises:
            ValueError: If they do not show what --space reads.
        """
        from nullspace_unlearn.edit import DEEPER

        if self.space in DEEPER and measured is not None and measured.features is not None:
            raise ValueError(
                f"--space {self.space} is measured on images encoded again, and --data is "
                "features: give images, or --space hidden"
            )

    def looks(
        self, images: Source | None, batch_size: int, cache: Path | None, quiet: bool
    ) -> Looks:
        """What visual prototypes are made of.

        Args:
            images: What `find` found.
            batch_size: Images per forward pass.
            cache: Where pictures are kept, as `options.use_text_cache` says.
            quiet: Whether to leave out progress bars.
        """
        from nullspace_unlearn.looks import Looks

        return Looks(self.prototypes, images, self.shots, self.space, batch_size, cache, quiet)


visual_options = gathered(
    "visual",
    VisualOptions,
    click.option(
        "--prototypes",
        type=click.Choice(["auto", "text", "closed", "pixels"]),
        default="auto",
        show_default=True,
        help="What says how images of a cell look: prompts alone, prompts moved to where images "
        "lie, or pictures synthesised from the model. auto: pixels where a domain is "
        "named, else text.",
    ),
    click.option(
        "--images",
        metavar="ROOT",
        help="A few real images of every cell, root/<domain>/<class>/*, in place of those; "
        "with --prototypes pixels, beside pictures.",
    ),
    click.option("--shots", default=8, show_default=True, help="Of these at most so many a cell."),
    click.option(
        "--space",
        type=click.Choice(["embedding", "hidden", "mlp", "value"]),
        help="Which feature the edit reads: the embedding, the hidden feature that enters the "
        "final projection, or what enters an earlier layer, which is edited then: the last MLP's "
        "output layer (ViT), the value projection (ResNet). "
        "Absent: the deepest that the model has for neutral, else the embedding.",
    ),
    click.option(
        "--images-too",
        is_flag=True,
        help="A class everywhere: make its images harder to find by one another as well.",
    ),
    cache_options,
)
