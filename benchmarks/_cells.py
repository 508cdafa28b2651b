"""Grids of class x domain: every request of each kind in turn, every method on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from _tables import markdown, spread
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn import erasers, unlearn
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.compare import classifier
from nullspace_unlearn.evaluate.metrics import Figures, figures, ideal_grid
from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid, predict
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import cell_prototypes
from nullspace_unlearn.unlearn import Plan
from nullspace_unlearn.words import Words

PEERS = ("nullspace", "ccup", "leace")
LAM = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
MU = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True, eq=False)
class Bench:
    """A model and embedded images to measure its edits on.

    Attributes:
        clip: The untouched model.
        features: Its embeddings of the images.
        domains: Domain name -> the word prompts use for it.
    """

    clip: Clip
    features: Features
    domains: Mapping[str, str]

    def plan(self, forget: Forget, method: str | None = None) -> Plan:
        """What `nsu erase` would do for a request."""
        return unlearn.plan(
            self.clip,
            forget,
            classes=self.features.class_names,
            domains=self.domains,
            method=method,
        )

    @cached_property
    def prototypes(self) -> Float[Tensor, "classes dim"]:
        """The zero-shot classifier."""
        templates = (self.clip.words or Words()).class_templates
        return classifier(self.clip, self.features, templates)

    def grid(self, edit: Edit | None = None) -> Grid:
        """Accuracy in each cell, after an edit if one is given."""
        embeddings = self.features.embeddings
        if edit is not None:
            embeddings = edit.apply(embeddings)
        return accuracy_grid(
            predict(embeddings, self.prototypes),
            self.features.labels,
            self.features.domains,
            len(self.features.class_names),
            len(self.features.domain_names),
        )

    def figures(self, forget: Forget, edit: Edit | None = None) -> Figures:
        """The figures of one request."""
        return figures(self.grid(edit), self._mask(forget))

    def ideal(self, forget: Forget) -> Figures:
        """The figures a perfect edit would reach."""
        f, mask = self.features, self._mask(forget)
        return figures(ideal_grid(f.embeddings, self.prototypes, f.labels, f.domains, mask), mask)

    def _mask(self, forget: Forget) -> Tensor:
        return forget.mask(self.features.class_names, self.features.domain_names)


@dataclass(frozen=True)
class Row:
    """One method over all requests of a kind.

    Attributes:
        method: Its name, with its numbers where they were searched for.
        figures: One for each request.
    """

    method: str
    figures: tuple[Figures, ...]

    @property
    def h4(self) -> float:
        """Mean of the harmonic means."""
        return spread([one.h4 for one in self.figures]).mean


def requests(classes: Sequence[str], domains: Sequence[str]) -> dict[str, list[Forget]]:
    """Every request of each kind: one cell, one class everywhere, one whole domain."""
    return {
        "cell": [Forget([c], [d]) for c in classes for d in domains],
        "global": [Forget([c]) for c in classes],
        "domain": [Forget(domains=[d]) for d in domains],
    }


def rows(bench: Bench, asked: Sequence[Forget], tune: Bench) -> list[Row]:
    """Every method on every request.

    Args:
        bench: What the figures are measured on.
        asked: The requests, all of one kind.
        tune: What the numbers of `ccup` are searched for on.

    Returns:
        The untouched model, the ideal, the method `nsu erase` would pick, its peers as they come,
        and `ccup` with the numbers that have the best mean H4 on `tune`.
    """
    own = bench.plan(asked[0]).method
    untouched = [bench.figures(one) for one in asked]
    table = [
        Row("untouched", tuple(untouched)),
        Row("ideal", tuple(bench.ideal(one) for one in asked)),
    ]
    for method in (own, *PEERS):
        edit = partial(_erase, bench, method)
        table.append(_measure(bench, method, asked, edit))
    split = {id(one): _rows_of(bench, one) for one in asked}

    def ccup(lam: float, mu: float, one: Forget) -> Edit:
        return erasers.ccup(*split[id(one)], lam=lam, mu=mu)

    grid = [(lam, mu) for lam in LAM for mu in MU]
    bar = tqdm(grid, unit="setting", desc="ccup, best numbers")
    lam, mu = max(bar, key=lambda numbers: _measure(tune, "", asked, partial(ccup, *numbers)).h4)
    table.append(_measure(bench, f"ccup, λ={lam:g}, μ={mu:g}", asked, partial(ccup, lam, mu)))
    return table


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown: means, and mean ± sd (worst) of the harmonic mean."""
    ideal = next(row for row in found if row.method == "ideal").h4
    groups = {
        "same_class": "same class, kept domains",
        "same_domain": "other classes, same domain",
        "rest": "rest",
        "kept": "all kept",
    }
    if found[0].figures[0].rest is None:  # a class everywhere or a whole domain: two groups only
        groups = {"kept": "kept"}
    h = "H4" if len(groups) > 1 else "H"
    header = ["method", "forgotten (worst)", *groups.values(), f"{h} ± sd (worst)", "of the ideal"]
    lines = []
    for row in found:
        gone = spread([one.forgotten for one in row.figures], high_is_good=False)
        h4 = spread([one.h4 for one in row.figures])
        lines.append(
            [
                row.method,
                f"{gone.mean:.3f} ({gone.worst:.2f})",
                *(f"{spread([getattr(one, g) for one in row.figures]).mean:.3f}" for g in groups),
                f"{h4.mean:.3f} ± {h4.sd:.3f} ({h4.worst:.3f})",
                f"{h4.mean / ideal:.1%}",
            ]
        )
    return markdown(header, lines)


def to_json(found: Sequence[Row], asked: Sequence[Forget]) -> dict[str, Any]:
    """The rows with every request's figures."""
    return {
        "requests": [[*one.classes, *one.domains] for one in asked],
        "methods": {row.method: [asdict(one) for one in row.figures] for row in found},
    }


def _erase(bench: Bench, method: str, forget: Forget) -> Edit:
    return unlearn.erase(bench.clip, bench.plan(forget, method))


def _measure(
    bench: Bench, name: str, asked: Sequence[Forget], edit: Callable[[Forget], Edit]
) -> Row:
    bar = tqdm(asked, unit="request", desc=name, disable=not name)
    return Row(name, tuple(bench.figures(one, edit(one)) for one in bar))


def _rows_of(bench: Bench, forget: Forget) -> tuple[Tensor, Tensor]:
    """The prototypes `nsu erase --method ccup` takes: forgotten ones, kept ones."""
    plan = bench.plan(forget, "ccup")
    if plan.forget.paradigm == "global":
        return plan.forget_rows, plan.keep_rows
    words = plan.words
    cells = cell_prototypes(
        bench.clip, words.classes, tuple(words.domains.values()), words.cell_templates
    )
    return cells[plan.mask], cells[~plan.mask]
