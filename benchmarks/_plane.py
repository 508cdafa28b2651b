"""The plane left x cost: cells and whole domains, every eraser that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import _cells as cells
import torch
from _tables import markdown
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn import erasers, unlearn
from nullspace_unlearn.edit import Edit, Space
from nullspace_unlearn.evaluate.asking import Answers, Asking
from nullspace_unlearn.evaluate.figures import Evidence, figures, plain_values
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid, predict
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes import Visual

KINDS = {
    "cell": "One class in one domain, every cell in turn",
    "domain": "One whole domain, every domain in turn",
}
PEERS = ("nullspace", "leace", "ccup")
_NEAR = 3  # cells that paid most, named

Make = Callable[[Forget], Edit | None]


def measure(bench: cells.Bench, kind: str, few: int) -> dict[str, list[dict[str, Any]]]:
    """Every method on every request of a kind, from no image and from a few real ones."""
    f = bench.features
    asked = cells.requests(f.class_names, f.domain_names)[kind]
    pixels, images = bench.made["pixels"], bench.real[few]

    def edits(method: str, visual: Visual | None = None, space: Space | None = None) -> Make:
        def make(one: Forget) -> Edit:
            plan = bench.plan(one, method)
            return unlearn.erase(bench.clip, plan, visual=visual, space=space)

        return make

    makers: dict[str, list[Make]] = {
        "untouched": [lambda one: None],
        "neutral, pixels": [edits("neutral", pixels)],
        f"neutral, {few} images": [edits("neutral", one) for one in images],
        "gated, text": [edits("gated")],
        "gated, pixels": [edits("gated", pixels)],
        f"gated, {few} images": [edits("gated", one) for one in images],
        **{f"{peer}, text": [edits(peer)] for peer in PEERS},
    }
    if bench.mlp is not None:
        makers["neutral, pixels, hidden"] = [edits("neutral", pixels, "hidden")]
        makers[f"neutral, {few} images, hidden"] = [
            edits("neutral", one, "hidden") for one in images
        ]
    found = {}
    for name, some in makers.items():
        bar = tqdm([(make, one) for make in some for one in asked], desc=f"{kind}: {name}")
        found[name] = [
            judged(bench.embeddings(make(one)), f, bench.classes, one) for make, one in bar
        ]
    return found


def judged(
    after: Float[Tensor, "n dim"],
    before: Features,
    classes: Float[Tensor, "classes dim"],
    request: Forget,
) -> dict[str, Any]:
    """The figures of one request, the most named cell that was to go, and who paid most."""
    labels, domains = before.labels, before.domains
    assert domains is not None
    mask = request.mask(before.class_names, before.domain_names)
    asking = Asking.of(mask, labels, domains)
    told, was = (Answers.of(asking, z, classes).told() for z in (after, before.embeddings))
    grid, untouched = (
        accuracy_grid(predict(z.float(), classes.float()), labels, domains, *mask.shape)
        for z in (after, before.embeddings)
    )
    said = plain_values(
        figures(Evidence(mask, grid.count, grid.accuracy, untouched.accuracy, told, was))
    )
    loss = (untouched.accuracy - grid.accuracy).masked_fill(mask, -torch.inf)
    paid = [divmod(int(i), mask.shape[1]) for i in loss.flatten().topk(_NEAR).indices]
    return {
        "request": [*request.classes, *request.domains],
        **{key: said[key] for key in ("left", "over", "kept", "worst_kept", "cost")},
        "most_named": float(grid.accuracy[mask].max()),
        "paid": [
            [before.class_names[c], before.domain_names[d], float(loss[c, d])] for c, d in paid
        ],
    }


def thumbnails(features: Features, each: int, draws: int) -> dict[str, list[dict[str, Any]]]:
    """A real CLIP's photos and thumbnails: a few images a cell, nothing but z to read."""
    assert features.domains is not None and features.text is not None
    classes = unit(features.text.double())
    cell = features.labels * len(features.domain_names) + features.domains
    found: dict[str, list[dict[str, Any]]] = {}
    for draw in range(draws):
        order = torch.randperm(len(cell), generator=torch.Generator().manual_seed(draw))
        shown = torch.zeros(len(cell), dtype=torch.bool)
        for one in cell.unique():
            shown[order[cell[order] == one][:each]] = True
        rest = _rows(features, ~shown)
        given = (features.embeddings[shown].double(), features.labels[shown])
        given = (*given, features.domains[shown])
        for kind in KINDS:
            asked = cells.requests(features.class_names, features.domain_names)[kind]
            for request in asked:
                mask = request.mask(features.class_names, features.domain_names)
                numbers = erasers.choose_neutral(*given, classes, mask)
                edits = {
                    "neutral": erasers.neutral(*given, mask, numbers=numbers),
                    "gated": erasers.gated(
                        *given, classes, mask, numbers=erasers.leave_out(*given, classes, mask)
                    ),
                }
                for name, edit in edits.items():
                    after = edit.apply(rest.embeddings.double())
                    said = judged(after, rest, classes, request)
                    found.setdefault(f"{kind}: {name}, {each} images, z", []).append(said)
                said = judged(rest.embeddings, rest, classes, request)
                found.setdefault(f"{kind}: untouched", []).append(said)
    return found


def _rows(features: Features, kept: Tensor) -> Features:
    assert features.domains is not None
    return replace(
        features,
        embeddings=features.embeddings[kept],
        labels=features.labels[kept],
        domains=features.domains[kept],
    )


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Means over the requests; in brackets the worst of them."""
    header = ["method", "left", "over", "kept", "cost", "worst kept cell", "most named cell"]
    lines = []
    for name, rows in found.items():
        means = {key: _mean(rows, key) for key in (*_FIGURES, "cost")}
        worst = {key: max(row[key] for row in rows) for key in ("left", "over", "cost")}
        lines.append(
            [
                name,
                f"{means['left']:.2f} ({worst['left']:.2f})",
                f"{means['over']:.2f} ({worst['over']:.2f})",
                f"{means['kept']:.3f}",
                f"{means['cost']:.1f} ({worst['cost']:.1f})",
                f"{means['worst_kept']:.2f}",
                f"{means['most_named']:.2f}",
            ]
        )
    return markdown(header, lines)


_FIGURES = ("left", "over", "kept", "worst_kept", "most_named")


def paid(rows: Sequence[Mapping[str, Any]], most: int = 5) -> str:
    """The cells that paid most over all requests."""
    all_ = [(loss, c, d, row["request"]) for row in rows for c, d, loss in row["paid"]]
    said = [
        f"{'/'.join(request)}: {c}/{d} {-100 * loss:+.0f}"
        for loss, c, d, request in sorted(all_, reverse=True)[:most]
    ]
    return "; ".join(said)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
