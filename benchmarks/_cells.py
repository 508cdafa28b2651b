"""Grids of class x domain: a model, images to report on, prototypes that saw none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from _tables import markdown
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn import plans
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.folding import Seen
from nullspace_unlearn.edit import DEEPER, Edit, Space
from nullspace_unlearn.evaluate.compare import classifier
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.looks import pictures_for
from nullspace_unlearn.plans import Plan
from nullspace_unlearn.prototypes import (
    Visual,
    from_pictures,
    from_text,
    synthesise,
)
from nullspace_unlearn.prototypes.nearness import Nearness, nearness
from nullspace_unlearn.words import Words


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, images to measure its edits on, and prototypes that saw none of these images.

    Attributes:
        clip: The untouched model.
        features: Its embeddings and hidden features of the images.
        inner: What the layer before the projection that it has makes of them (`read_inner`); None
            where it has none.
        domains: Domain -> the word prompts use for it.
        real: A few real images of each cell, by what tables call them.
    """

    clip: Clip
    features: Features
    inner: Seen | None
    domains: Mapping[str, str]
    real: Mapping[str, Visual]

    @property
    def words(self) -> Words:
        """The templates in use."""
        return self.clip.words or Words()

    @cached_property
    def classes(self) -> Float[Tensor, "classes dim"]:
        """The zero-shot classifier."""
        return classifier(self.clip, self.features, self.words.class_templates)

    def plan(self, forget: Forget, method: str | None = None) -> Plan:
        """What `nsu erase` would do."""
        return plans.plan(
            self.clip,
            forget,
            classes=self.features.class_names,
            domains=self.domains,
            method=method,
        )

    def embeddings(self, edit: Edit | None = None) -> Float[Tensor, "n dim"]:
        """The images' embeddings, after an edit if one is given."""
        if edit is None:
            return self.features.embeddings
        if edit.space in DEEPER:
            assert self.inner is not None
            return self.clip.inner(edit.space).apply(edit, self.inner).float()
        return edit.apply(self.features.embeddings, self.features.hidden)

    @cached_property
    def made(self) -> dict[str, Visual]:
        """Prototypes made without any image."""
        given = (self.clip, self.features.class_names, self.domains, self.words.cell_templates)
        space = deepest(self.clip)
        pixels = synthesise(*given, pictures_for(space))
        return {
            "closed form": from_text(*given),
            "pixels": from_pictures(self.clip, pixels, space=space),
        }


def requests(classes: Sequence[str], domains: Sequence[str]) -> dict[str, list[Forget]]:
    """Every request of each kind: one cell, one class everywhere, one whole domain."""
    return {
        "cell": [Forget([c], [d]) for c in classes for d in domains],
        "global": [Forget([c]) for c in classes],
        "domain": [Forget(domains=[d]) for d in domains],
    }


def near(bench: Bench) -> dict[str, Nearness]:
    """How near each source comes to the images reported on."""
    some = {**bench.made, **bench.real}
    return {name: nearness(v.features, bench.features) for name, v in some.items()}


def near_table(found: Mapping[str, Nearness]) -> str:
    """Nearness as Markdown."""
    keys = ("cosine", "cosine_real_mean", "rank", "domain_transfer", "class_transfer")
    labels = ("cosine", "about the real mean", "rank", "probe, domain", "probe, class")
    header = ["prototypes", *(f"z: {label}" for label in labels), *(f"h: {x}" for x in labels)]
    lines = []
    for name, one in found.items():
        values = [getattr(space, key) for space in (one.embedding, one.hidden) for key in keys]
        lines.append([name, *(f"{value:.3f}" for value in values)])
    return markdown(header, lines)


def deepest(clip: Clip) -> Space:
    """What an edit can read of a model, as deep as it goes."""
    return next((space for space in DEEPER if space in clip.spaces), "embedding")


def read_inner(clip: Clip, batches: Iterable[Tensor]) -> Seen | None:
    """What the layer of the deepest space makes of images; None where there is none."""
    space = deepest(clip)
    if space not in DEEPER:
        return None
    parts = [clip.read_inner(space, batch) for batch in batches]
    names = [field.name for field in fields(parts[0])]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return type(parts[0])(**joined)
