"""Plain baselines: gradient ascent, memorise and forget, and fine-tuning on what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.train.losses import classify, confuse
from nullspace_unlearn.train.method import Stage, Stages
from nullspace_unlearn.train.task import Minibatch, Task, with_towers
from nullspace_unlearn.train.weights import Towers


@dataclass(frozen=True)
class Ascent:
    """Gradient ascent: raise the cross-entropy of what is to be forgotten, and nothing else.

    The oldest baseline (Golatkar et al., 2020; Thudi et al., 2022). Unbounded, so the learning rate
    is small and the epochs are few.

    Attributes:
        epochs: Passes over the forgotten images.
        lr: Learning rate of Adam.
        batch_size: Images a step.
        towers: What trains: "visual", "text" or "both".
    """

    epochs: int = 6
    lr: float = 1e-4
    batch_size: int = 32
    towers: Towers = "visual"
    name: ClassVar[str] = "ascent"
    paper: ClassVar[str] = "arXiv 1911.04933"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global", "cell", "domain")
    sees_images: ClassVar[bool] = True

    def stages(self, task: Task) -> Stages:
        """One stage on the forgotten images alone."""
        student = with_towers(task, self.towers)

        def loss(batch: Minibatch) -> Mapping[str, Tensor]:
            return {"ascent": -classify(student.logits(task, batch.images), batch.labels)}

        gone = task.forgotten(task.shots).nonzero()[:, 0]
        yield Stage(
            name="ascend",
            student=student,
            loss=loss,
            optimizer=lambda trained: torch.optim.Adam(trained, lr=self.lr),
            epochs=self.epochs,
            batch_size=self.batch_size,
            shots=task.shots.subset(gone),
        )
        return student


@dataclass(frozen=True)
class MemoriseForget:
    """Memorise and forget: the two losses every method starts from, on the weights.

    `L_mem` is the cross-entropy of what stays, `L_for` the cross-entropy of the rest with the
    uniform distribution (ADU's baseline losses, arXiv 2510.08132, equations 1 and 2, without
    prompts).

    Attributes:
        epochs: Passes over the images.
        lr: Learning rate of Adam.
        batch_size: Images a step, half of them to be forgotten.
        forget: Weight of the forgetting term; 0 leaves fine-tuning.
        towers: What trains: "visual", "text" or "both".
    """

    epochs: int = 20
    lr: float = 1e-4
    batch_size: int = 32
    forget: float = 1.0
    towers: Towers = "visual"
    name: ClassVar[str] = "memorise_forget"
    paper: ClassVar[str] = "arXiv 2510.08132, baseline"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global", "cell", "domain")
    sees_images: ClassVar[bool] = True

    def stages(self, task: Task) -> Stages:
        """One stage on all images."""
        student = with_towers(task, self.towers)

        def loss(batch: Minibatch) -> Mapping[str, Tensor]:
            logits, gone = student.logits(task, batch.images), batch.forgotten
            return {
                "mem": classify(logits[~gone], batch.labels[~gone]),
                "for": self.forget * confuse(logits[gone]),
            }

        yield Stage(
            name="train",
            student=student,
            loss=loss,
            optimizer=lambda trained: torch.optim.Adam(trained, lr=self.lr),
            epochs=self.epochs,
            batch_size=self.batch_size,
            balanced=True,
        )
        return student


@dataclass(frozen=True)
class Finetune:
    """Fine-tuning on what stays, in the hope that the rest is forgotten on the way.

    Attributes:
        epochs: Passes over the images that stay.
        lr: Learning rate of Adam.
        batch_size: Images a step.
        towers: What trains: "visual", "text" or "both".
    """

    epochs: int = 20
    lr: float = 3e-5
    batch_size: int = 32
    towers: Towers = "visual"
    name: ClassVar[str] = "finetune"
    paper: ClassVar[str] = "arXiv 1911.04933"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global", "cell", "domain")
    sees_images: ClassVar[bool] = True

    def stages(self, task: Task) -> Stages:
        """One stage on the kept images alone."""
        student = with_towers(task, self.towers)

        def loss(batch: Minibatch) -> Mapping[str, Tensor]:
            return {"mem": classify(student.logits(task, batch.images), batch.labels)}

        kept = (~task.forgotten(task.shots)).nonzero()[:, 0]
        yield Stage(
            name="finetune",
            student=student,
            loss=loss,
            optimizer=lambda trained: torch.optim.Adam(trained, lr=self.lr),
            epochs=self.epochs,
            batch_size=self.batch_size,
            shots=task.shots.subset(kept),
        )
        return student
