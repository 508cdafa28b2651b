"""`Looks`: how the cells of a plan look to a model, by images, prompts or synthesised pictures."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.edit import DEEPER, Space
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.plans import Plan, cells_needed, cells_of_images, space_for
from nullspace_unlearn.prototypes import (
    Synthesis,
    Visual,
    cell_prototypes,
    draw,
    from_images,
    from_pictures,
    from_text,
    synthesise,
)
from nullspace_unlearn.prototypes.text import taken_for

Prototypes = Literal["auto", "text", "closed", "pixels"]

_EACH: dict[Space, int] = {"value": 8}


@dataclass(frozen=True, eq=False)
class Looks:
    """What visual prototypes of a plan's cells are made of, and what is read of them.

    Attributes:
        prototypes: Prompts alone ("text"), prompts moved to where images lie ("closed"), or
            pictures synthesised from the model ("pixels"). "auto": pixels where the method or the
            space wants them for such a request, else text.
        images: Real images, of which a few are taken in place of those; with "pixels" the
            pictures stand beside them.
        shots: Of these at most so many a cell.
        space: What an edit will read; absent: the embedding, until `reading` settles it.
        batch_size: Images per forward pass.
        cache: Where synthesised pictures are kept; absent: nowhere.
        quiet: Whether to leave out progress bars.
    """

    prototypes: Prototypes = "auto"
    images: Source | None = None
    shots: int = 8
    space: Space | None = None
    batch_size: int = 64
    cache: Path | None = None
    quiet: bool = False

    @property
    def shows(self) -> bool:
        """Whether images, or pictures that stand for them, are shown where a method wants them."""
        return self.prototypes in ("auto", "pixels")

    def reading(self, clip: Clip, plan: Plan, measured: Source | None = None) -> Looks:
        """The same with the space settled.

        Args:
            clip: The model.
            plan: The request.
            measured: What the edit will be measured on: features do not show what lies before the
                final projection.

        Raises:
            ValueError: As `plans.space_for`.
        """
        asked = self.space
        if asked is None and measured is not None and measured.features is not None:
            held = ("embedding",) if measured.features.hidden is None else ("hidden", "embedding")
            asked = next(space for space in METHODS[plan.method].spaces if space in held)
        return replace(self, space=space_for(clip, plan, asked))

    def drawn(self, plan: Plan) -> Source | None:
        """The few of the images that prototypes are made of.

        Args:
            plan: The request.

        Raises:
            ValueError: If a cell that the request needs has no image.
        """
        if self.images is None:
            return None
        cells = cells_of_images(plan, self.images.classes, self.images.domains)
        return draw(self.images, *cells, shots=self.shots)

    def make(self, clip: Clip, plan: Plan, drawn: Source | None = None) -> Visual | None:
        """The visual prototypes for a plan, or None for text alone.

        Args:
            clip: The model.
            plan: The request.
            drawn: What `drawn` gave.

        Raises:
            ValueError: If they cannot be made.
        """
        space = self.space or "embedding"
        if drawn is not None:
            beside = self._pictures(clip, plan, space) if self._pictures_beside(plan) else None
            visual = from_images(
                clip,
                drawn,
                *cells_of_images(plan, drawn.classes, drawn.domains),
                shots=self.shots,
                space=space,
                batch_size=self.batch_size,
                quiet=self.quiet,
            )
            _warn_of_domains(clip, plan, visual)
            return replace(visual, beside=beside)
        kind = self._kind(plan)
        if kind == "closed":
            if space in DEEPER:
                raise ValueError(f"--space {space} is what only pictures show: --prototypes pixels")
            return from_text(clip, *cells_needed(plan), plan.words.cell_templates)
        return self._pictures(clip, plan, space) if kind == "pixels" else None

    def _pictures(self, clip: Clip, plan: Plan, space: Space) -> Visual:
        synthesis = replace(pictures_for(space), batch_size=self.batch_size)
        return synthesise_for(
            clip, plan, synthesis, cache=self.cache, space=space, quiet=self.quiet
        )

    def _pictures_beside(self, plan: Plan) -> bool:
        if self.prototypes != "pixels":
            return False
        if not METHODS[plan.method].beside:
            able = [name for name, method in METHODS.items() if method.beside]
            raise ValueError(
                f"method {plan.method!r} reads images or pictures, not both; "
                f"those that do: {', '.join(able)}"
            )
        return True

    def _kind(self, plan: Plan) -> Prototypes:
        if self.prototypes != "auto":
            return self.prototypes
        method = METHODS[plan.method]
        seen = method.images == "must" or self.space not in (None, "embedding")
        return "pixels" if seen or plan.forget.paradigm in method.pictures_for else "text"


def _warn_of_domains(clip: Clip, plan: Plan, visual: Visual) -> None:
    """Warn of forgotten domains whose images the model takes for another's."""
    f = visual.features
    if not plan.forget.domains or f.domains is None or len(f.domain_names) < 2:
        return
    words = [plan.words.domains[key] for key in f.domain_names]
    cells = cell_prototypes(clip, f.class_names, words, plan.words.cell_templates)
    for i, other in taken_for(f.embeddings, f.labels, f.domains, cells):
        if f.domain_names[i] in plan.forget.domains:
            warnings.warn(
                f"the model takes most images of the domain {f.domain_names[i]!r} for "
                f"{words[other]!r} by its prompts: is the folder right? What it shows is forgotten",
                stacklevel=3,
            )


def pictures_for(space: Space) -> Synthesis:
    """The numbers of the pictures that an edit of a space is made from.

    What enters a value projection is many times as wide as other features, and takes twice as many
    pictures to tell what is shown from what it is shown on.

    Args:
        space: What the edit will read.
    """
    return Synthesis(each=_EACH.get(space, Synthesis.each))


def synthesise_for(
    clip: Clip,
    made: Plan,
    synthesis: Synthesis | None = None,
    *,
    cache: str | Path | None = None,
    space: Space | None = None,
    quiet: bool = False,
) -> Visual:
    """Visual prototypes of all cells that a request needs, made from the model alone.

    Args:
        clip: The model.
        made: The plan.
        synthesis: The numbers of the synthesis; absent: those of `pictures_for`.
        cache: As for `prototypes.synthesise`.
        space: What an edit will read of them, as for `erase`; "mlp" and "value" look at every
            picture once more.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        The prototypes. A warning names cells that were not reached, if they are kept ones.

    Raises:
        ValueError: As `prototypes.synthesise`; and if no picture of some forgotten cell is one to
            the model, since an edit made from it would forget something else.
    """
    classes, domains = cells_needed(made)
    space = space_for(clip, made, space)
    synthesis = synthesis or pictures_for(space)
    found = synthesise(
        clip, classes, domains, made.words.cell_templates, synthesis, cache=cache, quiet=quiet
    )
    mask = made.forget.mask(classes, tuple(domains))
    reached = found.reached.reshape(*mask.shape, -1).any(-1)
    missed = (mask & ~reached).nonzero().tolist()
    keys = tuple(domains)
    if missed:
        names = ", ".join(f"{classes[c]}/{keys[d]}" for c, d in missed[:5])
        raise ValueError(
            f"the model takes no synthesised picture for its own cell in {len(missed)} of the "
            f"forgotten cells: {names}; give real images, or make do with text prototypes"
        )
    if (line := found.warning()) is not None:
        warnings.warn(line, stacklevel=2)
    return from_pictures(clip, found, space=space)
