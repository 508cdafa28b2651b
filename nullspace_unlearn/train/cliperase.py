"""CLIPErase: push forgotten images away from their captions, hold the rest where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.train.losses import contrastive, divergence
from nullspace_unlearn.train.method import Stage, Stages
from nullspace_unlearn.train.task import Minibatch, Task, with_towers
from nullspace_unlearn.train.weights import Towers


def cosine(first: Float[Tensor, "n dim"], second: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    """Mean inner product of rows with rows; 0 where there is none.

    Args:
        first: `[n, dim]` unit rows.
        second: `[n, dim]` unit rows.
    """
    return (first * second).sum() / max(len(first), 1)


@dataclass(frozen=True)
class ClipErase:
    """CLIPErase (arXiv 2410.23330): forgetting, retention and consistency in one sum.

    `L = retain · L_R + forget · L_F + consistency · L_C`. Of pairs of an image and its caption,
    `L_R` is CLIP's contrastive loss on those kept in the batch, `L_F` the mean cosine of those to
    be forgotten, and `L_C` the divergence `KL(original || unlearned)` of the probabilities of the
    captions given an image, plus those of the images given a caption, on the kept ones.

    Stated: the three terms, their weights 1, 3, 3, Adam at 1e-6, batches of 16, 20 epochs. Chosen:
    both towers train; the caption of an image is its class, as the classifier embeds it (the
    paper's data has captions, or one prompt a class); images of one class are all positive for its
    caption; half of a batch is to be forgotten; the probabilities are those of the batch, in both
    directions, at the model's logit scale; the learning rate falls along a cosine. The stated
    learning rate is a ViT-B's; the small models that benchmarks/ measures needed 1e-4.

    Attributes:
        epochs: Passes over the images.
        lr: Learning rate of Adam.
        batch_size: Images a step, half of them to be forgotten.
        retain: Weight of the contrastive loss on kept pairs.
        forget: Weight of the cosine of forgotten pairs.
        consistency: Weight of the divergence from the original model on kept pairs.
        towers: What trains: "visual", "text" or "both".
    """

    epochs: int = 20
    lr: float = 1e-6
    batch_size: int = 16
    retain: float = 1.0
    forget: float = 3.0
    consistency: float = 3.0
    towers: Towers = "both"
    name: ClassVar[str] = "cliperase"
    paper: ClassVar[str] = "arXiv 2410.23330"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global", "cell", "domain")
    sees_images: ClassVar[bool] = True

    def stages(self, task: Task) -> Stages:
        """One stage on all images."""
        student = with_towers(task, self.towers)
        scale = task.clip.logit_scale

        def loss(batch: Minibatch) -> Mapping[str, Tensor]:
            gone, captions = batch.forgotten, batch.labels[~batch.forgotten]
            images, text = F.normalize(student.image(batch.images), dim=-1), student.text()
            logits = scale * images[~gone] @ text[captions].mT
            with torch.no_grad():
                original = F.normalize(task.clip.encode_image(batch.images[~gone]), dim=-1)
                before = scale * original @ task.prototypes[captions].mT
            moved = divergence(before, logits) + divergence(before.mT, logits.mT)
            return {
                "retain": self.retain * contrastive(logits, captions),
                "forget": self.forget * cosine(images[gone], text[batch.labels[gone]]),
                "consistency": self.consistency * moved,
            }

        yield Stage(
            name="erase",
            student=student,
            loss=loss,
            optimizer=lambda trained: torch.optim.Adam(trained, lr=self.lr),
            epochs=self.epochs,
            batch_size=self.batch_size,
            balanced=True,
        )
        return student
