"""What stands for images, as options: --prototypes, --images and what is read from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli.data import said
from nullspace_unlearn.cli.options import cache_folder, cache_options, gathered
from nullspace_unlearn.cli.request import RequestOptions

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.edit import Space
    from nullspace_unlearn.plans import Plan
    from nullspace_unlearn.prototypes import Visual


@dataclass(frozen=True)
class VisualOptions:
    """The options of `visual_options`, as given."""

    prototypes: str
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
        if self.images and self.prototypes != "auto":
            raise ValueError("--images are the prototypes: leave out --prototypes")
        if not self.images_too:
            return request
        if request.cells.domain:
            raise ValueError("--images-too forgets a class everywhere: leave out --domain")
        if request.method not in (None, "two_sided"):
            raise ValueError(f"--images-too is method two_sided, not {request.method}")
        return replace(request, method="two_sided")

    def reading(self, clip: Clip, plan: Plan, measured: Source | None) -> VisualOptions:
        """These options with the space settled.

        Args:
            clip: The model.
            plan: The request.
            measured: What the edit will be measured on: features do not show what lies before the
                final projection.

        Raises:
            ValueError: As `plans.space_for`.
        """
        from nullspace_unlearn.erasers import METHODS
        from nullspace_unlearn.plans import space_for

        asked = self.space
        if asked is None and measured is not None and measured.features is not None:
            held = ("embedding",) if measured.features.hidden is None else ("hidden", "embedding")
            asked = next(space for space in METHODS[plan.method].spaces if space in held)
        return replace(self, space=space_for(clip, plan, asked))

    @property
    def shows(self) -> bool:
        """Whether images, or pictures that stand for them, are shown where a method wants them."""
        return self.prototypes in ("auto", "pixels")

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

    def draw(self, plan: Plan, found: Source | None) -> Source | None:
        """The few of the images that prototypes are made of.

        Args:
            plan: The request.
            found: What `find` found.

        Raises:
            ValueError: If a cell that the request needs has no image.
        """
        from nullspace_unlearn.plans import cells_of_images
        from nullspace_unlearn.prototypes import draw

        if found is None:
            return None
        cells = cells_of_images(plan, found.classes, found.domains)
        return draw(found, *cells, shots=self.shots)

    def make(
        self, clip: Clip, plan: Plan, drawn: Source | None, batch_size: int, quiet: bool
    ) -> Visual | None:
        """The visual prototypes for a plan, or None for text alone.

        Args:
            clip: The model.
            plan: The request.
            drawn: What `draw` drew.
            batch_size: Images per forward pass.
            quiet: Whether to leave out progress bars.

        Raises:
            ValueError: If they cannot be made.
        """
        from nullspace_unlearn.plans import cells_needed, cells_of_images
        from nullspace_unlearn.prototypes import Synthesis, from_images, from_text
        from nullspace_unlearn.unlearn import synthesise_for

        space = self.space or "embedding"
        if drawn is not None:
            return from_images(
                clip,
                drawn,
                *cells_of_images(plan, drawn.classes, drawn.domains),
                shots=self.shots,
                space=space,
                batch_size=batch_size,
                quiet=quiet,
            )
        kind = self._kind(plan)
        if kind == "closed":
            if space == "mlp":
                raise ValueError("--space mlp is what only pictures show: --prototypes pixels")
            return from_text(clip, *cells_needed(plan), plan.words.cell_templates)
        if kind == "pixels":
            return synthesise_for(
                clip,
                plan,
                Synthesis(batch_size=batch_size),
                cache=cache_folder(self.cache, self.no_cache),
                space=space,
                quiet=quiet,
            )
        return None

    def _kind(self, plan: Plan) -> str:
        from nullspace_unlearn.erasers import METHODS

        if self.prototypes != "auto":
            return self.prototypes
        method = METHODS[plan.method]
        seen = method.images == "must" or self.space not in (None, "embedding")
        return "pixels" if seen or plan.forget.paradigm in method.pictures_for else "text"


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
        help="A few real images of every cell, root/<domain>/<class>/*, in place of those.",
    ),
    click.option("--shots", default=8, show_default=True, help="Of these at most so many a cell."),
    click.option(
        "--space",
        type=click.Choice(["embedding", "hidden", "mlp"]),
        help="Which feature the edit reads: the embedding, the hidden feature that enters the "
        "final projection, or what enters the last MLP's output layer (ViT), which is edited then. "
        "Absent: the deepest that the model has for neutral, else the embedding.",
    ),
    click.option(
        "--images-too",
        is_flag=True,
        help="A class everywhere: make its images harder to find by one another as well.",
    ),
    cache_options,
)
