"""SalUn: random labels for what is forgotten, learned by the weights it depends on most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.train.losses import classify
from nullspace_unlearn.train.method import Stage, Stages
from nullspace_unlearn.train.task import Minibatch, Student, Task, with_weights
from nullspace_unlearn.train.weights import Towers, Weights, tower_keys


def relabel(
    mask: Bool[Tensor, "classes domains"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    generator: torch.Generator,
) -> Int[Tensor, " n"]:
    """Draw a wrong label for each image of a forgotten cell, all with equal chances.

    Those that stay in the image's domain are drawn from; where none does, since the whole domain is
    forgotten, every class but its own.

    Args:
        mask: True where a cell is forgotten, on the CPU.
        labels: `[n]` classes, on the CPU.
        domains: `[n]` domains, on the CPU.
        generator: Source of randomness, on the CPU.

    Returns:
        `[n]` other classes.

    Raises:
        ValueError: If there is no other class.
    """
    if len(mask) < 2:
        raise ValueError("random relabelling needs at least 2 classes, there is 1")
    if not len(labels):
        return labels
    stays = ~mask[:, domains].mT
    other = torch.arange(len(mask)) != labels[:, None]
    allowed = torch.where(stays.any(1, keepdim=True), stays, other)
    return torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]


def salient(gradients: Sequence[Float[Tensor, "*_"]], share: float) -> list[Bool[Tensor, "*_"]]:
    """The weights with the largest gradients, by one threshold for all tensors.

    Args:
        gradients: Gradients of the tensors, of any shapes.
        share: Share of all weights that is salient, from 0 to 1.

    Returns:
        Masks of these shapes, true at exactly `round(share · weights)` weights, whatever the ties.
    """
    sizes = torch.cat([gradient.abs().flatten() for gradient in gradients])
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[sizes.topk(round(share * len(sizes))).indices] = True
    parts = chosen.split([gradient.numel() for gradient in gradients])
    return [part.reshape(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


@dataclass(frozen=True)
class SalUn:
    """SalUn (arXiv 2310.12508): saliency unlearning with random labels.

    The saliency mask is `|∇ℓ_f| >= γ` (equation 3) with `ℓ_f` minus the summed cross-entropy of
    what is to be forgotten, at the untouched model, and `γ` such that a share of the weights is
    salient. These alone train, on the sum of two means: the cross-entropy of what is to be
    forgotten with labels drawn at random, and of what stays with its own (equation 5).

    Stated: the mask, half of the weights salient, random labels. Chosen: labels are drawn anew
    each time an image comes (the paper's are other than the true one; here they are also of classes
    that stay in the image's domain, where there are any); half of each batch is to be forgotten, so
    both means count alike; Adam without weight decay, which leaves a weight without gradient as it
    is to the bit; only the image tower trains.

    Attributes:
        epochs: Passes over the images.
        lr: Learning rate of Adam.
        batch_size: Images a step, half of them to be forgotten.
        share: Share of the weights that train, the paper's sparsity; more than 0, at most 1.
        forget: Weight of the term with random labels; 0 leaves fine-tuning of salient weights.
        towers: What trains: "visual", "text" or "both".
    """

    epochs: int = 10
    lr: float = 1e-4
    batch_size: int = 32
    share: float = 0.5
    forget: float = 1.0
    towers: Towers = "visual"
    name: ClassVar[str] = "salun"
    paper: ClassVar[str] = "arXiv 2310.12508"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global", "cell", "domain")
    sees_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of salient weights must lie in (0, 1], got {self.share:g}")

    def stages(self, task: Task) -> Stages:
        """Find the salient weights, then one stage on all images."""
        weights = Weights(task.clip.model, tower_keys(task.clip.model, self.towers))
        student = with_weights(task, weights)
        masks = salient(forget_gradients(task, student, self.batch_size), self.share)

        def loss(batch: Minibatch) -> Mapping[str, Tensor]:
            logits, gone = student.logits(task, batch.images), batch.forgotten
            drawn = relabel(
                task.mask, batch.labels[gone].cpu(), batch.domains[gone].cpu(), batch.generator
            )
            return {
                "mem": classify(logits[~gone], batch.labels[~gone]),
                "for": self.forget * classify(logits[gone], drawn.to(logits.device)),
            }

        def hold() -> None:
            for value, mask in zip(weights.values, masks, strict=True):
                if value.grad is not None:
                    value.grad *= mask

        yield Stage(
            name="train",
            student=student,
            loss=loss,
            optimizer=lambda trained: torch.optim.Adam(trained, lr=self.lr),
            epochs=self.epochs,
            batch_size=self.batch_size,
            balanced=True,
            after_backward=hold,
        )
        return student


def forget_gradients(task: Task, student: Student, batch_size: int) -> list[Float[Tensor, "*_"]]:
    """Gradients of the summed cross-entropy of the training images to be forgotten.

    Args:
        task: The task.
        student: The student.
        batch_size: Images per pass.

    Returns:
        A gradient for each trained tensor, in the order of its module's parameters.
    """
    trained = [value for value in student.module.parameters() if value.requires_grad]
    total = [torch.zeros_like(value) for value in trained]
    for chosen in task.forgotten(task.shots).nonzero()[:, 0].split(batch_size):
        images = task.shots.read(chosen).to(task.clip.device)
        labels = task.shots.labels[chosen].to(task.clip.device)
        loss = len(chosen) * classify(student.logits(task, images), labels)
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        for sum_, gradient in zip(total, found, strict=True):
            if gradient is not None:
                sum_ += gradient
    return total
