"""`carry_out`: a plan made into an edit, folded in, proven and measured, in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nullspace_unlearn.certificate import Certificate
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source, apart, rows_apart
from nullspace_unlearn.edit import DEEPER, Edit
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.evaluate.compare import (
    Comparison,
    Lists,
    check_measurable,
    compare,
    predicted,
)
from nullspace_unlearn.evaluate.verdict import in_words
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import embed_each
from nullspace_unlearn.looks import Looks
from nullspace_unlearn.plans import Plan
from nullspace_unlearn.prototypes import Visual
from nullspace_unlearn.unlearn import certify_plan, erase


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a plan.

    Attributes:
        clip: The model without the edit.
        plan: The plan.
        edit: The edit made from it.
        edited: The model with the edit folded in.
        certificate: The proof, where the method promises one.
        measured: The untouched and the edited model on images, where there are any.
        predicted: What prototypes say in their place, where there are none.
        features: Those of the images under the untouched model, where there are any.
        left_out: How many images were left out of the figures, since the edit was made of them.
        seconds: Time to look at what images look like ("prototypes"), and to make the edit and
            fold it in ("erase").
    """

    clip: Clip
    plan: Plan
    edit: Edit
    edited: Clip
    certificate: Certificate | None
    measured: Comparison | None
    predicted: Comparison | None
    features: Features | None
    left_out: int
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values: what the edit says of itself, the proof, the figures and their verdict."""
        said = {
            **self.edit.provenance,
            "side": self.plan.side,
            "parameter": self.edited.changed,
            "spectrum": self.edit.spectrum().tolist(),
        }
        if self.certificate is not None:
            said["certificate"] = _proof(self.certificate, self.plan.forget.names)
        if self.measured is not None and self.features is not None:
            said["data"] = self.features.provenance.get("images")
            said |= {**self.measured.to_json(), **in_words(self.measured)}
            said["left_out"] = self.left_out
        if self.predicted is not None:
            said["predicted"] = {**self.predicted.to_json(draws=0), **in_words(self.predicted)}
        return said


def carry_out(
    clip: Clip,
    plan: Plan,
    *,
    strength: float = 1.0,
    numbers: Mapping[str, Any] | None = None,
    looks: Looks | None = None,
    reported: Source | None = None,
    lists: Lists | None = None,
    batch_size: int = 64,
    workers: int = 2,
    quiet: bool = False,
) -> Outcome:
    """Make the edit of a plan, fold it in, prove what can be proven, measure what can be measured.

    Args:
        clip: The model; it is not changed.
        plan: The plan.
        strength: As for `erase`, and so `numbers`.
        numbers: Some of the method's numbers.
        looks: What visual prototypes are made of, and what the edit reads; absent: as the method
            has them.
        reported: Images or features to measure on, less those that prototypes are made of; they
            are embedded by the edited model too where an edit does not show on embeddings. Absent:
            prototypes predict what they can.
        lists: The names that images choose from; absent: as `compare` has them.
        batch_size: Images per forward pass when measuring.
        workers: Threads that read images ahead.
        quiet: Whether to leave out progress bars when measuring.

    Returns:
        The outcome; nothing has been written.

    Raises:
        ValueError: As `Looks.make`, `erase`, `Edit.fold` and `compare`; or if no image is left.
    """
    started = time.perf_counter()
    looks = (looks or Looks()).reading(clip, plan, reported)
    visual, reported, left_out = _look(clip, plan, looks, reported)
    looked = time.perf_counter()
    edit = erase(clip, plan, strength=strength, numbers=numbers, visual=visual, space=looks.space)
    edited = edit.fold(clip, plan.side)
    seconds = {"prototypes": looked - started, "erase": time.perf_counter() - looked}
    proof = certify_plan(edited, plan) if METHODS[plan.method].certified else None
    measured = foretold = features = None
    if reported is not None:
        looking = (clip, edited) if edit.space in DEEPER else (clip,)
        features, *shown = embed_each(
            looking, reported, batch_size=batch_size, workers=workers, quiet=quiet,
            hidden=edit.space == "hidden",
        )  # fmt: skip
        again = shown[0] if shown else None
        measured = compare(
            clip, edited, edit, plan.side, features, plan.forget, plan.words.class_templates,
            again, lists,
        )  # fmt: skip
    else:
        foretold = predicted(clip, edited, edit, plan.side, plan.forget, plan.words, visual, lists)
    return Outcome(clip, plan, edit, edited, proof, measured, foretold, features, left_out, seconds)


def _look(
    clip: Clip, plan: Plan, looks: Looks, reported: Source | None
) -> tuple[Visual | None, Source | None, int]:
    """Prototypes, and what to report on less what they are made of, with how many that are."""
    drawn = looks.drawn(plan)
    if reported is None:
        return looks.make(clip, plan, drawn), None, 0
    reported, left_out = apart(reported, drawn)
    if left_out:
        check_measurable(plan.forget, reported)
    visual = looks.make(clip, plan, drawn)
    if drawn is None or visual is None:
        return visual, reported, left_out
    reported, alike = rows_apart(reported, visual.features)
    return visual, reported, left_out + alike


def _proof(proof: Certificate, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "holds": bool(proof.holds.all()),
        "largest_violation": float(proof.violation.max()),
        "violation": dict(zip(names, proof.violation.tolist(), strict=True)),
        "smallest_room": float(proof.room.min()),
        "means": dict(zip(names, proof.means(), strict=True)),
    }
