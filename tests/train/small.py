"""A task that a method gets through in seconds: 4 classes, 2 domains, 3 bundled pictures a cell."""

from __future__ import annotations

import nullspace_unlearn as nsu
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.train.shots import from_bundled
from nullspace_unlearn.train.task import Task
from nullspace_unlearn.words import Words

CLASSES, DOMAINS = ("dog", "car", "tree", "fish"), ("photo", "sketch")


def request(**forget: tuple[str, ...]) -> Task:
    clip = nsu.load("nsu-mini")
    assert clip.words is not None
    names = {domain: clip.words.domains[domain] for domain in DOMAINS}
    words = Words(CLASSES, names, class_templates=clip.words.class_templates)
    shots, validation = from_bundled(clip, CLASSES, DOMAINS, 3, 3, seed=5)
    return Task(clip, Forget(**forget), words, shots, validation)
