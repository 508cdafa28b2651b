"""Grids of class x domain: every request of each kind, every method and source of prototypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from _tables import markdown, spread
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn import erasers, plans, unlearn
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.mlp import MlpFeatures
from nullspace_unlearn.edit import Edit, Space
from nullspace_unlearn.evaluate.compare import classifier
from nullspace_unlearn.evaluate.figures import grid_figures
from nullspace_unlearn.evaluate.ideal import ideal_grid
from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid, predict
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.plans import Plan
from nullspace_unlearn.prototypes import (
    Visual,
    cell_prototypes,
    from_pictures,
    from_text,
    synthesise,
)
from nullspace_unlearn.prototypes.nearness import Nearness, nearness
from nullspace_unlearn.words import Words

LAM = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
MU = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, images to measure its edits on, and prototypes that saw none of these images.

    Attributes:
        clip: The untouched model.
        features: Its embeddings and hidden features of the images.
        mlp: What its last MLP makes of them; None where it cannot be reached.
        domains: Domain -> the word prompts use for it.
        real: Draws of a few real images of each cell, by their number a cell.
    """

    clip: Clip
    features: Features
    mlp: MlpFeatures | None
    domains: Mapping[str, str]
    real: Mapping[int, Sequence[Visual]]

    @property
    def words(self) -> Words:
        """The templates in use."""
        return self.clip.words or Words()

    @cached_property
    def classes(self) -> Float[Tensor, "classes dim"]:
        """The zero-shot classifier."""
        return classifier(self.clip, self.features, self.words.class_templates)

    def plan(self, forget: Forget, method: str | None = None) -> Plan:
        """What `nsu erase` would do."""
        return plans.plan(
            self.clip,
            forget,
            classes=self.features.class_names,
            domains=self.domains,
            method=method,
        )

    def embeddings(self, edit: Edit | None = None) -> Float[Tensor, "n dim"]:
        """The images' embeddings, after an edit if one is given."""
        if edit is None:
            return self.features.embeddings
        if edit.space == "mlp":
            assert self.mlp is not None
            return self.clip.last_mlp().apply(edit, self.mlp).float()
        return edit.apply(self.features.embeddings, self.features.hidden)

    def grid(self, edit: Edit | None = None) -> Grid:
        """Accuracy in each cell, after an edit if one is given."""
        f = self.features
        shape = (len(f.class_names), len(f.domain_names))
        named = predict(self.embeddings(edit), self.classes)
        return accuracy_grid(named, f.labels, f.domains, *shape)

    @cached_property
    def made(self) -> dict[str, Visual]:
        """Prototypes made without any image."""
        given = (self.clip, self.features.class_names, self.domains, self.words.cell_templates)
        pixels = synthesise(*given)
        return {
            "closed form": from_text(*given),
            "pixels": from_pictures(
                self.clip, pixels, space="embedding" if self.mlp is None else "mlp"
            ),
        }


@dataclass(frozen=True)
class Row:
    """One method over all requests of a kind.

    Attributes:
        method: Its name, with its numbers where they were searched for.
        figures: One for each request.
    """

    method: str
    figures: tuple[dict[str, float | None], ...]

    @property
    def h4(self) -> float:
        """Mean of the harmonic means."""
        return spread([one["h4"] for one in self.figures]).mean


def requests(classes: Sequence[str], domains: Sequence[str]) -> dict[str, list[Forget]]:
    """Every request of each kind: one cell, one class everywhere, one whole domain."""
    return {
        "cell": [Forget([c], [d]) for c in classes for d in domains],
        "global": [Forget([c]) for c in classes],
        "domain": [Forget(domains=[d]) for d in domains],
    }


def measure(bench: Bench, kind: str) -> list[Row]:
    """Every source and method on every request of a kind.

    Real images come in several draws, and every request is measured once for each draw; whatever
    sees no image is measured once.
    """
    f = bench.features
    asked = requests(f.class_names, f.domain_names)[kind]
    masks = {id(one): one.mask(f.class_names, f.domain_names) for one in asked}

    def row(name: str, edit: Callable[[Forget], Edit | None]) -> Row:
        bar = tqdm(asked, unit="request", desc=f"{kind}: {name}", leave=False)
        return Row(name, tuple(grid_figures(bench.grid(edit(one)), masks[id(one)]) for one in bar))

    def erase(method: str, visual: Visual | None, space: Space = "embedding") -> Any:
        def edit(one: Forget) -> Edit:
            plan = bench.plan(one, method)
            return unlearn.erase(bench.clip, plan, visual=visual, space=space)

        return edit

    def draws(name: str, each: int, method: str, space: Space = "embedding") -> Row:
        rows = [row(name, erase(method, visual, space)) for visual in bench.real[each]]
        return Row(name, tuple(one for part in rows for one in part.figures))

    ideal = Row(
        "ideal",
        tuple(
            grid_figures(
                ideal_grid(f.embeddings, bench.classes, f.labels, f.domains, masks[id(one)]),
                masks[id(one)],
            )
            for one in asked
        ),
    )
    rows = [row("untouched", lambda one: None), ideal]
    own = bench.plan(asked[0]).method
    rows.append(row(f"{own}, text", erase(own, None)))
    if own == "gated":
        for source, visual in bench.made.items():
            rows.append(row(f"{own}, {source}", erase(own, visual)))
        rows.append(row(f"{own}, pixels, hidden", erase(own, bench.made["pixels"], "hidden")))
        if bench.mlp is not None:
            rows.append(row(f"{own}, pixels, mlp", erase(own, bench.made["pixels"], "mlp")))
        for each in bench.real:
            rows.append(draws(f"{own}, {each} images", each, own))
            rows.append(draws(f"{own}, {each} images, hidden", each, own, "hidden"))
            if bench.mlp is not None:
                rows.append(draws(f"{own}, {each} images, mlp", each, own, "mlp"))
    else:
        rows.append(row("two_sided, pixels", erase("two_sided", bench.made["pixels"])))
    rows.append(row("nullspace, text", erase("nullspace", None)))
    rows.append(row("nullspace, text + pixels", erase("nullspace", bench.made["pixels"])))
    for each in bench.real:
        rows.append(draws(f"nullspace, text + {each} images", each, "nullspace"))
    rows += [row("leace", erase("leace", None)), row("ccup", erase("ccup", None))]
    rows.append(_best_ccup(bench, asked, row))
    return rows


def _best_ccup(bench: Bench, asked: Sequence[Forget], row: Callable[..., Row]) -> Row:
    """The peer ccup with the λ and μ that have the best mean H4 on these very images."""
    words = bench.words
    cells = cell_prototypes(
        bench.clip,
        bench.features.class_names,
        tuple(bench.domains.values()),
        words.cell_templates,
    )
    plans = {id(one): bench.plan(one, "ccup") for one in asked}

    def edit(lam: float, mu: float) -> Callable[[Forget], Edit]:
        def one(forget: Forget) -> Edit:
            plan = plans[id(forget)]
            if plan.forget.paradigm == "global":
                return erasers.ccup(plan.forget_rows, plan.keep_rows, lam=lam, mu=mu)
            return erasers.ccup(cells[plan.mask], cells[~plan.mask], lam=lam, mu=mu)

        return one

    grid = [(lam, mu) for lam in LAM for mu in MU]
    rows = [row(f"ccup, best (λ={lam:g}, μ={mu:g})", edit(lam, mu)) for lam, mu in grid]
    return max(rows, key=lambda found: found.h4)


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown: means, and mean ± sd (worst) of the harmonic mean."""
    ideal = next(row for row in found if row.method == "ideal").h4
    groups = {
        "same_class": "same class, kept domains",
        "same_domain": "other classes, same domain",
        "rest": "rest",
        "kept": "all kept",
        "worst_kept": "worst kept cell",
    }
    if found[0].figures[0]["rest"] is None:  # a class everywhere or a whole domain: two groups only
        groups = {"kept": "kept", "worst_kept": "worst kept cell"}
    h = "H4" if "rest" in groups else "H"
    header = ["method", "forgotten (worst)", *groups.values(), f"{h} ± sd (worst)", "of the ideal"]
    lines = []
    for row in found:
        gone = spread([one["forgotten"] for one in row.figures], high_is_good=False)
        h4 = spread([one["h4"] for one in row.figures])
        lines.append(
            [
                row.method,
                f"{gone.mean:.3f} ({gone.worst:.2f})",
                *(f"{spread([one[g] for one in row.figures]).mean:.3f}" for g in groups),
                f"{h4.mean:.3f} ± {h4.sd:.3f} ({h4.worst:.3f})",
                f"{h4.mean / ideal:.1%}",
            ]
        )
    return markdown(header, lines)


def to_json(found: Sequence[Row], asked: Sequence[Forget]) -> dict[str, Any]:
    """The rows with every request's figures."""
    return {
        "requests": [[*one.classes, *one.domains] for one in asked],
        "methods": {row.method: list(row.figures) for row in found},
    }


def near(bench: Bench) -> dict[str, list[Nearness]]:
    """How near each source comes to the images reported on."""
    found = {name: [nearness(v.features, bench.features)] for name, v in bench.made.items()}
    for each, draws in bench.real.items():
        found[f"{each} real images"] = [nearness(v.features, bench.features) for v in draws]
    return found


def near_table(found: Mapping[str, Sequence[Nearness]]) -> str:
    """Nearness as Markdown, means over draws."""
    keys = ("cosine", "cosine_real_mean", "rank", "domain_transfer", "class_transfer")
    labels = ("cosine", "about the real mean", "rank", "probe, domain", "probe, class")
    header = ["prototypes", *(f"z: {label}" for label in labels), *(f"h: {x}" for x in labels)]
    lines = []
    for name, draws in found.items():
        values = []
        for space in ("embedding", "hidden"):
            for key in keys:
                some = [getattr(getattr(one, space), key) for one in draws]
                values.append(f"{spread(some).mean:.3f}")
        lines.append([name, *values])
    return markdown(header, lines)


def read_mlp(clip: Clip, batches: Sequence[Tensor]) -> MlpFeatures | None:
    """What the last MLP makes of images; None where it cannot be reached."""
    try:
        clip.last_mlp()
    except ValueError:
        return None
    parts = [clip.mlp_image(batch) for batch in batches]
    names = ("mlp", "residual", "deviation", "hidden", "embedding")
    return MlpFeatures(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})
