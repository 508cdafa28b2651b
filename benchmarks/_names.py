"""One thousand ImageNet names under a real CLIP: classes forgotten everywhere, from names alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.evaluate.asking import ALL, FOUND, Answers, Asking, way_of
from nullspace_unlearn.evaluate.figures import grid_figures, judged_ways
from nullspace_unlearn.evaluate.kept_search import Searching
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid, predict
from nullspace_unlearn.features import Features
from nullspace_unlearn.linalg import unit

Eraser = Callable[[Tensor, Tensor], Edit]

SIZES = (1, 10, 50, 100, 200)
CHOICES = {1: 40, 10: 12, 50: 6, 100: 5, 200: 4}
ERASERS: dict[str, Eraser] = {
    "hull, depth 0.01": partial(erasers.hull, depth=0.01),
    "hull, depth 0.5": partial(erasers.hull, depth=0.5),
    "hull, depth 0.9": partial(erasers.hull, depth=0.9),
    "hull": erasers.hull,
    "level": erasers.level,
    "leace, plain covariance": partial(erasers.leace, shrinkage=False),
    "nullspace": lambda forget, keep: erasers.nullspace(forget),
    "nullspace, centred": lambda forget, keep: erasers.nullspace(forget, centre=keep.mean(0)),
    "ccup, λ=10, μ=10": partial(erasers.ccup, lam=10.0, mu=10.0),
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
    """What one model makes of the images, under one choice.

    Attributes:
        kept: Accuracy on the images of all classes that stay, every class counting once.
        forgotten: Accuracy on those of forgotten classes.
        told: For each way of asking, how far what it finds exceeds what a name that says nothing
            finds, mean over the forgotten classes.
        searched: What searches by the names that stay find (`kept_search`); None where it was not
            asked for.
    """

    kept: float
    forgotten: float
    told: Mapping[str, float]
    searched: float | None = None


@dataclass(frozen=True)
class Row:
    """One method over all choices of some number of classes.

    Attributes:
        method: Its name.
        outcomes: One for each choice.
        untouched: The untouched model's, likewise.
    """

    method: str
    outcomes: tuple[Outcome, ...]
    untouched: tuple[Outcome, ...]

    def remaining(self) -> dict[str, float]:
        """What is left by each way of asking: a class has four images, so over all choices."""
        now, was = (
            {way: sum(one.told[way] for one in some) for way in some[0].told}
            for some in (self.outcomes, self.untouched)
        )
        return {way: now[way] / was[way] for way in now}

    @property
    def left(self) -> float:
        """`left` of all choices together."""
        return max(0.0, *self.remaining().values())

    @property
    def over(self) -> float:
        """`over` of all choices together."""
        return max(0.0, *(-value for value in self.remaining().values()))

    @property
    def searched(self) -> float:
        """Mean average precision of searches for names that stay, over the choices."""
        return spread([one.searched or 0.0 for one in self.outcomes]).mean

    @property
    def cost(self) -> Spread:
        """Points of accuracy lost on what stays."""
        pairs = zip(self.untouched, self.outcomes, strict=True)
        return spread([100 * (was.kept - now.kept) for was, now in pairs], high_is_good=False)


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
    """Random masks with `size` classes each, from seeds 0, 1, ..., among the odd classes.

    The numbers of `level` were picked on choices among the even ones.
    """
    masks = []
    odd = torch.arange(1, classes, 2)
    for seed in range(CHOICES[size]):
        mask = torch.zeros(classes, dtype=torch.bool)
        order = torch.randperm(len(odd), generator=torch.Generator().manual_seed(seed))
        mask[odd[order[:size]]] = True
        masks.append(mask)
    return masks


def named(rows: Float[Tensor, "classes dim"], gone: Bool[Tensor, " classes"]) -> Task:
    """The user gave the class list: keep the others, less twins of what is forgotten."""
    twin = torch.cdist(rows[gone], rows).amin(0) < _TWIN
    return Task(gone, rows[gone], rows[~twin], int((twin & ~gone).sum()))


def outcome(data: Images, gone: Bool[Tensor, " classes"], edit: Edit | None) -> Outcome:
    """What is told after an edit; every class that is not forgotten counts as kept."""
    shown = data.features.embeddings if edit is None else edit.apply(data.features.embeddings)
    asking = Asking.of(gone[:, None], data.features.labels)
    told = Answers.of(asking, shown, data.text).told()
    excess = (told.value - told.blind).mean(0)
    ways = {way: float(excess[told.ways.index(way)]) for way in judged_ways(told)}
    found = _outcome(data, gone, predict(shown, data.text), ways)
    searching = Searching.of(gone[:, None], data.features.labels)
    return replace(found, searched=float(searching.find(shown, data.text).value))


def measure(data: Images, tasks: Sequence[Task], untouched: Row, name: str, eraser: Eraser) -> Row:
    """One eraser on every choice."""
    bar = tqdm(tasks, unit="choice", desc=f"{name}, {len(tasks[0].forget)} classes")
    found = tuple(outcome(data, t.gone, eraser(t.forget, t.keep)) for t in bar)
    return Row(name, found, untouched.outcomes)


def bound(data: Images, tasks: Sequence[Task]) -> Row:
    """The untouched model."""
    found = tuple(outcome(data, t.gone, None) for t in tasks)
    return Row("untouched", found, found)


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
    header = ["forgotten", "method", "left", "over", "left by lists of 2", "of all", "by search",
              "cost, points ± sd (worst)", "kept search", "certificate"]  # fmt: skip
    lines = []
    for size, rows in found.items():
        for row in rows:
            ways, cost = row.remaining(), row.cost
            proven = METHODS.get(row.method.split(",")[0])
            lines.append(
                [
                    str(size),
                    row.method,
                    f"{row.left:.2f}",
                    f"{row.over:.2f}",
                    *(f"{ways[way]:.2f}" for way in (way_of(2), ALL, FOUND)),
                    f"{cost.mean:.2f} ± {cost.sd:.2f} ({cost.worst:.2f})",
                    f"{row.searched:.3f}",
                    "yes" if proven and proven.certified else "",
                ]
            )
    return markdown(header, lines)


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


def _outcome(data: Images, gone: Tensor, predicted: Tensor, told: Mapping[str, float]) -> Outcome:
    grid = accuracy_grid(predicted, data.features.labels, None, len(gone))
    found = grid_figures(grid, gone[:, None])
    kept, forgotten = found["kept"], found["forgotten"]
    assert kept is not None and forgotten is not None
    return Outcome(kept, forgotten, told)


def _rounded(data: Images, gone: Tensor, operator: Tensor) -> Outcome:
    embeddings = data.features.embeddings @ operator.float()
    return _outcome(data, gone, predict(embeddings, data.text), {})
