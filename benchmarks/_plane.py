"""The plane left x cost: every request of each kind, every eraser that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import _cells as cells
import torch
from _tables import markdown
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn import erasers, unlearn
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.figures import FIGURES, plain_values
from nullspace_unlearn.evaluate.measure import Model
from nullspace_unlearn.evaluate.measure import measure as evaluated
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes import Visual

KINDS = {
    "cell": "One class in one domain, every cell in turn",
    "domain": "One whole domain, every domain in turn",
    "global": "One class everywhere, every class in turn",
}
TEXT = {"cell": ("gated", "nullspace", "leace", "ccup")}
TEXT["domain"], TEXT["global"] = TEXT["cell"], ("hull", "level", "nullspace", "leace", "ccup")
"""What is measured from prompts alone."""

SHOWN = ("left", "over", "cost", "kept", "kept_search", "worst_kept", "balance")
BLIND = "knows nothing of it"
"""The row of a model that cannot tell what is forgotten."""

_NEAR = 3  # cells that paid most, named
_MANY = 20  # requests of which nine tenths are worth a figure

Make = Callable[[Forget], Edit | None]
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def measure(bench: cells.Bench, kind: str) -> dict[str, list[dict[str, Any]]]:
    """Every method on every request of a kind, from no image and from a few real ones."""
    f = bench.features
    asked = cells.requests(f.class_names, f.domain_names)[kind]

    def edits(method: str, visual: Visual | None = None) -> Make:
        def make(one: Forget) -> Edit:
            plan = bench.plan(one, method)
            return unlearn.erase(bench.clip, plan, visual=visual)

        return make

    makers: dict[str, Make] = {"untouched": lambda one: None}
    if kind != "global":
        some = {"pixels": bench.made["pixels"], **bench.real}
        for method, (name, visual) in product(("neutral", "gated"), some.items()):
            makers[f"{method}, {name}"] = edits(method, visual)
        for name, visual in bench.real.items():
            both = replace(visual, beside=bench.made["pixels"])
            makers[f"neutral, {name} and pictures"] = edits("neutral", both)
    makers |= {f"{method}, text": edits(method) for method in TEXT[kind]}
    found = {}
    for name, make in makers.items():
        bar = tqdm(asked, desc=f"{kind}: {name}")
        found[name] = [judged(bench.embeddings(make(one)), f, bench.classes, one) for one in bar]
        if name == "untouched" and kind != "global":
            found[BLIND] = [judged(blind(f, one), f, bench.classes, one) for one in asked]
    return found


def draws(bench: cells.Bench, kind: str, real: Mapping[str, Visual]) -> dict[str, Any]:
    """`neutral` from several draws of a few real images, every request of a kind."""
    f, found = bench.features, {}
    asked = cells.requests(f.class_names, f.domain_names)[kind]
    for name, visual in real.items():
        rows = []
        for one in tqdm(asked, desc=f"{kind}: {name}"):
            edit = unlearn.erase(bench.clip, bench.plan(one, "neutral"), visual=visual)
            rows.append(judged(bench.embeddings(edit), f, bench.classes, one))
        found[name] = rows
    return found


def blind(features: Features, request: Forget) -> Float[Tensor, "n dim"]:
    """The embeddings of a model that cannot tell what is forgotten: what the figures' zero is.

    Every forgotten image gets the embedding of another image of its domain, drawn among those of
    classes that stay there, or among all where none does; kept images are untouched. With finitely
    many images it has `left` and `over` above 0, by chance alone.
    """
    assert features.domains is not None
    mask = request.mask(features.class_names, features.domain_names)
    gone = mask[features.labels, features.domains]
    rows = features.embeddings.clone()
    generator = torch.Generator().manual_seed(0)
    for domain in range(mask.shape[1]):
        here = features.domains == domain
        stay = here & ~gone
        pool = (stay if stay.any() else here).nonzero()[:, 0]
        lost = (here & gone).nonzero()[:, 0]
        rows[lost] = features.embeddings[
            pool[torch.randint(len(pool), lost.shape, generator=generator)]
        ]
    return rows


def judged(
    after: Float[Tensor, "n dim"],
    before: Features,
    classes: Float[Tensor, "classes dim"],
    request: Forget,
    classes_after: Float[Tensor, "classes dim"] | None = None,
) -> dict[str, Any]:
    """The figures of one request, and who paid most; an edit of the text side gives other names."""
    mask = request.mask(before.class_names, before.domain_names)
    named = classes if classes_after is None else classes_after
    both = ((before.embeddings, classes), (after, named))
    models = (Model(rows.float(), names.float()) for rows, names in both)
    found = evaluated(*models, before.labels, before.domains, mask)
    said, loss = plain_values(found.figures()), found.evidence.loss()
    paid = [divmod(int(i), mask.shape[1]) for i in loss.flatten().topk(_NEAR).indices]
    return {
        "request": [*request.classes, *request.domains],
        **{key: said[key] for key in SHOWN},
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
        for kind in ("cell", "domain"):
            asked = cells.requests(features.class_names, features.domain_names)[kind]
            for request in asked:
                mask = request.mask(features.class_names, features.domain_names)
                numbers = erasers.choose_neutral(*given, classes, mask)
                edits = {
                    "neutral": erasers.neutral(*given, mask, classes=classes, numbers=numbers),
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


def table(found: Rows) -> str:
    """Means over the requests; in brackets what nine of ten end below, if many, and the worst."""
    titles = {name: FIGURES[name].title for name in SHOWN}
    lines = [[name, *(_cell(rows, key) for key in titles)] for name, rows in found.items()]
    return markdown(["method", *titles.values()], lines)


def paid(rows: Sequence[Mapping[str, Any]], most: int = 5) -> str:
    """The cells that paid most over all requests."""
    all_ = [(loss, c, d, row["request"]) for row in rows for c, d, loss in row["paid"]]
    said = [
        f"{'/'.join(request)}: {c}/{d} {-100 * loss:+.0f}"
        for loss, c, d, request in sorted(all_, reverse=True)[:most]
    ]
    return "; ".join(said)


def _cell(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return "-"
    figure = FIGURES[key]
    mean = figure.written(sum(values) / len(values))
    if key not in ("left", "over", "cost"):
        return mean
    most = [max(values)]
    if len(values) >= _MANY:
        most.insert(0, torch.tensor(values).quantile(0.9).item())
    return f"{mean} ({', '.join(map(figure.written, most))})"
