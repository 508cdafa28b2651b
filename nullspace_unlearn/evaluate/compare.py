"""One request measured: the untouched model, the edited one, and the ideal, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import Edit, Side
from nullspace_unlearn.evaluate.figures import grid_figures
from nullspace_unlearn.evaluate.ideal import ideal_grid
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
        figures: "before", "after" and "ideal": every figure of `figures.FIGURES`.
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
    untouched = classifier(clip, features, templates)
    if again is not None:
        after = again.embeddings, untouched
    elif edit.space == "mlp":
        raise ValueError("an edit of the last MLP is measured on images encoded again")
    elif side == "visual":
        after = edit.apply(features.embeddings, features.hidden), untouched
    else:
        after = features.embeddings, classifier(edited, features, templates)
    return compared(features, forget, (features.embeddings, untouched), after)


def compare_models(
    clip: Clip,
    changed: Clip,
    features: Features,
    again: Features,
    forget: Forget,
    templates: Sequence[str],
) -> Comparison:
    """Measure a changed model beside the untouched one, each with its own text tower.

    Args:
        clip: The untouched model.
        changed: The changed one, whatever changed in it.
        features: Embeddings under the untouched model.
        again: Embeddings of the same images, in the same order, under the changed one.
        forget: The request, its domains by key.
        templates: Class templates.

    Returns:
        The comparison.

    Raises:
        ValueError: If the two are of other images, or the data has not the classes or domains of
            the request.
    """
    names = [(f.class_names, f.domain_names, len(f)) for f in (features, again)]
    same = [_same(getattr(features, name), getattr(again, name)) for name in ("labels", "domains")]
    if names[0] != names[1] or not all(same):
        raise ValueError("the features of the two models are not of the same images")
    return compared(
        features,
        forget,
        (features.embeddings, classifier(clip, features, templates)),
        (again.embeddings, classifier(changed, again, templates)),
    )


def cells_of(
    forget: Forget, classes: Sequence[str], domains: Sequence[str]
) -> Bool[Tensor, "classes domains"]:
    """The cells of some data that a request concerns.

    A class that the data does not have cannot be measured, but others of the request can.

    Args:
        forget: The request, its domains by key.
        classes: The data's classes.
        domains: The data's domains; empty where it names none.

    Returns:
        True where a cell is forgotten; data without domains have one column.

    Raises:
        ValueError: If the data has none of the request's classes, or not its domains.
    """
    if forget.domains and not domains:
        raise ValueError("the data names no domains, so a request in some domains has no figures")
    present = tuple(name for name in forget.classes if name in classes)
    asked = Forget(present or forget.classes, forget.domains)
    return asked.mask(classes, domains or EVERYWHERE)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def compared(
    features: Features,
    forget: Forget,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
) -> Comparison:
    """Compare two models by what they make of the same images.

    Args:
        features: Labels, domains and names of the images.
        forget: The request, its domains by key.
        before: Embeddings `[n, dim]` and classifier `[classes, dim]` of the untouched model.
        after: The same of the changed one.

    Returns:
        The comparison.

    Raises:
        ValueError: If the data has not the classes or domains of the request.
    """
    mask = cells_of(forget, features.class_names, features.domain_names)
    grids = {
        name: accuracy_grid(predict(*model), features.labels, features.domains, *mask.shape)
        for name, model in (("before", before), ("after", after))
    }
    grids["ideal"] = ideal_grid(*before, features.labels, features.domains, mask)
    return Comparison(
        classes=features.class_names,
        domains=features.domain_names or EVERYWHERE,
        mask=mask,
        **grids,
        figures={name: grid_figures(grid, mask, grids["before"]) for name, grid in grids.items()},
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
