"""A task that a method gets through in seconds: 4 classes, 2 domains, 3 bundled pictures a cell."""

from __future__ import annotations

from collections.abc import Sequence

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.bundled import bundled_to_learn
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.train.shots import Shots, from_source
from nullspace_unlearn.train.task import Task
from nullspace_unlearn.words import Words

CLASSES, DOMAINS = ("dog", "car", "tree", "fish"), ("photo", "sketch")


def from_bundled(
    clip: Clip,
    classes: Sequence[str],
    domains: Sequence[str],
    shots: int,
    validation: int = 0,
    seed: int = 0,
) -> tuple[Shots, Shots]:
    """Bundled pictures to train on, and to choose the epoch by."""
    given, chosen = bundled_to_learn(shots, validation, seed, classes, domains)
    return from_source(clip, given), from_source(clip, chosen)


def request(**forget: tuple[str, ...]) -> Task:
    clip = nsu.load("nsu-mini")
    assert clip.words is not None
    names = {domain: clip.words.domains[domain] for domain in DOMAINS}
    words = Words(CLASSES, names, class_templates=clip.words.class_templates)
    shots, validation = from_bundled(clip, CLASSES, DOMAINS, 3, 3, seed=5)
    return Task(clip, Forget(**forget), words, shots, validation)
