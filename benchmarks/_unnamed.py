"""Classes that a request did not name: a domain forgotten by pictures of some classes and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import _cells as cells
import _plane as planes
import torch
from _tables import markdown
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn import unlearn
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid, predict
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.looks import pictures_for
from nullspace_unlearn.plans import cells_needed, plan
from nullspace_unlearn.prototypes import from_pictures, imagenet_names, synthesise
from nullspace_unlearn.words import same_name

FURTHER = (0, 8)
"""How many further names pictures are made of as well."""


def measure(bench: cells.Bench, held_out: int, draws: int) -> list[dict[str, Any]]:
    """Every domain in turn, of each draw of classes that are held out, with and without names.

    Args:
        bench: The model and its images.
        held_out: How many classes no picture is made of.
        draws: How many draws of these, and of the further names.

    Returns:
        One entry a draw, number of names and domain.
    """
    f, found = bench.features, []
    whole = predict(f.embeddings, bench.classes)
    sizes = len(f.class_names), len(f.domain_names)
    before = accuracy_grid(whole, f.labels, f.domains, *sizes).accuracy
    known = {same_name(name) for name in f.class_names}
    others = [name for name in imagenet_names() if same_name(name) not in known]
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)
        hidden = torch.randperm(len(f.class_names), generator=generator)[:held_out]
        names = [others[i] for i in torch.randperm(len(others), generator=generator)]
        shown = [name for i, name in enumerate(f.class_names) if i not in hidden]
        for further in FURTHER:
            found += _of_draw(bench, hidden, shown, names[:further], before, draw)
    return found


def _of_draw(
    bench: cells.Bench,
    hidden: Tensor,
    shown: Sequence[str],
    further: Sequence[str],
    before: Float[Tensor, "classes domains"],
    draw: int,
) -> list[dict[str, Any]]:
    f, space, found = bench.features, cells.deepest(bench.clip), []
    visual = None
    for d, domain in enumerate(tqdm(f.domain_names, desc=f"draw {draw}, {len(further)} names")):
        made = plan(
            bench.clip, Forget(domains=[domain], keep=further), classes=shown,
            domains=bench.domains, images=True,
        )  # fmt: skip
        if visual is None:  # the same in every domain's request
            pictures = synthesise(
                bench.clip, *cells_needed(made), made.words.cell_templates, pictures_for(space)
            )
            visual = from_pictures(bench.clip, pictures, space=space)
        rows = bench.embeddings(unlearn.erase(bench.clip, made, visual=visual))
        named = predict(rows, bench.classes)
        after = accuracy_grid(named, f.labels, f.domains, *before.shape).accuracy
        elsewhere = torch.arange(len(f.domain_names)) != d
        taught = torch.ones(len(before), dtype=torch.bool).index_fill(0, hidden, False)
        figures = planes.judged(rows, f, bench.classes, Forget(domains=[domain]))
        found.append(
            {
                "draw": draw, "further": len(further), "domain": domain,
                "held out": [f.class_names[i] for i in hidden],
                "taken for their own": float(pictures.reached.double().mean()),
                "left": figures["left"], "over": figures["over"], "cost": figures["cost"],
                **{f"{key}, {when}": float(value.mean()) for when, grid in
                   (("before", before), ("after", after)) for key, value in (
                    ("in it, held out", grid[hidden, d]),
                    ("in it, shown", grid[taught, d]),
                    ("elsewhere, held out", grid[hidden][:, elsewhere]),
                    ("elsewhere, shown", grid[taught][:, elsewhere]))},
            }
        )  # fmt: skip
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Means over draws and domains."""
    keys = ("in it, held out", "in it, shown", "elsewhere, held out", "elsewhere, shown")
    lines = []
    for further in (None, *FURTHER):
        rows = [row for row in found if further is None or row["further"] == further]
        when = "before" if further is None else "after"

        def mean(key: str, rows: Sequence[Mapping[str, Any]] = rows) -> float:
            return sum(row[key] for row in rows) / len(rows)

        lines.append(
            [
                "untouched" if further is None else f"{further} further names",
                *(f"{mean(f'{key}, {when}'):.2f}" for key in keys),
                *(("1.00", "0", "0.0") if further is None else
                  (f"{mean('left'):.2f}", f"{mean('over'):.2f}", f"{mean('cost'):.1f}")),
            ]
        )  # fmt: skip
    header = ["pictures beside the shown classes'", *(f"named {key}" for key in keys),
              "left", "over", "cost"]  # fmt: skip
    return markdown(header, lines)
