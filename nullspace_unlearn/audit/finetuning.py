"""Fine-tuning: how few gradient steps bring a class back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.audit.probes import Named, Split, of_each, split
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    Answer,
    Curve,
    Finding,
    Question,
    recoverable,
)
from nullspace_unlearn.audit.relearning import by_name, recovered_by
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.evaluate import figures
from nullspace_unlearn.evaluate.zeroshot import predict
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.train.losses import classify
from nullspace_unlearn.train.weights import Weights, encode_with, tower_keys

STEPS = (0, 1, 2, 4, 8, 16)
"""Gradient steps after which the forgotten images are named again."""

EACH = 8
"""Images of each class to learn from, at most."""

RATES = (1e-4, 1e-3)
"""Learning rates of Adam; at each number of steps the one that brings most back counts."""

QUICK_RATES = (1e-3,)

BATCH = 32
TESTED = 256
"""Images that are named again, at most."""


def fine_tuned(
    clip: Clip,
    images: Float[Tensor, "k 3 rows columns"],
    labels: Int[Tensor, " k"],
    text: Float[Tensor, "names dim"],
    rate: float,
    steps: Sequence[int],
    generator: torch.Generator,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Train the image tower to name images by its own text, and show it on the way.

    Args:
        clip: The model, in float32; it is not changed.
        images: `[k, 3, rows, columns]` preprocessed.
        labels: `[k]` their names.
        text: `[names, dim]` the classifier, which stays.
        rate: Learning rate of Adam (Kingma & Ba 2015).
        steps: After how many steps to show it, rising.
        generator: Draws the batches.

    Yields:
        Number of steps, and the image tower's parameters after them by name.
    """
    weights = Weights(clip.model, tower_keys(clip.model, "visual"))
    optimizer = torch.optim.Adam(weights.parameters(), lr=rate)
    rows = unit(text.double()).float().to(clip.device)
    order = torch.empty(0, dtype=torch.int64)
    done = 0
    for mark in steps:
        while done < mark:
            if len(order) < min(BATCH, len(labels)):
                order = torch.cat([order, torch.randperm(len(labels), generator=generator)])
            chosen, order = order[:BATCH], order[BATCH:]
            seen = encode_with(clip.model, weights(), images[chosen].to(clip.device))
            logits = clip.logit_scale * F.normalize(seen, dim=-1) @ rows.mT
            loss = classify(logits, labels[chosen].to(clip.device))
            if not torch.isfinite(loss):
                break  # the rate is too high; what there is now brings nothing back
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
        with torch.no_grad():
            yield mark, {key: value.detach().clone() for key, value in weights().items()}


def _read(case: Case, clip: Clip, chosen: Tensor) -> Tensor:
    """Some images of the case as a model takes them."""
    assert case.source is not None  # the question needs images
    batches = case.source.subset(chosen).batches(
        clip.preprocess, case.batch_size, case.workers, part=True
    )
    return torch.cat([batch.images for batch in batches])


def _line(case: Case, view: View, parts: Split, shots: Tensor, purpose: str) -> list[Named]:
    """What is named after each number of steps, at the learning rate that brings most back."""
    clip = view.clip
    assert clip is not None  # the question needs models
    images, tests = (_read(case, clip, some) for some in (shots, parts.tests))
    best: list[Named] = []
    for rate in QUICK_RATES if case.quick else RATES:
        found = []
        generator = case.generator("finetuning", purpose)
        for _, new in fine_tuned(
            clip, images, case.labels[shots], view.text, rate, STEPS, generator
        ):
            with torch.no_grad():
                rows = torch.cat(
                    [
                        encode_with(clip.model, new, some.to(clip.device)).cpu()
                        for some in tests.split(case.batch_size)
                    ]
                )
            found.append(Named.of(predict(rows, view.text), parts.asking))
        best = found if not best else [max(two, key=_told) for two in zip(best, found, strict=True)]
    return best


def _told(one: Named) -> float:
    return float(one.told.nan_to_num(nan=-1.0))


def ask(case: Case) -> Answer:
    """Fine-tune every model, on images of all classes and on images of what stays alone.

    Args:
        case: What is audited.
    """
    models = {name: view for name, view in case.views() if view.clip is not None}
    clips = [view.clip for view in models.values() if view.clip is not None]
    dtypes = {parameter.dtype for clip in clips for parameter in clip.model.parameters()}
    if dtypes != {torch.float32}:
        return Answer.unmeasured("Fine-tuning takes models in float32: load them with that.")
    parts = split(case.mask, case.labels, case.domains, case.generator("finetuning"))
    parts = parts.thinned(TESTED)
    named = float(by_name(case, parts).told)
    if named < figures.TOLD:
        return Answer.unmeasured("The untouched model's name does not tell these images.")
    stays = ~case.gone
    stays[parts.tests] = False
    kinds = {
        "all": ("images of each class", parts.few(case.labels, EACH, 0)),
        "kept": ("images of each class that stays", of_each(stays, case.labels, EACH)),
    }
    curves, findings, first = [], [], {}
    for kind, (what, shots) in kinds.items():
        lines = {name: _line(case, view, parts, shots, kind) for name, view in models.items()}
        told = {name: [_told(one) for one in line] for name, line in lines.items()}
        values = {name: [float(one.value) for one in line] for name, line in lines.items()}
        chance = [float(one.chance) for one in lines["edited"]]
        curves.append(
            Curve(
                f"finetuned_{kind}", f"Fine-tuned on {EACH} {what}", "gradient steps",
                "share of the forgotten images that get their name", STEPS,
                {**values, "chance": chance},
            )
        )  # fmt: skip
        last: dict[str, float | None] = {name: line[-1] for name, line in values.items()}
        findings.append(
            Finding(
                f"finetuned_{kind}", f"named after {STEPS[-1]} steps on {EACH} {what}", "chance",
                {**last, "chance": chance[-1]}, None, len(parts.tests),
            )
        )  # fmt: skip
        steps = recovered_by(STEPS, told["edited"], named, told.get("retrained"))
        if steps is not None:
            first[kind] = steps
    if "kept" in first:
        said = f"{first['kept']} gradient steps on images that stay bring it back."
        return Answer(recoverable(0), said, tuple(findings), tuple(curves))
    if "all" in first:
        said = f"{first['all']} gradient steps on {EACH} images of each class bring it back."
        return Answer(recoverable(EACH), said, tuple(findings), tuple(curves))
    than = ", no more than in the model that never saw it" if "retrained" in models else ""
    said = f"{STEPS[-1]} gradient steps do not bring it back{than}."
    return Answer(FORGOTTEN, said, tuple(findings), tuple(curves))


FINETUNING = Question(
    name="finetuning",
    title="Fine-tuning",
    asks="How few gradient steps bring the class back, on a few of its images or on none?",
    paper="arXiv 2505.22310",
    needs=frozenset({"features", "images", "models"}),
    quick=False,
    ask=ask,
)
