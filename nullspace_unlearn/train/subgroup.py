"""Targeted forgetting of image subgroups: forget, remind, restore (arXiv 2506.03117)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.train.alignment import align, stored
from nullspace_unlearn.train.fisher import relative_fisher
from nullspace_unlearn.train.losses import contrastive, divergence
from nullspace_unlearn.train.method import Stage, Stages
from nullspace_unlearn.train.shots import Shots, from_tensors
from nullspace_unlearn.train.task import Minibatch, Student, Task, validate, with_weights
from nullspace_unlearn.train.weights import Lora, Towers, Weights, matrices

Ranking = Literal["fisher", "random", "all"]

_ALIGNED = 64
"""Images whose statistics are matched together."""


@dataclass(frozen=True)
class Subgroup:
    """Forget on the layers that matter to little else, remind of what stays, restore by a soup.

    1. Forgetting: low-rank additions to the layers of largest relative Fisher information; the
       cosine of each forgotten image with the text of its class is minimised, until their mean is
       below a threshold.
    2. Reminding: the images that stay are perturbed so that what enters the normalisation layers
       comes nearer to the statistics the original model stored; on these the contrastive loss and
       the divergence from the original model are minimised, and the weights averaged over the
       steps.
    3. Restoring: `θ = α θ' + (1 - α) θ₀` with the original model, α the best on a small calibration
       set (the validation images, or the training images where there are none).

    The paper states these stages, equation 2 and the soup. Chosen: every number; the additions of
    the first stage train on in the second; images that share a class count as each other's matches
    in the contrastive loss; on a tower without BatchNorm the statistics are those of LayerNorm's
    inputs over the images that stay, in the original tower; the statistics are measured in the
    tower that has forgotten; α is chosen by balance, the middle one of those equally good,
    since the paper's own score hardly notices whether a single cell among many is forgotten.

    Attributes:
        epochs: Passes over the images that stay, to remind.
        lr: Learning rate of Adam, in both stages.
        batch_size: Images a step.
        forget_epochs: Most passes over the images to forget.
        threshold: Mean cosine of the images to forget at which forgetting ends. Chosen: 0, well
            beyond where a cell is no longer recognised, since reminding brings some of it back.
        layers: How many layers train.
        rank: Rank of the additions.
        distill: Weight of the divergence from the original model.
        decay: Share of the averaged weights that a step keeps; 0 leaves the last weights.
        steps: Gradient steps of the alignment.
        radius: Most that an entry of a preprocessed image changes in the alignment.
        towers: Whose layers are ranked: "visual", "text" or "both".
        ranking: "fisher"; or, to see what that is worth, "random" layers, or "all".
        align: Whether images are aligned; false is the paper's ablation.
        soup: Whether the model is restored; false is the paper's ablation.
        lora: Whether the additions are of low rank; false trains the layers whole.
    """

    epochs: int = 4
    lr: float = 3e-3
    batch_size: int = 32
    forget_epochs: int = 30
    threshold: float = 0.0
    layers: int = 8
    rank: int = 8
    distill: float = 1.0
    decay: float = 0.9
    steps: int = 10
    radius: float = 0.1
    towers: Towers = "visual"
    ranking: Ranking = "fisher"
    align: bool = True
    soup: bool = True
    lora: bool = True
    name: ClassVar[str] = "subgroup"
    paper: ClassVar[str] = "arXiv 2506.03117"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global", "cell", "domain")
    sees_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.forget_epochs < 1 or self.layers < 1 or self.rank < 1:
            raise ValueError(
                "at least 1 epoch of forgetting, 1 layer and rank 1 are needed, got "
                f"{self.forget_epochs}, {self.layers}, {self.rank}"
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay:g}")

    def stages(self, task: Task) -> Stages:
        """Forgetting and reminding; the soup is the result."""
        learner = self._learner(task, choose(self, task))
        forgetting = with_weights(task, learner)
        forgotten = task.forgotten(task.shots)

        def optimizer(trained: object) -> torch.optim.Optimizer:
            return torch.optim.Adam(trained, lr=self.lr)  # type: ignore[arg-type]

        def cosine(batch: Minibatch) -> Mapping[str, Tensor]:
            embeddings = F.normalize(forgetting.image(batch.images), dim=-1)
            return {"cosine": (embeddings * forgetting.text()[batch.labels]).sum(-1).mean()}

        gone = task.shots.subset(forgotten.nonzero()[:, 0])
        yield Stage(
            name="forget",
            student=forgetting,
            loss=cosine,
            optimizer=optimizer,
            epochs=self.forget_epochs,
            batch_size=self.batch_size,
            shots=gone,
            cosine=False,
            scored=False,
            stop=lambda: similarity(task, forgetting, gone) < self.threshold,
        )
        kept = task.shots.subset((~forgotten).nonzero()[:, 0])
        if not len(kept):
            return self._restored(task, forgetting)
        if self.align:
            kept = aligned(task, learner(), kept, self.steps, self.radius)
        averaged = _Averaged(learner, self.decay)
        reminded = replace(with_weights(task, averaged.average), module=averaged)

        def remind(batch: Minibatch) -> Mapping[str, Tensor]:
            logits = forgetting.logits(task, batch.images)
            before = task.clip.encode_image(batch.images)
            original = task.clip.logit_scale * F.normalize(before, dim=-1) @ task.prototypes.mT
            return {
                "contrast": contrastive(logits[:, batch.labels], batch.labels),
                "distill": self.distill * divergence(original, logits),
            }

        yield Stage(
            name="remind",
            student=reminded,
            loss=remind,
            optimizer=optimizer,
            epochs=self.epochs,
            batch_size=self.batch_size,
            shots=kept,
            after_step=averaged.update,
        )
        return self._restored(task, reminded)

    def _learner(self, task: Task, keys: list[str]) -> Weights | Lora:
        if not self.lora:
            return Weights(task.clip.model, keys)
        random = torch.Generator().manual_seed(task.seed)
        return Lora(task.clip.model, keys, self.rank, generator=random)

    def _restored(self, task: Task, student: Student) -> Student:
        return restored(task, student.module()) if self.soup else student


def choose(method: Subgroup, task: Task) -> list[str]:
    """The layers that train.

    Args:
        method: How they are ranked, and how many are wanted.
        task: The task.

    Returns:
        Names in the model's state_dict, in its order.
    """
    keys = matrices(task.clip.model, method.towers)
    if method.ranking == "all":
        return keys
    if method.ranking == "random":
        random = torch.Generator().manual_seed(task.seed)
        order = [keys[i] for i in torch.randperm(len(keys), generator=random).tolist()]
    else:
        score = relative_fisher(task, keys)
        order = sorted(keys, key=lambda key: -score[key])
    return [key for key in keys if key in order[: method.layers]]


def aligned(task: Task, new: Mapping[str, Tensor], kept: Shots, steps: int, radius: float) -> Shots:
    """Images perturbed, batch by batch, to the statistics that the original model stored.

    Args:
        task: The task.
        new: Parameters by name of the tower that the statistics are measured in.
        kept: The images.
        steps: Gradient steps.
        radius: Most that an entry of an image changes.

    Returns:
        As many images, of the same cells, in memory.
    """
    random = torch.Generator().manual_seed(task.seed)
    order = torch.randperm(len(kept), generator=random)
    # Batches of equal size: the statistics of a few left over would be far off by chance.
    chunks = order.tensor_split(max(round(len(order) / _ALIGNED), 1))
    batches = [kept.read(chunk).to(task.clip.device) for chunk in chunks]
    target = stored(task.clip.model, batches)
    moved = [align(task.clip.model, new, images, target, steps, radius) for images in batches]
    images = torch.empty(len(kept), *batches[0].shape[1:])
    images[order] = torch.cat(moved).cpu()
    return from_tensors(images, kept.labels, kept.domains, kept.source)


def similarity(task: Task, student: Student, some: Shots, batch_size: int = 64) -> float:
    """Mean cosine of images with the text of their class.

    Args:
        task: The task, for the device.
        student: The student.
        some: The images.
        batch_size: Images per forward pass.
    """
    total = 0.0
    with torch.no_grad():
        text = student.text()
        for chosen in torch.arange(len(some)).split(batch_size):
            embeddings = F.normalize(student.image(some.read(chosen).to(task.clip.device)), dim=-1)
            total += float((embeddings * text[some.labels[chosen].to(text.device)]).sum())
    return total / len(some)


def soup(task: Task, new: Mapping[str, Tensor], alpha: float) -> Student:
    """The model a share of the way from the original to another: `α θ + (1 - α) θ₀`.

    Args:
        task: The task.
        new: Parameters θ by name.
        alpha: The share, 0 for the original and 1 for the other, both to the last bit.

    Returns:
        A student that does not train.
    """
    mixed = Weights(task.clip.model, list(new)).requires_grad_(False)
    for value, other in zip(mixed.values, new.values(), strict=True):
        value.copy_(value.lerp(other.detach(), alpha))
    return with_weights(task, mixed)


def restored(task: Task, new: Mapping[str, Tensor], grid: int = 21) -> Student:
    """The best soup on the calibration set.

    Args:
        task: The task; its validation images calibrate, or its training images where there are
            none.
        new: Parameters by name.
        grid: Number of shares tried, from 0 to 1.

    Returns:
        The soup of highest `balance`; of those equally good, the middle one.
    """
    judge = task if len(task.validation) else replace(task, validation=task.shots)
    shares = torch.linspace(0, 1, grid, dtype=torch.float64).tolist()
    scores = [validate(judge, soup(task, new, share))["balance"] or 0.0 for share in shares]
    best = [share for share, score in zip(shares, scores, strict=True) if score == max(scores)]
    return soup(task, new, best[len(best) // 2])


class _Averaged(nn.Module):
    """A module that learns, and the exponential moving average of its parameters.

    The averages count as parameters that require gradients, so that they are kept with the run;
    no loss reaches them, and optimisers pass by what has no gradient.
    """

    def __init__(self, learner: Weights | Lora, decay: float) -> None:
        super().__init__()
        self.learner, self.average, self.decay = learner, copy.deepcopy(learner), decay

    def forward(self) -> dict[str, Tensor]:
        new: dict[str, Tensor] = self.average()
        return new

    @torch.no_grad()
    def update(self) -> None:
        """Take in a step of the learner."""
        for mean, value in zip(self.average.parameters(), self.learner.parameters(), strict=True):
            mean.lerp_(value, 1 - self.decay)
