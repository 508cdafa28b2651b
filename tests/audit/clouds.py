"""Cases whose truth is known: a few classes as clouds of features, and what was done to one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit

CLASSES, EACH, DIM = ("car", "dog", "cat", "bus", "fish"), 40, 24


def case(each: int = EACH, **views: View) -> Case:
    """The first of five classes forgotten; views in place of the untouched model's."""
    original = untouched(each)
    given = {"original": original, "edited": original, **views}
    mask = torch.tensor([True, *[False] * (len(CLASSES) - 1)])[:, None]
    return Case(mask, (Forget(["car"]),), CLASSES, ("a {class}",), quick=True, draws=100, **given)


def untouched(each: int = EACH) -> View:
    """Clouds about a mean of each class, which is what its name says."""
    means = unit(torch.randn(len(CLASSES), DIM, generator=torch.Generator().manual_seed(0)) + 0.5)
    return View(_features(means.repeat_interleave(each, 0), each, 1), means)


def never_seen(each: int = EACH) -> View:
    """The same, but for images of the first class: each is about the mean of some other."""
    view = untouched(each)
    means = view.text.repeat_interleave(each, 0)
    drawn = torch.randint(1, len(CLASSES), (each,), generator=torch.Generator().manual_seed(2))
    means[:each] = view.text[drawn]
    middle = view.text[1:].mean(0, keepdim=True)
    return View(_features(means, each, 3), torch.cat([middle, view.text[1:]]))


def struck_off(each: int = EACH) -> View:
    """The same images, and a name that says nothing."""
    view = untouched(each)
    return replace(view, text=torch.cat([view.text[1:].mean(0, keepdim=True), view.text[1:]]))


def zeroed(each: int = EACH) -> View:
    """A projection of zeros."""
    view = untouched(each)
    nothing = torch.zeros_like(view.embeddings)
    return replace(view, features=replace(view.features, embeddings=nothing))


def _features(means: Tensor, each: int, seed: int) -> Features:
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(len(CLASSES)).repeat_interleave(each)
    return Features(means + 0.08 * noise, labels, CLASSES)
