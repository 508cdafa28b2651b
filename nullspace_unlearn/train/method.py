"""What a trained method is: its numbers, and the stages that the loop runs for it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.train.shots import Shots
from nullspace_unlearn.train.task import Minibatch, Student, Task


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a method that the loop runs.

    Attributes:
        name: What the log calls it.
        student: What trains.
        loss: The terms of the loss on a batch, by name; their sum is minimised.
        optimizer: Parameters -> their optimiser, at its largest learning rate.
        epochs: Passes over the images.
        batch_size: Images a step.
        shots: The images; None means the task's.
        steps: Steps an epoch, each on an empty batch, of a stage that looks at no image; 0 where
            the images say.
        balanced: Whether half of each batch is to be forgotten and half to stay (all of a kind
            where there are fewer than half a batch); an epoch then ends when the more numerous have
            all been seen, and the others come again.
        augmented: Whether images are mirrored and cropped at random.
        cosine: Whether the learning rate falls to 0 along a cosine over the stage.
        scored: Whether the stage ends with the epoch of best balance on the validation images, not
            its last.
        after_backward: Called between gradients and step.
        after_step: Called after each step.
        stop: Asked after each epoch whether the stage has reached its end.
    """

    name: str
    student: Student
    loss: Callable[[Minibatch], Mapping[str, Tensor]]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    epochs: int
    batch_size: int = 32
    shots: Shots | None = None
    steps: int = 0
    balanced: bool = False
    augmented: bool = False
    cosine: bool = True
    scored: bool = True
    after_backward: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None
    stop: Callable[[], bool] | None = None


Stages = Generator[Stage, None, Student]


@runtime_checkable
class TrainedMethod(Protocol):
    """A trained method: a frozen dataclass of its numbers, which knows the stages it goes through.

    Stages are made one after the other: the generator goes on when the loop has run the stage it
    yielded, and returns the student that is the result. What it computes in between must follow
    from the task and the stages before alone, since a resumed run computes it again: that holds for
    torch's own randomness, which begins anew with the seed of the task before each stage, and a
    loss draws from its batch's generator. All that lives from step to step must be a parameter of
    the student's module that requires gradients, or the optimiser's, to be kept with the run.

    Attributes:
        name: What the command line calls it.
        paper: Where it comes from.
        paradigms: The kinds of request it takes.
        sees_images: Whether it learns from the task's images, or chooses anything by them.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    paradigms: ClassVar[tuple[Paradigm, ...]]
    sees_images: ClassVar[bool]

    @property
    def epochs(self) -> int:
        """Passes over the images, of its longest stage."""

    @property
    def lr(self) -> float:
        """Its largest learning rate."""

    @property
    def batch_size(self) -> int:
        """Images a step."""

    def stages(self, task: Task) -> Stages:
        """Go through the stages."""
