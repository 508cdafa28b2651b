"""One request measured: the untouched model, the edited one, and the ideal, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.edit import DEEPER, Edit, Side
from nullspace_unlearn.evaluate.figures import (
    Verdict,
    blind_figures,
    figures,
    grid_figures,
    most_found,
    paid_most,
    plain_values,
    verdict_of,
)
from nullspace_unlearn.evaluate.ideal import ideal_grid
from nullspace_unlearn.evaluate.measure import Measured, Model, measure
from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid, grid_to_json, predict, top_k
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.plans import in_place_of_images
from nullspace_unlearn.prototypes import Visual, cell_prototypes, class_prototypes
from nullspace_unlearn.words import Words

EVERYWHERE = ("all",)
"""The one domain of data that names none."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """One request measured: accuracies in each cell, and every figure.

    Attributes:
        classes: Row names.
        domains: Column names.
        mask: Which cells are forgotten.
        before: The untouched model.
        after: The edited model.
        ideal: The untouched model with forgotten names struck off the one list.
        figures: "before", "after", "chance" (what a name that says nothing would score) and
            "ideal": every figure of `figures.FIGURES`, None where it cannot be told.
        measured: What they follow from.
    """

    classes: tuple[str, ...]
    domains: tuple[str, ...]
    mask: Bool[Tensor, "classes domains"]
    before: Grid
    after: Grid
    ideal: Grid
    figures: dict[str, dict[str, float | None]]
    measured: Measured

    @property
    def verdict(self) -> Verdict:
        """Whether what was to be forgotten is, as `figures.verdict_of` says."""
        return verdict_of(self.figures["after"])

    @property
    def found_by(self) -> str | None:
        """The way of asking that finds most of what is left, by its name among the figures."""
        return most_found(self.measured.evidence)

    @property
    def paid(self) -> dict[str, Any] | None:
        """The cell that lost most of those that stay: its names, accuracy before and after."""
        place = paid_most(self.measured.evidence)
        if place is None:
            return None
        c, d = place
        return {
            "class": self.classes[c],
            "domain": self.domains[d],
            "before": float(self.before.accuracy[c, d]),
            "after": float(self.after.accuracy[c, d]),
        }

    @property
    def images(self) -> dict[str, int]:
        """How many images the figures are of: "forgotten", "others" and "kept"."""
        asking = self.measured.answers[1].asking
        count = self.after.count
        return {
            "forgotten": int(count[self.mask].sum()),
            "others": int(asking.others.any(0).sum()),
            "kept": int(count[~self.mask].sum()),
        }

    def by_class(self) -> dict[str, dict[str, Any]]:
        """What is told of each forgotten class by itself: its images, and each way of asking."""
        asking, e = self.measured.answers[1].asking, self.measured.evidence
        assert e.told is not None and e.told_before is not None  # `measure` has put them there
        said = {}
        for j, c in enumerate(asking.classes.tolist()):
            values = (e.told_before.value[j], e.told.value[j], e.told.blind[j])
            ways = {
                way: {"before": float(was), "after": float(now), "chance": float(blind)}
                for way, was, now, blind in zip(e.told.ways, *values, strict=True)
            }
            said[self.classes[c]] = {"images": int(asking.own[j].sum()), **ways}
        return said

    def to_json(self, draws: int = 200) -> dict[str, Any]:
        """Plain values: grids as `grid_to_json` gives them, the figures and what they rest on.

        Args:
            draws: Samples of the bootstrap that the intervals are of; without any there are none.
        """
        ends = self.measured.intervals(draws) if draws else {}
        return {
            "before": grid_to_json(self.before, self.classes, self.domains),
            "after": grid_to_json(self.after, self.classes, self.domains),
            "forgotten": self.mask.tolist(),
            "verdict": self.verdict,
            "found_by": self.found_by,
            "paid": self.paid,
            "figures": self.figures,
            "intervals": {name: list(both) for name, both in ends.items()},
            "images": self.images,
            "by_class": self.by_class(),
        }


@dataclass(frozen=True)
class Lists:
    """The names that images choose from, beside the classes of the data.

    Attributes:
        stay: Every name that stays; those that the data do not show are listed too.
        deployed: The list that the user deploys, asked by besides; empty where there is none.
    """

    stay: tuple[str, ...] = ()
    deployed: tuple[str, ...] = ()

    def rows(
        self, features: Features
    ) -> tuple[tuple[str, ...], int, Bool[Tensor, " names"] | None]:
        """The names in order, how many of them are the vocabulary, and which are deployed.

        Args:
            features: The data, whose classes come first. Features that bring their own text know
                no other names: the vocabulary is theirs.

        Raises:
            ValueError: If a deployed name is unknown to features that bring their own text.
        """
        classes = features.class_names
        known = tuple(dict.fromkeys((*classes, *self.stay)))
        if features.text is not None or len(set(classes)) < len(classes):
            known = classes
        names = (*known, *(name for name in dict.fromkeys(self.deployed) if name not in known))
        if features.text is not None and len(names) > len(known):
            raise ValueError(
                "the features bring their own text, so only their classes can be deployed: "
                f"{names[len(known)]!r} is not among them"
            )
        deployed = torch.tensor([name in self.deployed for name in names])
        return names, len(known), deployed if self.deployed else None


def classifier(
    clip: Clip, features: Features, templates: Sequence[str], names: Sequence[str] | None = None
) -> Float[Tensor, "names dim"]:
    """The zero-shot classifier for some features: the file's own text, else the model's.

    Args:
        clip: The model.
        features: The features.
        templates: Class templates.
        names: The names of its rows; the features' classes if None.
    """
    if features.text is not None:
        return features.text
    return class_prototypes(clip, names or features.class_names, templates).float()


def compare(
    clip: Clip,
    edited: Clip,
    edit: Edit,
    side: Side,
    features: Features,
    forget: Forget,
    templates: Sequence[str],
    again: Features | None = None,
    lists: Lists | None = None,
) -> Comparison:
    """Measure an edit on features of the untouched model.

    On the visual side the features are edited in place of being encoded again (`fold` has verified
    that this is the same); on the text side the edited model makes the classifier, and text that
    the features bring is edited as it is. An edit of a deeper layer does not show on the untouched
    model's features: it needs the edited one's.

    Args:
        clip: The untouched model.
        edited: The model with the edit folded in.
        edit: The edit.
        side: Which tower it went to.
        features: Embeddings under the untouched model.
        forget: The request, its domains by key.
        templates: Class templates.
        again: Embeddings of the same images under the edited model, where they have been made.
        lists: The names that images choose from; the data's classes if None.

    Returns:
        The comparison.

    Raises:
        ValueError: If an edit of a deeper layer comes without them, or the data has not the classes
            or domains of the request.
    """
    lists = lists or Lists()
    names, _, _ = lists.rows(features)
    untouched = classifier(clip, features, templates, names)
    text = untouched
    if side == "text":
        text = classifier(edited, features, templates, names)
        if features.text is not None:
            text = edit.transposed().apply(features.text)
    if again is not None:
        after = again.embeddings, text
    elif edit.space in DEEPER:
        raise ValueError(f"an edit of space {edit.space!r} is measured on images encoded again")
    elif side == "visual":
        after = edit.apply(features.embeddings, features.hidden), text
    else:
        after = features.embeddings, text
    mask = all_cells(clip, forget, features)
    return compared(features, mask, (features.embeddings, untouched), after, lists)


def predicted(
    clip: Clip,
    edited: Clip,
    edit: Edit,
    side: Side,
    forget: Forget,
    words: Words,
    visual: Visual | None = None,
    lists: Lists | None = None,
) -> Comparison:
    """What prototypes in place of images say of an edit, where there is no image.

    Args:
        clip: The untouched model.
        edited: The model with the edit folded in.
        edit: The edit.
        side: Which tower it went to.
        forget: The request, its domains by key.
        words: Classes, domains and templates.
        visual: The visual prototypes that the edit was made from; text prototypes if None. An edit
            of a deeper layer needs them, read there.
        lists: As for `compare`.

    Returns:
        The comparison, of as many "images" as there are prototypes.
    """
    again = None
    if visual is not None:
        features = visual.features
        rows = getattr(visual, edit.space) if edit.space in DEEPER else None
        if rows is not None and features.hidden is not None:
            inner = clip.inner(edit.space)
            seen = inner.of_prototypes(rows, features.hidden)
            again = replace(features, embeddings=inner.apply(edit, seen).float())
    elif forget.domains:
        cells = cell_prototypes(
            clip, words.classes, tuple(words.domains.values()), words.cell_templates
        )
        cells = in_place_of_images(clip, cells, words)
        grid = torch.ones(cells.shape[:2]).nonzero()
        features = Features(
            cells.flatten(0, 1), grid[:, 0], words.classes,
            domains=grid[:, 1], domain_names=tuple(words.domains),
        )  # fmt: skip
    else:
        rows = class_prototypes(clip, words.classes, words.class_templates)
        rows = in_place_of_images(clip, rows, words)
        features = Features(rows, torch.arange(len(rows)), words.classes)
    return compare(clip, edited, edit, side, features, forget, words.class_templates, again, lists)


def compare_models(
    clip: Clip,
    changed: Clip,
    features: Features,
    again: Features,
    forget: Forget | None,
    templates: Sequence[str],
    lists: Lists | None = None,
) -> Comparison:
    """Measure a changed model beside the untouched one, each with its own text tower.

    Args:
        clip: The untouched model.
        changed: The changed one, whatever changed in it.
        features: Embeddings under the untouched model.
        again: Embeddings of the same images, in the same order, under the changed one.
        forget: The request, its domains by key; None for all that the changed model's history says
            it has forgotten.
        templates: Class templates.
        lists: The names that images choose from; the data's classes if None.

    Returns:
        The comparison.

    Raises:
        ValueError: If the two are of other images, or the data has not the classes or domains of
            the request, or none of what the history says.
    """
    names = [(f.class_names, f.domain_names, len(f)) for f in (features, again)]
    same = [_same(getattr(features, name), getattr(again, name)) for name in ("labels", "domains")]
    if names[0] != names[1] or not all(same):
        raise ValueError("the features of the two models are not of the same images")
    lists = lists or Lists()
    rows, _, _ = lists.rows(features)
    if forget is None:
        domains = features.domain_names or EVERYWHERE
        mask = changed.history.forgotten(features.class_names, domains)
        if not mask.any():
            raise ValueError("the images show nothing of what the model says it has forgotten")
    else:
        mask = all_cells(clip, forget, features)
    return compared(
        features,
        mask,
        (features.embeddings, classifier(clip, features, templates, rows)),
        (again.embeddings, classifier(changed, again, templates, rows)),
        lists,
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


def check_measurable(forget: Forget, source: Source) -> None:
    """Refuse images that no figure could be told from, before any work is spent.

    Args:
        forget: The request, its domains by key.
        source: The images to report on.

    Raises:
        ValueError: As `cells_of`; or if there is no image of forgotten cells, or of kept ones.
    """
    mask = cells_of(forget, source.classes, source.domains)
    for what, some in (("forgotten", mask), ("kept", ~mask)):
        if not source.counts[some].any():
            raise ValueError(
                f"no image of {what} cells is left to report on, besides those that are learned "
                "from: give others, or fewer --shots"
            )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def all_cells(clip: Clip, forget: Forget, features: Features) -> Bool[Tensor, "classes domains"]:
    """The cells of some data that a request concerns, or any edit of the model before it.

    Args:
        clip: The model that the request is of; its history says what it has forgotten.
        forget: The request, its domains by key.
        features: The data.

    Raises:
        ValueError: As `cells_of`.
    """
    classes, domains = features.class_names, features.domain_names
    return cells_of(forget, classes, domains) | clip.history.forgotten(
        classes, domains or EVERYWHERE
    )


def compared(
    features: Features,
    forget: Forget | Bool[Tensor, "classes domains"],
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    lists: Lists | None = None,
) -> Comparison:
    """Compare two models by what they make of the same images.

    Args:
        features: Labels, domains and names of the images.
        forget: The request, its domains by key, or the cells that are forgotten.
        before: Embeddings `[n, dim]` and classifier `[names, dim]` of the untouched model.
        after: The same of the changed one.
        lists: What the classifiers' rows are, as `Lists.rows` orders them.

    Returns:
        The comparison.

    Raises:
        ValueError: If the data has not the classes or domains of the request.
    """
    _, known, deployed = (lists or Lists()).rows(features)
    mask = (
        cells_of(forget, features.class_names, features.domain_names)
        if isinstance(forget, Forget)
        else forget
    )
    found = measure(
        Model(*before), Model(*after), features.labels, features.domains, mask, names=known,
        deployed=deployed,
    )  # fmt: skip
    evidence = found.evidence
    assert evidence.before is not None  # `measure` has put it there
    wide = torch.cat([mask, torch.zeros(known - len(mask), mask.shape[1], dtype=torch.bool)])
    struck = ideal_grid(before[0], before[1][:known], features.labels, features.domains, wide)
    ideal = Grid(struck.accuracy[: len(mask)], struck.count[: len(mask)])
    untouched = Grid(evidence.before, evidence.count)
    return Comparison(
        classes=features.class_names,
        domains=features.domain_names or EVERYWHERE,
        mask=mask,
        before=untouched,
        after=Grid(evidence.accuracy, evidence.count),
        ideal=ideal,
        figures={
            "before": plain_values(found.before()),
            "after": plain_values(found.figures()),
            "chance": plain_values(found.blind()),
            "ideal": grid_figures(ideal, mask, untouched),
        },
        measured=found,
    )


def told_alone(
    features: Features, mask: Bool[Tensor, "classes domains"], text: Float[Tensor, "classes dim"]
) -> dict[str, dict[str, float | None]]:
    """What a model tells of what it has forgotten, where the untouched one is not at hand.

    Args:
        features: Embeddings under the model.
        mask: The cells that it has forgotten.
        text: Its classifier.

    Returns:
        "after" and "chance": every figure, None where it takes the untouched model to tell.
    """
    model = Model(features.embeddings, text)
    found = measure(model, model, features.labels, features.domains, mask)
    alone = replace(found.evidence, before=None, told_before=None)
    return {
        "after": plain_values(figures(alone)),
        "chance": plain_values(blind_figures(alone)),
    }


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
