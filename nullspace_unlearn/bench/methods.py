"""One method on one request: a closed form or a training, then the comparison it gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from nullspace_unlearn import plans, train, unlearn
from nullspace_unlearn.bench.datasets import Pool
from nullspace_unlearn.bench.recipe import Entry
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import DEEPER, Edit, Space
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.evaluate.compare import (
    EVERYWHERE,
    Comparison,
    accuracy,
    classifier,
    compare,
    compare_models,
    compared,
)
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.looks import synthesise_for
from nullspace_unlearn.plans import Plan, Texts
from nullspace_unlearn.prototypes import Visual, from_batches, from_text
from nullspace_unlearn.train import Settings, Shots, Task
from nullspace_unlearn.words import Words, same_name

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Subject:
    """The untouched model on one data set.

    Attributes:
        pool: The data set.
        clip: The model; None where a feature file stands for it.
        features: Its embeddings of the images to report on.
        words: Classes, domains and templates of the data set.
    """

    pool: Pool
    clip: Clip | None
    features: Features
    words: Words

    @cached_property
    def shown(self) -> Features:
        """The features with the untouched classifier, which need not be made again."""
        if self.clip is None:
            return self.features
        text = classifier(self.clip, self.features, self.words.class_templates)
        return replace(self.features, text=text.cpu())


@dataclass(frozen=True, eq=False)
class TrialResult:
    """What a method made of a request.

    Attributes:
        comparison: On the data set of the request.
        others: Every other data set -> accuracy before and after.
        seconds: Time to make the edit or to train, drawing and reading of images not counted.
        images: Labelled images it was given.
        log: What else there is to say; plain JSON values.
    """

    comparison: Comparison
    others: Mapping[str, tuple[float, float]]
    seconds: float
    images: int
    log: Mapping[str, Any] = field(default_factory=dict)


def run_method(
    entry: Entry, forget: Forget, own: Subject, others: Sequence[Subject], seed: int
) -> TrialResult:
    """Run one method on one request and measure it.

    Args:
        entry: The method, with its numbers.
        forget: The request.
        own: The model on the data set that the request speaks of.
        others: The same model on every other data set.
        seed: Of the images that are drawn, and of training.

    Returns:
        The outcome.

    Raises:
        ValueError: If the method cannot do it.
    """
    if own.clip is None:
        return _on_rows(entry, forget, own)
    if entry.trained:
        return _train(entry, forget, own, others, seed)
    return _erase(entry, forget, own, others, seed)


def _on_rows(entry: Entry, forget: Forget, own: Subject) -> TrialResult:
    """A closed form from the text prototypes of a feature file."""
    text = own.features.text
    assert text is not None  # `datasets` has seen to it

    def derive() -> Edit:
        given = Texts(own.words.classes, (), unit(text.double())).given([forget], EVERYWHERE)[0]
        edit = METHODS[entry.name].edit(given, entry.numbers(forget.paradigm))
        return edit if entry.strength == 1 else edit.scale(entry.strength)

    edit, seconds = _timed(derive)
    shown = own.features.embeddings
    comparison = compared(own.features, forget, (shown, text), (edit.apply(shown), text))
    return TrialResult(comparison, {}, seconds, 0)


def _erase(
    entry: Entry, forget: Forget, own: Subject, others: Sequence[Subject], seed: int
) -> TrialResult:
    clip, words, side = own.clip, own.words, entry.side
    assert clip is not None and side is not None
    # Whoever forgets a class of one data set wants the names of the others to stay as well.
    names: dict[str, str] = {}
    for name in (name for one in (own, *others) for name in one.words.classes):
        names.setdefault(same_name(name), name)
    shots = _shots(entry, own, 0, seed)[0] if entry.drawn else None

    def derive() -> tuple[Plan, Edit, Clip]:
        plan = plans.plan(
            clip,
            forget,
            classes=tuple(names.values()),
            domains=words.domains,
            templates=words.class_templates,
            method=entry.name,
            side=side,
        )
        visual = None
        if shots is not None:
            visual = _seen(clip, shots, words, space=entry.space)
        elif entry.prototypes == "closed":
            visual = from_text(clip, *plans.cells_needed(plan), plan.words.cell_templates)
        elif entry.prototypes == "pixels":
            visual = synthesise_for(clip, plan, space=entry.space, quiet=True)
        edit = unlearn.erase(
            clip, plan, strength=entry.strength, visual=visual, space=entry.space,
            numbers=entry.numbers(forget.paradigm),
        )  # fmt: skip
        return plan, edit, edit.fold(clip, side)

    (plan, edit, edited), seconds = _timed(derive)

    def after(one: Subject) -> Features:
        if edit.space in DEEPER:
            return one.pool.embed(edited, False, True)
        if entry.side == "text":
            return one.features
        return replace(one.features, embeddings=edit.apply(one.features.embeddings,
                                                           one.features.hidden))  # fmt: skip

    again = after(own) if edit.space in DEEPER else None
    before = own.features if entry.side == "text" else own.shown
    comparison = compare(
        clip, edited, edit, side, before, plan.forget, words.class_templates, again
    )
    elsewhere = {
        one.pool.name: _accuracies(one, after(one), edited if entry.side == "text" else None)
        for one in others
    }
    numbers = edit.provenance.get("numbers", {})
    return TrialResult(
        comparison, elsewhere, seconds, 0 if shots is None else len(shots), {"numbers": numbers}
    )


def _train(
    entry: Entry, forget: Forget, own: Subject, others: Sequence[Subject], seed: int
) -> TrialResult:
    assert own.clip is not None
    shots, validation = _shots(entry, own, entry.validation, seed)
    made = train.configure(entry.name, entry.texts(forget.paradigm))
    task = Task(own.clip, forget, own.words, shots, validation, seed)
    trained, seconds = _timed(lambda: train.train(made, task, Settings(), quiet=True))
    templates = own.words.class_templates
    again = own.pool.embed(trained.clip, False, True)
    comparison = compare_models(own.clip, trained.clip, own.shown, again, forget, templates)
    elsewhere = {
        one.pool.name: _accuracies(one, one.pool.embed(trained.clip, False, True), trained.clip)
        for one in others
    }
    log = {"epochs": len(trained.log), "diverged": trained.diverged}
    given = (len(shots) + len(validation)) * made.sees_images
    return TrialResult(comparison, elsewhere, seconds, given, log)


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    """What some work gives, and the wall time it took: here, whatever the method."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _shots(entry: Entry, own: Subject, validation: int, seed: int) -> tuple[Shots, Shots]:
    assert own.clip is not None  # `runner` has seen to it
    return own.pool.draw(own.clip, entry.shots, validation, seed)


def _seen(clip: Clip, shots: Shots, words: Words, space: Space) -> Visual:
    """Images that a method is given, as visual prototypes."""
    batches = (shots.read(some) for some in torch.arange(len(shots)).split(64))
    cells = (shots.labels, shots.domains, words.classes, tuple(words.domains))
    return from_batches(clip, batches, *cells, space=space, source=shots.source)


def _accuracies(one: Subject, again: Features, clip: Clip | None) -> tuple[float, float]:
    """Accuracy before and after over all images of a data set; with `clip`, by its own text."""
    templates = one.words.class_templates
    before, _ = accuracy(None, one.shown, templates)
    text = one.shown.text if clip is None else classifier(clip, again, templates)
    after, _ = accuracy(None, replace(again, text=text), templates)
    return before.acc1, after.acc1
