"""One request measured: the untouched model, the edited one, and the ideal, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import Edit, Side
from nullspace_unlearn.evaluate.metrics import figures, ideal_grid, report
from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid, grid_to_json, predict, top_k
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import class_prototypes

EVERYWHERE = ("all",)
"""The one domain of data that names none."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Accuracies in each cell under one request.

    Attributes:
        classes: Row names.
        domains: Column names.
        mask: Which cells are forgotten.
        before: The untouched model.
        after: The edited model.
        ideal: Forgotten classes struck off the list, everything else untouched.
        figures: "before", "after" and "ideal": the figures of `metrics.Figures`.
    """

    classes: tuple[str, ...]
    domains: tuple[str, ...]
    mask: Bool[Tensor, "classes domains"]
    before: Grid
    after: Grid
    ideal: Grid
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values: both grids as `grid_to_json` gives them, the mask and the figures."""
        return {
            "before": grid_to_json(self.before, self.classes, self.domains),
            "after": grid_to_json(self.after, self.classes, self.domains),
            "forgotten": self.mask.tolist(),
            "figures": self.figures,
        }


def classifier(
    clip: Clip, features: Features, templates: Sequence[str]
) -> Float[Tensor, "classes dim"]:
    """The zero-shot classifier for some features: the file's own text, else the model's."""
    if features.text is not None:
        return features.text
    return class_prototypes(clip, features.class_names, templates).float()


def compare(
    clip: Clip,
    edited: Clip,
    edit: Edit,
    side: Side,
    features: Features,
    forget: Forget,
    templates: Sequence[str],
    again: Features | None = None,
) -> Comparison:
    """Measure an edit on features of the untouched model.

    On the visual side the features are edited in place of being encoded again (`fold` has verified
    that this is the same); on the text side the edited model makes the classifier. An edit of the
    last MLP does not show on the untouched model's features: it needs the edited one's.

    Args:
        clip: The untouched model.
        edited: The model with the edit folded in.
        edit: The edit.
        side: Which tower it went to.
        features: Embeddings under the untouched model.
        forget: The request, its domains by key.
        templates: Class templates.
        again: Embeddings of the same images under the edited model, where they have been made.

    Returns:
        The comparison.

    Raises:
        ValueError: If an edit of the last MLP comes without them, or the data has not the classes
            or domains of the request.
    """
    domains = features.domain_names or EVERYWHERE
    if forget.domains and not features.domain_names:
        raise ValueError("the data names no domains, so a request in some domains has no figures")
    # A class that the data does not have cannot be measured, but others of the request can.
    present = tuple(name for name in forget.classes if name in features.class_names)
    asked = Forget(present or forget.classes, forget.domains)
    mask = asked.mask(features.class_names, domains)
    untouched = classifier(clip, features, templates)
    shape = (len(features.class_names), len(domains))

    def grid(embeddings: Tensor, prototypes: Tensor) -> Grid:
        predicted = predict(embeddings, prototypes)
        return accuracy_grid(predicted, features.labels, features.domains, *shape)

    before = grid(features.embeddings, untouched)
    if again is not None:
        after = grid(again.embeddings, untouched)
    elif edit.space == "mlp":
        raise ValueError("an edit of the last MLP is measured on images encoded again")
    elif side == "visual":
        after = grid(edit.apply(features.embeddings, features.hidden), untouched)
    else:
        after = grid(features.embeddings, classifier(edited, features, templates))
    ideal = ideal_grid(features.embeddings, untouched, features.labels, features.domains, mask)
    return Comparison(
        classes=features.class_names,
        domains=domains,
        mask=mask,
        before=before,
        after=after,
        ideal=ideal,
        figures=report(figures(before, mask), figures(after, mask), figures(ideal, mask)),
    )


def accuracy(
    clip: Clip | None, features: Features, templates: Sequence[str]
) -> tuple[Grid, dict[str, Any]]:
    """Zero-shot accuracy of a model on some features, cell by cell.

    Args:
        clip: The model, for its text tower; None where the features bring their text.
        features: Embeddings under that model.
        templates: Class templates.

    Returns:
        The grid, and it as JSON with acc1, acc5 and mean_per_class_recall.
    """
    prototypes = features.text if clip is None else classifier(clip, features, templates)
    assert prototypes is not None  # the caller checks; a type checker cannot
    domains = features.domain_names or EVERYWHERE
    grid = accuracy_grid(
        predict(features.embeddings, prototypes),
        features.labels,
        features.domains,
        len(features.class_names),
        len(domains),
    )
    many = len(features.class_names) > 5
    acc5 = top_k(features.embeddings, prototypes, features.labels, 5) if many else None
    return grid, grid_to_json(grid, features.class_names, domains, acc5)
