"""Restoring: what comes back when weights of the public original are put back."""

from __future__ import annotations

from dataclasses import replace

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.audit.descent import differences
from nullspace_unlearn.audit.question import NOT_MEASURED, Answer, Finding, Question
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.network import share
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.prototypes import class_prototypes


def shown(case: Case, clip: Clip) -> View:
    """Another model on the images and names of a case.

    Args:
        case: What is audited; its images are read again.
        clip: The model.
    """
    assert case.source is not None  # questions that call this need images
    features = embed(
        clip, case.source, batch_size=case.batch_size, workers=case.workers, quiet=True
    )
    return View(features, class_prototypes(clip, case.names, case.templates).float(), clip)


def with_original(edited: Clip, original: Clip, keys: frozenset[str]) -> Clip:
    """The edited model with some of the original's tensors in place of its own.

    Args:
        edited: The edited model.
        original: The untouched one.
        keys: Which tensors, by name in both models' state_dict.
    """
    held = original.model.state_dict()
    return replace(edited, model=share(edited.model, {key: held[key] for key in sorted(keys)}))


def ask(case: Case) -> Answer:
    """Put back the final projection alone; to put back all that was changed is the original.

    There is no verdict: no edit withstands this, nor does a model trained anew.

    Args:
        case: What is audited.
    """
    original, edited = case.original.clip, case.edited.clip
    assert original is not None and edited is not None  # the question needs models
    many = len(list(original.model.parameters()))
    changed = frozenset(differences(original, edited))
    findings = [
        Finding(
            "everything", "left with all of the original's weights put back", "low",
            {"edited": 1.0, "original": 1.0, "chance": 0.0}, None, len(case.labels),
        )
    ]  # fmt: skip
    said = (
        "If the original is public everything returns, by definition: whoever has it needs no "
        f"edited model. {len(changed)} of {many} tensors differ"
    )
    projection = original.projection("visual")
    held = {key for key, _ in original.model.named_parameters()}  # lacks one that the edit added
    keys = frozenset(changed & held & {projection.key})
    if keys and edited.adapter is None:
        back = case.against(shown(case, with_original(edited, original, keys))).figures["after"]
        values = {"edited": back["left"], "original": 1.0, "chance": 0.0}
        title = "left with the original's final projection put back"
        findings.append(Finding("projection", title, "low", values, None, len(case.labels)))
        said += f"; with the final projection alone put back, left is {back['left'] or 0.0:.2f}"
    return Answer(NOT_MEASURED, f"{said}.", tuple(findings))


RESTORING = Question(
    name="restoring",
    title="The original's weights put back",
    asks="If the original is public, what returns when its weights are put back?",
    paper="VL-Eraser, CVPR 2026",
    needs=frozenset({"features", "images", "models"}),
    quick=True,
    ask=ask,
)
