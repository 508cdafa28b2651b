"""One thousand ImageNet names under a real CLIP: classes forgotten everywhere, from names alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _tables import Spread, markdown, spread
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn import erasers
from nullspace_unlearn.certificate import TOLERANCE, certify
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.figures import grid_figures
from nullspace_unlearn.evaluate.ideal import ideal_grid
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid, predict
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import harmonic_mean
from nullspace_unlearn.linalg import unit

Eraser = Callable[[Tensor, Tensor], Edit]

SIZES = (1, 10, 100)
CHOICES = 20
ERASERS: dict[str, Eraser] = {
    "hull": erasers.hull,
    "hull, strength 0.9": lambda forget, keep: erasers.hull(forget, keep).scale(0.9),
    "nullspace": lambda forget, keep: erasers.nullspace(forget),
    "nullspace, centred": lambda forget, keep: erasers.nullspace(forget, centre=keep.mean(0)),
    "leace": erasers.leace,
    "leace, plain covariance": partial(erasers.leace, shrinkage=False),
    "leace, visual side": partial(erasers.leace, side="visual"),
}
CCUP: dict[str, Eraser] = {
    f"ccup, λ={lam:g}, μ={mu:g}": partial(erasers.ccup, lam=lam, mu=mu)
    for lam in (10.0, 30.0, 100.0, 300.0)
    for mu in (3.0, 10.0, 30.0, 100.0)
}

# Two unit vectors nearer than this are one name to the model (`maillot`, `crane`, `cardigan`).
_TWIN = 1e-3


@dataclass(frozen=True, eq=False)
class Images:
    """Embedded images and the names they choose from.

    Attributes:
        features: As read from the file, with text.
    """

    features: Features

    @cached_property
    def text(self) -> Float[Tensor, "classes dim"]:
        """Prototypes in float64, renormalised (the file holds float16)."""
        assert self.features.text is not None
        return unit(self.features.text.double())

    @cached_property
    def scores(self) -> Float[Tensor, "n classes"]:
        """What the untouched model says, float32."""
        return self.features.embeddings @ self.text.float().mT

    def edited(self, edit: Edit) -> Float[Tensor, "n classes"]:
        """The scores after an edit: a low-rank update of them, much cheaper than new ones."""
        found = self.features.embeddings @ edit.read.float()
        return torch.addmm(self.scores, found, (self.text @ edit.write).float().mT, alpha=-1)


@dataclass(frozen=True, eq=False)
class Task:
    """Classes to forget, and the names whose recognition must stay.

    Attributes:
        gone: `[classes]`, true where a class is forgotten.
        forget: `[m, dim]` unit prototypes of those.
        keep: `[n, dim]` unit prototypes of the kept vocabulary.
        left_out: How many names were left out of it, as the same or nearly the same to the model.
    """

    gone: Bool[Tensor, " classes"]
    forget: Float[Tensor, "m dim"]
    keep: Float[Tensor, "n dim"]
    left_out: int


@dataclass(frozen=True)
class Outcome:
    """Accuracies after one edit, on the images of forgotten classes and of all others."""

    forgotten: float
    kept: float


@dataclass(frozen=True)
class Row:
    """One method over all choices of some number of classes.

    Attributes:
        method: Its name.
        outcomes: One for each choice.
    """

    method: str
    outcomes: tuple[Outcome, ...]

    def mean(self, name: str) -> float:
        """Mean over the choices of one of the accuracies."""
        return spread([getattr(one, name) for one in self.outcomes]).mean


@dataclass(frozen=True)
class Proof:
    """Certificates of one choice, computed from the operator as a saved weight holds it.

    Attributes:
        violation: The largest, of float32 weights.
        leak: Share of an erased direction that rounding to "float16" or "bfloat16" lets through.
        forgotten: Accuracy on forgotten classes with the operator rounded so.
    """

    violation: float
    leak: dict[str, float]
    forgotten: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether the float32 weights carry the certificate."""
        return bool(self.violation <= TOLERANCE)


def read_vocabulary(path: Path) -> Float[Tensor, "n dim"]:
    """Prototypes of a further vocabulary, float64 unit rows."""
    with np.load(path, allow_pickle=False) as arrays:
        return unit(torch.from_numpy(arrays["text_features"].astype(np.float64)))


def choose(classes: int, size: int) -> list[Tensor]:
    """`CHOICES` random masks with `size` classes each, from seeds 0, 1, ..."""
    masks = []
    for seed in range(CHOICES):
        mask = torch.zeros(classes, dtype=torch.bool)
        order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
        mask[order[:size]] = True
        masks.append(mask)
    return masks


def named(rows: Float[Tensor, "classes dim"], gone: Bool[Tensor, " classes"]) -> Task:
    """The user gave the class list: keep the others, less twins of what is forgotten."""
    twin = torch.cdist(rows[gone], rows).amin(0) < _TWIN
    return Task(gone, rows[gone], rows[~twin], int((twin & ~gone).sum()))


def outcome(data: Images, gone: Bool[Tensor, " classes"], edit: Edit | None) -> Outcome:
    """Accuracies after an edit; every class that is not forgotten counts as kept."""
    scores = data.scores if edit is None else data.edited(edit)
    return _outcome(data, gone, scores.argmax(-1))


def ideal(data: Images, gone: Bool[Tensor, " classes"]) -> Outcome:
    """What striking the forgotten names off the list would give."""
    mask, features = gone[:, None], data.features
    grid = ideal_grid(features.embeddings, data.text, features.labels, None, mask)
    found = grid_figures(grid, mask)
    return Outcome(found["forgotten"], found["kept"])


def measure(data: Images, tasks: Sequence[Task], name: str, eraser: Eraser) -> Row:
    """One eraser on every choice."""
    bar = tqdm(tasks, unit="choice", desc=f"{name}, {len(tasks[0].forget)} classes")
    return Row(name, tuple(outcome(data, t.gone, eraser(t.forget, t.keep)) for t in bar))


def bounds(data: Images, tasks: Sequence[Task]) -> list[Row]:
    """The untouched model, and the ideal."""
    return [
        Row("untouched", tuple(outcome(data, t.gone, None) for t in tasks)),
        Row("ideal", tuple(ideal(data, t.gone) for t in tasks)),
    ]


def best(rows: Sequence[Row]) -> Row:
    """The row with the most kept accuracy of those that forget, else of the best harmonic mean."""
    able = [row for row in rows if row.mean("forgotten") <= 0.01]
    if able:
        return max(able, key=lambda row: row.mean("kept"))
    return max(rows, key=lambda r: harmonic_mean([1 - r.mean("forgotten"), r.mean("kept")]))


def prove(data: Images, task: Task) -> Proof:
    """The certificate of a `hull` edit of the identity projection; what rounding brings back."""
    edit = erasers.hull(task.forget, task.keep)
    operator = edit.operator()
    halves = {name: operator.to(getattr(torch, name)) for name in ("float16", "bfloat16")}
    certificate = certify(operator.float(), None, task.forget, task.keep)
    return Proof(
        violation=float(certificate.violation.max()),
        leak={k: float((m.double() @ edit.read).norm(dim=0).max()) for k, m in halves.items()},
        forgotten={k: _rounded(data, task.gone, m).forgotten for k, m in halves.items()},
    )


def table(found: dict[int, list[Row]]) -> str:
    """Every method at every size, as Markdown."""
    header = ["forgotten", "method", "forgotten accuracy (worst)", "kept accuracy",
              "points below the ideal ± sd (worst)"]  # fmt: skip
    lines = []
    for size, rows in found.items():
        for row in rows:
            gone = spread([one.forgotten for one in row.outcomes], high_is_good=False)
            loss = losses(rows, row)
            lines.append(
                [
                    str(size),
                    row.method,
                    f"{gone.mean:.3f} ({gone.worst:.3f})",
                    f"{row.mean('kept'):.4f}",
                    f"{loss.mean:.2f} ± {loss.sd:.2f} ({loss.worst:.2f})",
                ]
            )
    return markdown(header, lines)


def losses(rows: Sequence[Row], row: Row) -> Spread:
    """Points of kept accuracy below the ideal, choice by choice."""
    top = next(one for one in rows if one.method == "ideal")
    points = [100 * (a.kept - b.kept) for a, b in zip(top.outcomes, row.outcomes, strict=True)]
    return spread(points, high_is_good=False)


def proofs_table(proofs: dict[int, list[Proof]]) -> str:
    """Certificates and rounding at every size, as Markdown."""
    header = ["forgotten", "certificate holds", "largest violation, float32",
              "leak, float16", "leak, bfloat16",
              "forgotten accuracy, float16", "forgotten accuracy, bfloat16"]  # fmt: skip
    lines = []
    for size, some in proofs.items():
        worst = [
            max(getattr(p, field)[dtype] for p in some)
            for field in ("leak", "forgotten")
            for dtype in ("float16", "bfloat16")
        ]
        lines.append(
            [
                str(size),
                f"{sum(p.holds for p in some)} of {len(some)}",
                f"{max(p.violation for p in some):.1e}",
                *(f"{value:.1e}" for value in worst[:2]),
                *(f"{value:.3f}" for value in worst[2:]),
            ]
        )
    return markdown(header, lines)


def to_json(found: dict[int, list[Row]]) -> dict[str, Any]:
    """Every choice of every method."""
    return {
        str(size): {row.method: [asdict(one) for one in row.outcomes] for row in rows}
        for size, rows in found.items()
    }


def _outcome(data: Images, gone: Tensor, predicted: Tensor) -> Outcome:
    grid = accuracy_grid(predicted, data.features.labels, None, len(gone))
    found = grid_figures(grid, gone[:, None])
    return Outcome(found["forgotten"], found["kept"])


def _rounded(data: Images, gone: Tensor, operator: Tensor) -> Outcome:
    embeddings = data.features.embeddings @ operator.float()
    return _outcome(data, gone, predict(embeddings, data.text))
