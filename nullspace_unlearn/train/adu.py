"""ADU: forgetting whole domains with visual prompts that pull domains apart first."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullspace_unlearn.clip import Clip, attach, encode, new_prompts, with_prompts
from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.train.losses import classify, confuse, mmd2
from nullspace_unlearn.train.method import Stage, Stages
from nullspace_unlearn.train.task import Minibatch, Student, Task


@dataclass(frozen=True)
class Adu:
    """Approximate domain unlearning (arXiv 2510.08132).

    The model is frozen; deep visual prompts train, made from the image by a generator (InstaPG),
    under

        memorise · L_mem + forget · L_for + gamma · L_CE - lam · MMD²

    with `L_mem` the cross-entropy of the images that stay, `L_for` the cross-entropy of the others
    with the uniform distribution, `L_CE` that of a linear classifier of domains, which trains along
    and is then thrown away, and MMD² the mean over pairs of domains in the batch. The text side is
    fixed. The paper forgets whole domains; the losses ask no more than which images are to be
    forgotten, so the other requests are taken too.

    Chosen, where the paper is silent: the kernel of MMD² (see `losses.mmd2`), on unit embeddings;
    what the domain classifier sees, unit embeddings times the square root of the model's logit
    scale (about the length a CLIP embedding has: with unit ones the classifier learns too slowly to
    pull domains apart in a few hundred steps, with the whole logit scale it overshoots); momentum
    0.9; a cosine schedule; mirrored and cropped images.

    Attributes:
        epochs: Passes over the images.
        lr: Learning rate of SGD.
        batch_size: Images a step.
        tokens: Prompts a block.
        depth: Blocks that get prompts; 0 for three quarters of them (9 of 12 in the paper).
        generator: Whether prompts depend on the image; False is the ablation without InstaPG.
        gamma: Weight of the domain classifier; 0 leaves it out.
        lam: Weight of the discrepancy of domains; 0 leaves it out.
        memorise: Weight of the term of the images that stay.
        forget: Weight of the term of the images to be forgotten.
        augmented: Whether images are mirrored and cropped at random.
    """

    epochs: int = 50
    lr: float = 0.0025
    batch_size: int = 32
    tokens: int = 8
    depth: int = 0
    generator: bool = True
    gamma: float = 30.0
    lam: float = 10.0
    memorise: float = 1.0
    forget: float = 1.0
    augmented: bool = True
    name: ClassVar[str] = "adu"
    paper: ClassVar[str] = "arXiv 2510.08132"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global", "cell", "domain")
    sees_images: ClassVar[bool] = True
    adapter: ClassVar[bool] = True

    def stages(self, task: Task) -> Stages:
        """One stage on all images."""
        clip = task.clip
        prompts = new_prompts(clip.model, self.tokens, self.depth, self.generator)
        classifier = nn.Linear(clip.dim, task.mask.shape[1]).to(clip.device)
        prompted = with_prompts(clip.model, prompts)

        def result(provenance: dict[str, Any]) -> Clip:
            return attach(clip, copy.deepcopy(prompts), provenance)

        student = Student(
            module=nn.ModuleDict({"prompts": prompts, "classifier": classifier}),
            image=lambda images: encode(prompted, images).float(),
            text=lambda: task.prototypes,
            result=result,
        )

        def loss(batch: Minibatch) -> Mapping[str, Tensor]:
            features = F.normalize(student.image(batch.images), dim=-1)
            logits = clip.logit_scale * features @ task.prototypes.mT
            gone = batch.forgotten
            terms = {
                "mem": self.memorise * classify(logits[~gone], batch.labels[~gone]),
                "for": self.forget * confuse(logits[gone]),
            }
            if self.gamma:
                named = classifier(math.sqrt(clip.logit_scale) * features)
                terms["domain"] = self.gamma * classify(named, batch.domains)
            if self.lam:
                terms["mmd"] = -self.lam * mmd2(features, batch.domains)
            return terms

        yield Stage(
            name="train",
            student=student,
            loss=loss,
            optimizer=lambda trained: torch.optim.SGD(trained, lr=self.lr, momentum=0.9),
            epochs=self.epochs,
            batch_size=self.batch_size,
            augmented=self.augmented,
        )
        return student
