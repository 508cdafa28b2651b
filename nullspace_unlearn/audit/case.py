"""`Case`: what an audit is of, as every attack sees it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.audit.question import MODELS, Need
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.evaluate.compare import EVERYWHERE, Comparison, Lists, compared
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import prompt_features

_SCALE = 100.0  # CLIP's own, at its upper end


@dataclass(frozen=True, eq=False)
class View:
    """One model on the images of the case.

    Attributes:
        features: The images under it; hidden features too where the model has such.
        text: `[names, dim]` float32, its zero-shot classifier over the names of the case.
        clip: The model; None where only features are at hand.
    """

    features: Features
    text: Float[Tensor, "names dim"]
    clip: Clip | None = None

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax: the model's own, else CLIP's."""
        return _SCALE if self.clip is None else self.clip.logit_scale

    @property
    def embeddings(self) -> Float[Tensor, "n dim"]:
        """The images' embeddings, as the model gives them."""
        return self.features.embeddings

    def prompts(
        self, names: Sequence[str], templates: Sequence[str]
    ) -> Float[Tensor, "names templates dim"]:
        """Unit features of prompts under this model's text tower, on the CPU.

        Args:
            names: Names.
            templates: Templates holding `{class}`.

        Raises:
            ValueError: If there is no model.
        """
        if self.clip is None:
            raise ValueError("prompts need a model, and only features are at hand")
        return prompt_features(self.clip, names, templates).float()


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """Another data set, of classes that nobody asked to forget.

    Attributes:
        name: What reports call it.
        labels: `[n]` classes of its images.
        views: Every model on it, its classifier being over the data set's own classes; by what
            `Finding.values` calls the model.
    """

    name: str
    labels: Int[Tensor, " n"]
    views: Mapping[str, View]


@dataclass(frozen=True, eq=False)
class Case:
    """An edited model, the original, their controls, and images to ask them about.

    Attributes:
        mask: `[classes, domains]` True where a cell was to be forgotten.
        requests: What was to be forgotten, first to last, as the edited model's history says.
        names: What images choose from: the classes of the data, then further names that stay.
        templates: Class templates of the classifiers.
        original: The untouched model.
        edited: The model that is audited.
        random: The original with a random change of the same ranks and sizes at the same places;
            None where none can be made.
        retrained: A model that never saw what was to be forgotten, where there is one.
        source: The images, a row of every view's features each; None where only features are at
            hand.
        elsewhere: Other data sets.
        quick: Whether minutes are wanted, not hours.
        draws: Samples of the bootstrap.
        seed: Of everything that is drawn.
        batch_size: Images of a forward pass.
        workers: Threads that read images ahead.
    """

    mask: Bool[Tensor, "classes domains"]
    requests: tuple[Forget, ...]
    names: tuple[str, ...]
    templates: tuple[str, ...]
    original: View
    edited: View
    random: View | None = None
    retrained: View | None = None
    source: Source | None = None
    elsewhere: tuple[Elsewhere, ...] = ()
    quick: bool = False
    draws: int = 200
    seed: int = 0
    batch_size: int = 64
    workers: int = 2

    @property
    def has(self) -> frozenset[Need]:
        """What is at hand, in the words of `Question.needs`."""
        found: set[Need] = {"features"}
        if self.original.features.hidden is not None and self.edited.features.hidden is not None:
            found.add("hidden")
        if self.source is not None and self.source.features is None:
            found.add("images")
        if self.original.clip is not None and self.edited.clip is not None:
            found |= {"models", "names"}
        return frozenset(found)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the data."""
        return self.original.features.class_names

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains of the data; `EVERYWHERE` where it names none."""
        return self.original.features.domain_names or EVERYWHERE

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The images' classes."""
        return self.original.features.labels

    @cached_property
    def domains(self) -> Int[Tensor, " n"]:
        """The images' domains; 0 where the data name none."""
        given = self.original.features.domains
        return torch.zeros_like(self.labels) if given is None else given

    @cached_property
    def gone(self) -> Bool[Tensor, " n"]:
        """Which images are of a forgotten cell."""
        return self.mask[self.labels, self.domains]

    @cached_property
    def forgotten(self) -> tuple[str, ...]:
        """Names of the classes of which something was to be forgotten."""
        rows = self.mask.any(1).nonzero()[:, 0].tolist()
        return tuple(self.class_names[c] for c in rows)

    @property
    def lists(self) -> Lists:
        """The names that images choose from, as `evaluate` takes them."""
        return Lists(self.names)

    def views(self) -> Iterator[tuple[str, View]]:
        """Every model there is and what `Finding.values` calls it, the edited one first."""
        for name in MODELS:
            view = getattr(self, name)
            if view is not None:
                yield name, view

    def generator(self, *purpose: str) -> torch.Generator:
        """Random numbers for one purpose, whatever else is drawn.

        Args:
            *purpose: What for, such as the question's name.
        """
        # A checksum of the words, unlike hash(), is the same in every process.
        return torch.Generator().manual_seed(self.seed + zlib.crc32("/".join(purpose).encode()))

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Each model beside the original one, by what `Finding.values` calls it."""
        return {role: self.against(view) for role, view in self.views()}

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of evaluate's figures of the edited model; none without draws."""
        return self.comparisons["edited"].measured.intervals(self.draws) if self.draws else {}

    def subset(self, chosen: Int[Tensor, " k"]) -> Case:
        """The case with some of the images.

        Args:
            chosen: `[k]` which, ascending.
        """
        views: dict[str, Any] = {
            name: replace(view, features=view.features.subset(chosen))
            for name, view in self.views()
        }
        source = None if self.source is None else self.source.subset(chosen)
        return replace(self, source=source, **views)

    def against(
        self, view: View, mask: Bool[Tensor, "classes domains"] | None = None
    ) -> Comparison:
        """A model beside the original one, by evaluate's yardstick.

        Args:
            view: The model.
            mask: What counts as forgotten; all of the case's if None.
        """
        before = self.original
        mask = self.mask if mask is None else mask
        pair = (before.embeddings, before.text), (view.embeddings, view.text)
        return compared(before.features, mask, *pair, self.lists)
