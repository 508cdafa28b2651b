"""Features of six classes in two domains, and edits of which the answer is known."""

from __future__ import annotations

from dataclasses import replace

import torch

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget

CLASSES = ("car", "truck", "bus", "dog", "cat", "tree")
DOMAINS = ("photo", "sketch")
EACH, DIM = 12, 40
CAR = 0


def original(each: int = EACH) -> Features:
    """Images that lie about the name of their class, and a little about their domain."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64))[0]
    axes = axes.float()
    grid = torch.ones(len(CLASSES), len(DOMAINS), each).nonzero()
    labels, domains = grid[:, 0], grid[:, 1]
    noise = torch.randn(len(grid), DIM, generator=generator) * 0.08
    rows = axes[labels] + 0.3 * axes[len(CLASSES) + domains] + noise
    text = axes[: len(CLASSES)] + 0.2 * axes[20]
    return Features(rows, labels, CLASSES, None, domains, DOMAINS, text)


def case(
    edited: Features,
    retrained: Features | None = None,
    cells: str = "everywhere",
    each: int = EACH,
    draws: int = 20,
) -> Case:
    """A case of features alone: car was to be forgotten, everywhere or in sketches."""
    mask = torch.zeros(len(CLASSES), len(DOMAINS), dtype=torch.bool)
    mask[CAR, slice(None) if cells == "everywhere" else 1] = True
    views = [
        None if one is None else View(one, one.text) for one in (original(each), edited, retrained)
    ]
    return Case(
        mask, (Forget(["car"]),), CLASSES, (), views[0], views[1], None, views[2], quick=True,
        draws=draws,
    )  # fmt: skip


def never_seen(seed: int) -> Features:
    """As of a model that never saw a car: its images lie anywhere, and so does its name."""
    generator, one = torch.Generator().manual_seed(seed), original()
    rows, text = one.embeddings.clone(), one.text.clone()
    cars = one.labels == CAR
    rows[cars] = torch.randn(int(cars.sum()), DIM, generator=generator) * DIM**-0.5
    text[CAR] = torch.randn(DIM, generator=generator) * DIM**-0.5
    return replace(one, embeddings=rows, text=text)


def nameless(one: Features) -> Features:
    """The same images, and a name that says nothing: the mean of the others."""
    return replace(one, text=torch.cat([one.text[1:].mean(0, keepdim=True), one.text[1:]]))


def zero(each: int = EACH) -> Features:
    """As of a projection of nothing but zeros."""
    one = original(each)
    return replace(one, embeddings=torch.zeros_like(one.embeddings))


def struck_off() -> Features:
    """A bias strikes the name off every list; what it is scored by is left as it was."""
    one = original()
    text = torch.cat([one.text, torch.zeros(len(CLASSES), 1)], 1)
    text = torch.nn.functional.normalize(text, dim=-1)
    text[CAR, -1] = -5.0
    rows = torch.cat([torch.nn.functional.normalize(one.embeddings, dim=-1), torch.ones(144, 1)], 1)
    return replace(one, embeddings=rows, text=text)


def decoy() -> Features:
    """Its images are drawn to a name that stays more than to their own, and nothing else."""
    one = original()
    rows = one.embeddings.clone()
    rows[one.labels == CAR] += 2 * one.text[1]
    return replace(one, embeddings=rows)


def among_others(name: int, each: int = EACH) -> Features:
    """The images of a class are some of other classes, as many of each."""
    one = original(each)
    rows = one.embeddings.clone()
    for d in range(len(DOMAINS)):
        there = ((one.labels == name) & (one.domains == d)).nonzero()[:, 0]
        for i, place in enumerate(there.tolist()):
            beside = (one.labels == 1 + i % 4) & (one.domains == d)
            rows[place] = one.embeddings[beside.nonzero()[i // 4, 0]]
    return replace(one, embeddings=rows)
