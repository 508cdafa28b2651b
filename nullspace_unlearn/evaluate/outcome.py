"""`carry_out`: a plan made into an edit, folded in, proven and measured, in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from nullspace_unlearn.certificate import Certificate
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import Edit, Space
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.evaluate.compare import Comparison, Lists, compare, predicted
from nullspace_unlearn.evaluate.verdict import in_words
from nullspace_unlearn.features import Features
from nullspace_unlearn.plans import Plan
from nullspace_unlearn.prototypes import Visual
from nullspace_unlearn.unlearn import certify_plan, erase


@runtime_checkable
class Embedding(Protocol):
    """What shows a model the images that an edit is measured on."""

    def __call__(self, clip: Clip, *, hidden: bool) -> Features:
        """Features under a model, with the hidden ones where they are wanted."""
        ...


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a plan.

    Attributes:
        plan: The plan.
        edit: The edit made from it.
        edited: The model with the edit folded in.
        certificate: The proof, where the method promises one.
        measured: The untouched and the edited model on images, where there are any.
        predicted: What prototypes say in their place, where there are none.
        images: What the images are called.
        seconds: Time to make the edit and fold it in.
    """

    plan: Plan
    edit: Edit
    edited: Clip
    certificate: Certificate | None
    measured: Comparison | None
    predicted: Comparison | None
    images: str | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values: what the edit says of itself, the proof, the figures and their verdict."""
        said = {
            **self.edit.provenance,
            "side": self.plan.side,
            "parameter": [change.key for change in self.edited.changes],
        }
        if self.certificate is not None:
            said["certificate"] = _proof(self.certificate, self.plan.forget.names)
        if self.measured is not None:
            said |= {"data": self.images, **self.measured.to_json(), **in_words(self.measured)}
        if self.predicted is not None:
            said["predicted"] = {**self.predicted.to_json(draws=0), **in_words(self.predicted)}
        return said


def carry_out(
    clip: Clip,
    plan: Plan,
    *,
    strength: float = 1.0,
    numbers: Mapping[str, Any] | None = None,
    visual: Visual | None = None,
    space: Space | None = None,
    embed: Embedding | None = None,
    lists: Lists | None = None,
) -> Outcome:
    """Make the edit of a plan, fold it in, prove what can be proven, measure what can be measured.

    Args:
        clip: The model; it is not changed.
        plan: The plan.
        strength: As for `erase`, and so `numbers`, `visual` and `space`.
        numbers: Some of the method's numbers.
        visual: Visual prototypes.
        space: What the edit reads.
        embed: A model, and whether its hidden features are wanted -> features of the images to
            measure on; asked again of the edited model where an edit does not show on embeddings.
            Absent: no images, so that prototypes predict what they can.
        lists: The names that images choose from; absent: as `compare` has them.

    Returns:
        The outcome; nothing has been written.

    Raises:
        ValueError: As `erase`, `Edit.fold` and `compare`.
    """
    started = time.perf_counter()
    edit = erase(clip, plan, strength=strength, numbers=numbers, visual=visual, space=space)
    edited = edit.fold(clip, plan.side)
    seconds = time.perf_counter() - started
    proof = certify_plan(edited, plan) if METHODS[plan.method].certified else None
    measured = foretold = images = None
    if embed is not None:
        features = embed(clip, hidden=edit.space == "hidden")
        again = embed(edited, hidden=False) if edit.space == "mlp" else None
        measured = compare(
            clip, edited, edit, plan.side, features, plan.forget, plan.words.class_templates,
            again, lists,
        )  # fmt: skip
        images = features.provenance.get("images")
    elif edit.space != "mlp":
        foretold = predicted(clip, edited, edit, plan.side, plan.forget, plan.words, visual, lists)
    return Outcome(plan, edit, edited, proof, measured, foretold, images, seconds)


def _proof(proof: Certificate, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "holds": bool(proof.holds.all()),
        "largest_violation": float(proof.violation.max()),
        "violation": dict(zip(names, proof.violation.tolist(), strict=True)),
        "smallest_room": float(proof.room.min()),
        "means": dict(zip(names, proof.means(), strict=True)),
    }
