"""What every trained method is given: the model, the request, the images; and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.evaluate.figures import plain_values
from nullspace_unlearn.evaluate.measure import Model, measure
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import class_prototypes
from nullspace_unlearn.train.shots import Shots
from nullspace_unlearn.train.weights import Lora, Towers, Weights, encode_with, tower_keys
from nullspace_unlearn.words import Words


@dataclass(frozen=True, eq=False)
class Minibatch:
    """Images of one step, on the model's device.

    Attributes:
        images: `[b, 3, rows, columns]` float32, preprocessed.
        labels: `[b]` classes.
        domains: `[b]` domains.
        forgotten: `[b]` whether each is to be forgotten.
        generator: Source of this step's randomness, on the CPU.
    """

    images: Float[Tensor, "b 3 rows columns"]
    labels: Int[Tensor, " b"]
    domains: Int[Tensor, " b"]
    forgotten: Bool[Tensor, " b"]
    generator: torch.Generator


@dataclass(frozen=True, eq=False)
class Task:
    """A model, a request, and the images to learn it from.

    Attributes:
        clip: The untouched model, in float32.
        forget: The request, its domains by key.
        words: Classes and domains (those of the images, in their order) and templates.
        shots: Training images.
        validation: Images for early stopping, none of them a training image; may be empty.
        seed: Fixes initial weights, the order of images, and noise.

    Raises:
        ValueError: If the model is not in float32, the request names what `words` lacks, an image
            is of no cell, no training image is of a cell to be forgotten, or the validation images
            are all of such cells or all of others.
    """

    clip: Clip
    forget: Forget
    words: Words
    shots: Shots
    validation: Shots
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clip.adapter is not None:
            raise ValueError("the model has visual prompts already: train its base model")
        dtypes = {p.dtype for p in self.clip.model.parameters()} - {torch.float32}
        if dtypes:
            raise ValueError(
                f"training takes a model in float32, and this one holds {dtypes.pop()}"
            )
        for name, some in (("training", self.shots), ("validation", self.validation)):
            for what, index, size in zip(
                ("class", "domain"), (some.labels, some.domains), self.mask.shape, strict=True
            ):
                if len(index) and not 0 <= index.min() <= index.max() < size:
                    raise ValueError(
                        f"{name} images must be of {what} 0 to {size - 1}, got {int(index.min())} "
                        f"to {int(index.max())}"
                    )
        if not self.forgotten(self.shots).any():
            raise ValueError("no training image is of a cell to be forgotten")
        judged = self.forgotten(self.validation)
        if len(judged) and (judged.all() or not judged.any()):
            raise ValueError(
                "validation images must be of cells to be forgotten and of others, and all "
                f"{len(judged)} are {'to be forgotten' if judged.all() else 'to stay'}"
            )

    @cached_property
    def mask(self) -> Bool[Tensor, "classes domains"]:
        """True where a cell is forgotten."""
        return self.forget.mask(self.words.classes, tuple(self.words.domains))

    @cached_property
    def prototypes(self) -> Float[Tensor, "classes dim"]:
        """The untouched model's zero-shot classifier: unit rows, float32, on its device."""
        made = class_prototypes(self.clip, self.words.classes, self.words.class_templates)
        return made.to(self.clip.device, torch.float32)

    @cached_property
    def tokens(self) -> Int[Tensor, "prompts context"]:
        """The class prompts, class by class: `classes · templates` rows, on the model's device."""
        prompts = [
            template.format(**{"class": name})
            for name in self.words.classes
            for template in self.words.class_templates
        ]
        return self.clip.tokenizer(prompts).to(self.clip.device)

    @cached_property
    def judged_by(self) -> Model:
        """The untouched model on the validation images."""
        return Model(_validation(self, self.clip.encode_image, 32), self.prototypes.cpu())

    def forgotten(self, some: Shots | Minibatch) -> Bool[Tensor, " n"]:
        """Which images are of cells to be forgotten."""
        return self.mask.to(some.labels.device)[some.labels, some.domains]

    def text_with(self, new: dict[str, Tensor]) -> Float[Tensor, "classes dim"]:
        """The classifier with some parameters of the text tower replaced, with gradients.

        Args:
            new: Parameters by name; where none is the text tower's, the classifier is the untouched
                one.

        Returns:
            `[classes, dim]` unit rows: each prompt normalised, averaged over templates, normalised.
        """
        changed = {key: value for key, value in new.items() if not key.startswith("visual.")}
        if not changed:
            return self.prototypes
        prompts = F.normalize(encode_with(self.clip.model, changed, self.tokens, "text"), dim=-1)
        by_class = prompts.reshape(len(self.words.classes), -1, prompts.shape[-1])
        return F.normalize(by_class.mean(1), dim=-1)


_PRECISION: ContextVar[tuple[str, torch.dtype] | None] = ContextVar("precision", default=None)


@contextmanager
def forward_in(precision: tuple[str, torch.dtype] | None) -> Iterator[None]:
    """Let the forward passes of students compute in another dtype, where that is safe.

    Args:
        precision: Kind of device and dtype, for `torch.autocast`; None: as the weights are.
    """
    token = _PRECISION.set(precision)
    try:
        yield
    finally:
        _PRECISION.reset(token)


def _in_precision(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Tensor) -> Tensor:
        precision = _PRECISION.get()
        if precision is None:
            return forward(*inputs)
        with torch.autocast(*precision):
            return forward(*inputs).float()

    return run


@dataclass(frozen=True, eq=False)
class Student:
    """A model in training.

    Attributes:
        module: Its trained parameters, those that require gradients.
        image: Preprocessed images `[b, 3, rows, columns]` -> embeddings `[b, dim]`, float32, not
            normalised, with gradients to the module.
        text: The classifier `[classes, dim]`, unit rows, with gradients where the text tower
            trains.
        result: The model with what has been learned so far, given how it came to be.

    `image` and `text` compute in the precision that `forward_in` says, and give float32: a loss is
    computed in that whatever the towers do.
    """

    module: nn.Module
    image: Callable[[Float[Tensor, "b 3 rows columns"]], Float[Tensor, "b dim"]]
    text: Callable[[], Float[Tensor, "classes dim"]]
    result: Callable[[dict[str, Any]], Clip]

    def __post_init__(self) -> None:
        for name in ("image", "text"):
            object.__setattr__(self, name, _in_precision(getattr(self, name)))

    def logits(
        self, task: Task, images: Float[Tensor, "b 3 rows columns"]
    ) -> Float[Tensor, "b classes"]:
        """Scaled cosines of images with every class, as the zero-shot classifier has them.

        Args:
            task: The task, for the model's logit scale.
            images: `[b, 3, rows, columns]`.
        """
        return task.clip.logit_scale * F.normalize(self.image(images), dim=-1) @ self.text().mT


def with_weights(task: Task, module: Weights | Lora) -> Student:
    """A student that differs from the model in some parameters.

    Args:
        task: The task.
        module: Gives these parameters by name.
    """
    model = task.clip.model

    def result(provenance: dict[str, Any]) -> Clip:
        with torch.no_grad():
            return task.clip.with_parameters(module(), provenance)

    return Student(
        module=module,
        image=lambda images: encode_with(model, module(), images),
        text=lambda: task.text_with(module()),
        result=result,
    )


def with_towers(task: Task, towers: Towers) -> Student:
    """A student all of whose parameters train, of one tower or of both.

    Args:
        task: The task.
        towers: Which towers.
    """
    model = task.clip.model
    return with_weights(task, Weights(model, tower_keys(model, towers)))


def validate(task: Task, student: Student, batch_size: int = 32) -> dict[str, float | None]:
    """The figures of a student on the validation images, beside the untouched model.

    Args:
        task: The task.
        student: The student.
        batch_size: Images per forward pass.

    Returns:
        Every figure of `figures.FIGURES`.
    """
    with torch.no_grad():
        changed = Model(_validation(task, student.image, batch_size), student.text().cpu())
    some = task.validation
    measured = measure(task.judged_by, changed, some.labels, some.domains, task.mask)
    return plain_values(measured.figures())


def _validation(
    task: Task, image: Callable[[Tensor], Tensor], batch_size: int
) -> Float[Tensor, "n dim"]:
    """Embeddings of the validation images, on the CPU."""
    some = task.validation
    batches = torch.arange(len(some)).split(batch_size)
    return torch.cat([image(some.read(chosen).to(task.clip.device)).cpu() for chosen in batches])
