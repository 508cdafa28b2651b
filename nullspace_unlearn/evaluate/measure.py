"""Two models on the same images: the evidence that every figure is computed from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.evaluate.asking import Answers, Asking
from nullspace_unlearn.evaluate.bootstrap import intervals
from nullspace_unlearn.evaluate.figures import Evidence, blind_figures, figures
from nullspace_unlearn.evaluate.kept_search import Searched, Searching
from nullspace_unlearn.evaluate.zeroshot import predict

# Images x names x samples, up to which searches by names that stay get an interval.
_MOST_SEARCHED = 1 << 28


@dataclass(frozen=True, eq=False)
class Model:
    """What a model makes of some images and names.

    Attributes:
        embeddings: `[*edits, n, dim]`, any positive scale of a row.
        classifier: `[*edits, names, dim]`, a row a name, any positive scale of it; leading
            dimensions may be left out. The first names are the classes of the images.
    """

    embeddings: Float[Tensor, "*edits n dim"]
    classifier: Float[Tensor, "*texts names dim"]

    def right(self, labels: Int[Tensor, " n"]) -> Bool[Tensor, "*edits n"]:
        """Which images get their own name out of all.

        Args:
            labels: `[n]` their classes.
        """
        texts = self.classifier.expand(*self.embeddings.shape[:-2], -1, -1)
        return predict(self.embeddings, texts).cpu() == labels.cpu()


@dataclass(frozen=True, eq=False)
class Measured:
    """A model, or each of a batch, beside the untouched one, on the same images.

    Attributes:
        evidence: What every figure follows from.
        labels: `[n]` classes of the images.
        domains: `[n]` their domains, or None for a single one.
        right: Which images the untouched model and the other name right.
        answers: What the two answer when asked for the forgotten names.
        searching: Who looks for what by the names that stay.
        models: The two.
    """

    evidence: Evidence
    labels: Int[Tensor, " n"]
    domains: Int[Tensor, " n"] | None
    right: tuple[Bool[Tensor, " n"], Bool[Tensor, "*edits n"]]
    answers: tuple[Answers, Answers]
    searching: Searching
    models: tuple[Model, Model]

    def figures(self) -> dict[str, Float[Tensor, "*edits"]]:
        """Every figure of the model, `[*edits]`."""
        return figures(self.evidence)

    def before(self) -> dict[str, Tensor]:
        """Every figure of the untouched model."""
        return figures(self._untouched())

    def blind(self) -> dict[str, Float[Tensor, "*edits"]]:
        """What a name that says nothing would score in each figure."""
        return blind_figures(self.evidence)

    def intervals(self, draws: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95 % intervals of every figure of a single model, by bootstrap over the images.

        Args:
            draws: How many samples.
            seed: Of the draws.
        """
        often = self.searching.ranked.numel() * draws
        return intervals(
            self.evidence, self.labels, self.domains, self.right, self.answers,
            None if often > _MOST_SEARCHED else self._search, draws, seed,
        )  # fmt: skip

    def _search(self, weight: Float[Tensor, "draws n"]) -> tuple[Searched, Searched]:
        """What the two find in each sample of the images."""
        before, after = (
            self.searching.find(one.embeddings, one.classifier, weight) for one in self.models
        )
        return before, after

    def _untouched(self) -> Evidence:
        e = self.evidence
        assert e.before is not None  # `measure` has put it there
        return replace(
            e, accuracy=e.before, told=e.told_before, searched=e.searched_before, seconds=None,
            others=None,
        )  # fmt: skip


def measure(
    before: Model,
    after: Model,
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"] | None,
    mask: Bool[Tensor, "classes domains"],
    *,
    names: int | None = None,
    deployed: Bool[Tensor, " all_names"] | None = None,
) -> Measured:
    """Measure a model beside the untouched one.

    Args:
        before: The untouched model.
        after: The other, or a batch of them, on the same images and names.
        labels: `[n]` classes of the images.
        domains: `[n]` their domains, or None for a single one.
        mask: True where a cell is forgotten.
        names: How many of the classifier's first names images are named among; all if None.
        deployed: Names of a further list to ask by, `named_deployed`.

    Returns:
        The evidence; where no image is of a forgotten cell, it tells of what stays alone.

    Raises:
        ValueError: If sizes differ, or something is NaN or infinite.
    """
    total = before.classifier.shape[-2]
    names = total if names is None else names
    if not len(mask) <= names <= total or len(labels) != before.embeddings.shape[-2]:
        raise ValueError(
            f"{len(mask)} classes, {names} of {total} names and {len(labels)} labels do not fit "
            f"embeddings {list(before.embeddings.shape)}"
        )
    mask, labels = mask.cpu(), labels.cpu()
    domains = None if domains is None else domains.cpu()
    asking = Asking.of(mask, labels, domains, total)
    listed = asking.listed & (torch.arange(total) < names)
    asking = replace(asking, listed=listed)
    models = (before, after)
    answers = [Answers.of(asking, one.embeddings, one.classifier) for one in models]
    if deployed is not None and len(asking.classes):
        used = deployed.cpu().expand_as(listed).clone()
        used[torch.arange(len(used)), asking.classes] = False
        if not used.any(1).all():
            raise ValueError("the deployed list needs a name beside the forgotten one")
        theirs = replace(asking, listed=used)
        answers = [
            replace(one, deployed=Answers.of(theirs, model.embeddings, model.classifier))
            for one, model in zip(answers, models, strict=True)
        ]
    told = [one.told() for one in answers]
    searching = Searching.of(mask, labels, domains)
    found = [searching.find(one.embeddings, one.classifier) for one in models]
    some = [replace(one, classifier=one.classifier[..., :names, :]) for one in models]
    right = [one.right(labels) for one in some]
    column = torch.zeros_like(labels) if domains is None else domains
    cell = labels * mask.shape[1] + column
    count, was, now = (
        torch.zeros(*hit.shape[:-1], mask.numel(), dtype=torch.float64)
        .index_add_(-1, cell, hit.double())
        .unflatten(-1, tuple(mask.shape))
        for hit in (torch.ones_like(labels), *right)
    )
    evidence = Evidence(
        mask=mask,
        count=count.long(),
        accuracy=now / count.clamp(min=1),
        before=was / count.clamp(min=1),
        told=told[1],
        told_before=told[0],
        searched=found[1],
        searched_before=found[0],
    )
    return Measured(
        evidence, labels, domains, (right[0], right[1]), (answers[0], answers[1]), searching, models
    )
