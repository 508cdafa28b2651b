"""Where trained methods and closed forms meet: a model, few-shot draws, images to report on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _cells import deepest
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.bundled import bundled_to_learn
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.edit import Space
from nullspace_unlearn.evaluate.figures import plain_values
from nullspace_unlearn.evaluate.measure import Model, measure
from nullspace_unlearn.files import new_file
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.looks import pictures_for
from nullspace_unlearn.prototypes import (
    Pictures,
    Visual,
    class_prototypes,
    from_batches,
    synthesise,
)
from nullspace_unlearn.train.shots import Shots, from_source
from nullspace_unlearn.words import Words

SHOTS, VALIDATION = 8, 4
EACH = 25  # images a cell that are reported on, at most
CHOSEN_ON = 5  # the few-shot draw that numbers are chosen on; reported draws come before it
PACS_WORDS = {"art_painting": "painting"}


@dataclass(frozen=True, eq=False)
class World:
    """A model and images of it.

    Attributes:
        clip: The untouched model.
        words: Classes, domains and templates.
        draw: Seed -> training and validation images.
        images: `[n, 3, rows, columns]` images to report on, of no draw.
        labels: `[n]` their classes.
        domains: `[n]` their domains.
    """

    clip: Clip
    words: Words
    draw: Callable[[int], tuple[Shots, Shots]]
    images: Float[Tensor, "n 3 rows columns"]
    labels: Int[Tensor, " n"]
    domains: Int[Tensor, " n"]

    def requests(self, kind: str) -> list[Forget]:
        """Every domain; and as many classes, and cells, spread over the grid."""
        classes, domains = self.words.classes, tuple(self.words.domains)
        if kind == "domain":
            return [Forget(domains=[d]) for d in domains]
        chosen = [classes[i * len(classes) // len(domains)] for i in range(len(domains))]
        if kind == "global":
            return [Forget([c]) for c in chosen]
        others = domains[1:] + domains[:1]
        return [Forget([c], [d]) for c, d in zip(chosen, others, strict=True)]

    @cached_property
    def untouched(self) -> Tensor:
        """Embeddings of the images under the untouched model."""
        return embed(self.clip, self.images)

    @cached_property
    def text(self) -> Tensor:
        """The untouched model's classifier."""
        return self.classifier(self.clip)

    def classifier(self, clip: Clip) -> Tensor:
        """A model's zero-shot classifier."""
        return class_prototypes(clip, self.words.classes, self.words.class_templates).float()

    def measure(
        self, forget: Forget, edited: Clip, keep: Path | None = None
    ) -> dict[str, float | None]:
        """The figures of an edited or trained model under a request.

        Args:
            forget: The request.
            edited: The model.
            keep: File for what the model makes of images and names, so that a figure thought of
                later needs no new training.
        """
        z = self.untouched if edited is self.clip else embed(edited, self.images)
        text = self.classifier(edited)
        if keep is not None:
            with new_file(keep, overwrite=True) as temporary:
                save_file({"embeddings": z.contiguous(), "text": text.contiguous()}, temporary)
        return self.figures(forget, z, text)

    def figures(self, forget: Forget, embeddings: Tensor, text: Tensor) -> dict[str, float | None]:
        """The figures of what a model makes of the images and the names."""
        mask = forget.mask(self.words.classes, tuple(self.words.domains))
        models = Model(self.untouched, self.text), Model(embeddings, text)
        return plain_values(measure(*models, self.labels, self.domains, mask).figures())

    def visual(self, shots: Shots, space: Space) -> Visual:
        """The training images as visual prototypes of a closed form."""
        batches = shots.read(torch.arange(len(shots))).split(64)
        cells = (shots.labels, shots.domains, self.words.classes, tuple(self.words.domains))
        return from_batches(self.clip, batches, *cells, space=space)

    @cached_property
    def pictures(self) -> Pictures:
        """Pictures made from the model alone."""
        given = (self.clip, self.words.classes, self.words.domains, self.words.cell_templates)
        return synthesise(*given, pictures_for(deepest(self.clip)), cache=None, quiet=True)


def bundled(each: int = EACH, chosen: bool = False) -> World:
    """nsu-mini and its pictures.

    Args:
        each: Pictures a cell to report on.
        chosen: Whether to report on the pictures that numbers are chosen on instead.
    """
    clip = nsu.load("nsu-mini")
    assert clip.words is not None
    classes, domains = clip.words.classes, tuple(clip.words.domains)
    first = 20_000_000 if chosen else 10_000_000
    cells = list(product(range(len(classes)), range(len(domains)), range(first, first + each)))
    images = torch.stack(
        [clip.preprocess(mini.render(classes[c], domains[d], seed)) for c, d, seed in cells]
    )
    index = torch.tensor(cells)

    def draw(seed: int) -> tuple[Shots, Shots]:
        given, chosen = bundled_to_learn(SHOTS, VALIDATION, seed, classes, domains)
        return from_source(clip, given), from_source(clip, chosen)

    return World(clip, clip.words, draw, images, index[:, 0], index[:, 1])


def pacs(model: str, shared: Path, each: int = EACH, chosen: bool = False) -> World:
    """PACS under one of the two models that were trained on it.

    Args:
        model: Its name.
        shared: The folder that holds data/ and models/.
        each: Images a cell to report on, at most.
        chosen: Whether to report on training images that the draw for choosing numbers leaves over,
            in place of test images.
    """
    folder, root = shared / "models" / model, shared / "data" / "pacs"
    clip = nsu.load(folder)
    train = read_folder(root, PACS_WORDS, listing=folder / "train.txt")
    if chosen:
        reported = train.split(SHOTS, VALIDATION, CHOSEN_ON).rest.few(each)
    else:
        reported = read_folder(root, PACS_WORDS, listing=folder / "test.txt").few(each)
    held = from_source(clip, reported)
    domains = train.words
    words = replace(clip.words or Words(), classes=train.classes, domains=domains)

    def draw(seed: int) -> tuple[Shots, Shots]:
        parts = train.split(SHOTS, VALIDATION, seed)
        return from_source(clip, parts.given), from_source(clip, parts.validation)

    images = held.read(torch.arange(len(held)))
    return World(clip, words, draw, images, held.labels, held.domains)


def embed(clip: Clip, images: Tensor) -> Tensor:
    """Embeddings of preprocessed images."""
    return torch.cat([clip.encode_image(batch).cpu() for batch in images.split(64)])


def plain(value: Any) -> Any:
    """A number of a method as a command line would say it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
