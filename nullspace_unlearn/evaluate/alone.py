"""`measure_alone`: a model on images, and what it tells of the forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.evaluate.compare import (
    EVERYWHERE,
    Comparison,
    Lists,
    accuracy,
    classifier,
    compare_models,
    told_alone,
)
from nullspace_unlearn.evaluate.phrasing import Phrasing, phrasings
from nullspace_unlearn.evaluate.verdict import in_words
from nullspace_unlearn.evaluate.zeroshot import Grid
from nullspace_unlearn.features import Features
from nullspace_unlearn.words import Words


@dataclass(frozen=True, eq=False)
class Alone:
    """A model measured on images.

    Attributes:
        features: The images under the model.
        templates: Class templates of its zero-shot classifier.
        grid: Accuracy of every class in every domain.
        accuracies: The grid and its means as plain values.
        mask: The cells that the model has been made to forget.
        told: "after" and "chance" -> every figure of these (`told_alone`); absent: there are none.
        phrasings: What each template alone tells of them, where that was asked.
        comparison: The model beside the untouched one, where that is at hand.
    """

    features: Features
    templates: tuple[str, ...]
    grid: Grid
    accuracies: Mapping[str, Any]
    mask: Bool[Tensor, "classes domains"]
    told: dict[str, dict[str, float | None]] | None
    phrasings: tuple[Phrasing, ...] | None
    comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        said = dict(self.accuracies)
        if self.told is not None:
            said |= {"forgotten": self.mask.tolist(), "figures": self.told}
        if self.comparison is not None:
            said |= {**self.comparison.to_json(), **in_words(self.comparison)}
        if self.phrasings is not None:
            said["phrasing"] = [asdict(one) for one in self.phrasings]
        return said | {
            "templates": list(self.templates),
            "skipped": self.features.provenance.get("skipped", []),
        }


def measure_alone(
    clip: Clip,
    features: Features,
    templates: Sequence[str] | None = None,
    *,
    phrasing: Sequence[str] | None = None,
    against: tuple[Clip, Features] | None = None,
) -> Alone:
    """Measure a model, and what it tells of what its history says it has forgotten.

    Args:
        clip: The model.
        features: Images under that model.
        templates: Class templates; absent: the model's own, else the standard ones.
        phrasing: Templates to ask for what was forgotten by, each alone; without any, the standard
            ones. Absent: this is not asked.
        against: The untouched model, and the same images under it: what is left of what it tells,
            and what that cost.

    Returns:
        The measurement.

    Raises:
        ValueError: If `phrasing` or `against` is given with a model that has forgotten none of the
            images' cells; or as `compare_models`.
    """
    own = tuple(templates or (clip.words or Words()).class_templates)
    grid, accuracies = accuracy(clip, features, own)
    mask = clip.history.forgotten(features.class_names, features.domain_names or EVERYWHERE)
    told = found = beside = None
    if mask.any():
        told = told_alone(features, mask, classifier(clip, features, own))
        found = None if phrasing is None else phrasings(clip, features, mask, phrasing)
    elif phrasing is not None or against is not None:
        what = "--against" if phrasing is None else "--phrasing"
        raise ValueError(f"{what} asks for what a folder has forgotten, and this has not")
    if against is not None:
        lists = Lists(clip.history.kept)
        beside = compare_models(against[0], clip, against[1], features, None, own, lists)
    return Alone(features, own, grid, accuracies, mask, told, found, beside)


def named_by(features: Features, names: Sequence[str] | None) -> Features:
    """The features with other classes to choose from.

    Args:
        features: Images.
        names: The classes; absent: those of the images.

    Raises:
        ValueError: If these lack a class of the data, or there are none.
    """
    if names is None:
        if not features.class_names:
            raise ValueError("the feature file has no class names: give --classes")
        return features
    if not features.class_names:
        if int(features.labels.max()) >= len(names):
            raise ValueError(
                f"the feature file has label {int(features.labels.max())} and no class names, and "
                f"--classes names {len(names)}"
            )
        return replace(features, class_names=tuple(names))
    unknown = [name for name in features.class_names if name not in names]
    if unknown:
        raise ValueError(f"--classes lacks classes of the data: {', '.join(unknown)}")
    place = [names.index(name) for name in features.class_names]
    labels = features.labels.new_tensor(place)[features.labels]
    return replace(features, class_names=tuple(names), labels=labels, text=None)
