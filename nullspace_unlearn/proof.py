"""Proof, from a model's weights alone, of what its folder says that it forgot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nullspace_unlearn.certificate import Certificate
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.erasers.hull import same_names
from nullspace_unlearn.prototypes import class_prototypes
from nullspace_unlearn.unlearn import certify_rows
from nullspace_unlearn.words import Words, same_name


@dataclass(frozen=True)
class Proven:
    """What the weights say of one forgotten name.

    Attributes:
        name: The name.
        holds: Whether it can win on no image.
        violation: How far its score is from a convex combination of kept ones; see `Certificate`.
        room: What keeps it from a tie with one of them; see `Certificate`.
        means: What that says of the name, in a line.
        weights: The kept names of that combination, those of largest weight first.
        templates: The templates that the classifier is made with.
    """

    name: str
    holds: bool
    violation: float
    room: float
    means: str
    weights: Mapping[str, float]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """What the weights say of everything forgotten everywhere, and what was assumed.

    Attributes:
        proven: One entry a forgotten name.
        kept: The names that it cannot be named before all of.
        kept_from: Who said that these stay.
        left_out: Kept names that are a forgotten one's, or the same to the model, so that a proof
            with them would say nothing.
        uncovered: Requests in some domains: a certificate covers every image, so they have none.
    """

    proven: tuple[Proven, ...]
    kept: tuple[str, ...]
    kept_from: str
    left_out: tuple[str, ...]
    uncovered: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every certificate does."""
        return all(one.holds for one in self.proven)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "holds": self.holds,
            "largest_violation": max(one.violation for one in self.proven),
            "certificates": [
                {
                    "class": one.name,
                    "holds": one.holds,
                    "violation": one.violation,
                    "room": one.room,
                    "means": one.means,
                    "weights": dict(one.weights),
                    "templates": list(one.templates),
                }
                for one in self.proven
            ],
            "assumed": {
                "kept": list(self.kept),
                "kept_from": self.kept_from,
                "left_out": list(self.left_out),
            },
            "uncovered": list(self.uncovered),
        }


def prove(
    clip: Clip, kept: Sequence[str] | None = None, templates: Sequence[str] | None = None
) -> Proof:
    """Prove that what a model was made to forget everywhere can win on no image.

    Nothing that the history says of the edits is believed: it names what to prove, and the weights
    prove it or do not.

    Args:
        clip: The model, as loaded from its folder.
        kept: Names that stay; absent: those that the history says were kept.
        templates: Class templates; absent: for each name those that the history says.

    Returns:
        The proof, or by how much it fails.

    Raises:
        ValueError: If the history names nothing that was forgotten everywhere, or nothing is kept.
    """
    history = clip.history
    if not history.requests:
        raise ValueError(
            f"{clip.source.name!r} does not say what was forgotten: it holds no recipe.yaml of "
            "nsu erase or nsu train"
        )
    uncovered = tuple(
        f"{', '.join(one.names) or 'every class'} in {', '.join(one.domains)}"
        for one in history.requests
        if one.paradigm != "global"
    )
    if not history.names:
        raise ValueError(
            f"{clip.source.name!r} forgets in some domains only; a certificate covers every image, "
            "so only classes forgotten everywhere have one"
        )
    stated = history.kept if kept is None else tuple(kept)
    gone = {same_name(name) for name in history.names}
    candidates = [name for name in stated if same_name(name) not in gone]
    asked = history.templates if templates is None else dict.fromkeys(history.names, templates)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in history.names:
        said = Words(class_templates=tuple(asked[name])).class_templates
        groups.setdefault(said, []).append(name)
    rows: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
    twins: set[str] = set()
    for said, names in groups.items():
        gone_rows, rest = class_prototypes(clip, [*names, *candidates], said).split(
            [len(names), len(candidates)]
        )
        alike = same_names(gone_rows, rest).tolist() if candidates else []
        twins |= {name for name, same in zip(candidates, alike, strict=True) if same}
        rows[said] = gone_rows, rest
    stays = torch.tensor([name not in twins for name in candidates], dtype=torch.bool)
    staying = tuple(name for name in candidates if name not in twins)
    if not staying:
        raise ValueError("nothing is kept, so there is no name to be named before it: give some")
    proven = [
        one
        for said, names in groups.items()
        for one in _proven(
            certify_rows(clip, rows[said][0], rows[said][1][stays]), names, staying, said
        )
    ]
    order = {name: i for i, name in enumerate(history.names)}
    return Proof(
        proven=tuple(sorted(proven, key=lambda one: order[one.name])),
        kept=staying,
        kept_from="the folder's recipe" if kept is None else "the caller",
        left_out=tuple(dict.fromkeys(name for name in stated if name not in staying)),
        uncovered=uncovered,
    )


def _proven(
    found: Certificate,
    names: Sequence[str],
    kept: tuple[str, ...],
    templates: tuple[str, ...],
) -> list[Proven]:
    columns = (found.holds, found.violation, found.room, found.index, found.weight)
    return [
        Proven(
            name=name,
            holds=bool(holds),
            violation=float(violation),
            room=float(room),
            means=means,
            weights={
                kept[i]: float(w)
                for i, w in sorted(zip(index, weight, strict=True), key=lambda pair: -pair[1])
                if w > 0
            },
            templates=templates,
        )
        for name, means, holds, violation, room, index, weight in zip(
            names, found.means(), *(column.tolist() for column in columns), strict=True
        )
    ]
