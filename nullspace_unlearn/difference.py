"""What differs between two checkpoints, and what of it a low-rank edit would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.grid import off_grid
from nullspace_unlearn.edit import Side
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes import class_prototypes

_ROUNDINGS = 8  # of an entry, which a difference of two stored matrices may be off by
_NAMES = 3  # of a direction
_AN_EDIT = 1e-3  # share of a difference that an edit of the embedding must not leave unexplained


@dataclass(frozen=True)
class Changed:
    """A tensor that differs.

    Attributes:
        key: Its name in the state_dict.
        shape: Its shape.
        distance: Frobenius norm of the difference.
        relative: The same as a share of the first one's norm.
        rank: Singular values of the difference above what rounding makes; None for vectors.
        singular_values: The largest of them, at most ten.
    """

    key: str
    shape: tuple[int, ...]
    distance: float
    relative: float
    rank: int | None
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class Direction:
    """A leading direction of what was done to embeddings, `z' = z - size (z·reads) writes`.

    Attributes:
        size: The singular value.
        reads: Names nearest to what is looked for, with the cosine of their prototype less the mean
            of all names; empty where something else than the embedding is read.
        writes: Names nearest to what is subtracted.
    """

    size: float
    reads: Mapping[str, float]
    writes: Mapping[str, float]


@dataclass(frozen=True)
class Projected:
    """What was done to a tower's final projection.

    Attributes:
        side: The tower.
        space: "embedding" where an edit `W' = W (I - read writeT)` explains it, else "hidden".
        unexplained: Share of the difference that such an edit leaves.
        directions: The leading ones.
        moved: Names whose score moves most, on the image side: `|(W' - W) t| / |W t|`.
    """

    side: Side
    space: str
    unexplained: float
    directions: tuple[Direction, ...]
    moved: Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """How two checkpoints differ.

    Attributes:
        tensors: How many the first one has.
        changed: Those that differ, the furthest first.
        only_first: Names of tensors that the second one lacks.
        only_second: Names that the first one lacks.
        reshaped: Names whose shapes differ.
        projections: What that is for the final projections that differ.
    """

    tensors: int
    changed: tuple[Changed, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    reshaped: tuple[str, ...]
    projections: tuple[Projected, ...]

    @property
    def same(self) -> bool:
        """Whether every tensor is the same."""
        return not (self.changed or self.only_first or self.only_second or self.reshaped)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"same": self.same, **asdict(self)}


def difference(
    first: Clip,
    second: Clip,
    names: Sequence[str] = (),
    templates: Sequence[str] = ("a photo of a {class}.",),
    directions: int = 5,
) -> Difference:
    """Compare two models tensor by tensor, and read what was done to their final projections.

    Args:
        first: The one before, as a rule; its text tower says what names mean.
        second: The one after.
        names: Names to look for near the directions; none: none are named.
        templates: Templates of their prompts.
        directions: How many directions of a projection are described, at most.

    Returns:
        What differs.
    """
    held, other = first.model.state_dict(), second.model.state_dict()
    both = [key for key in held if key in other]
    reshaped = tuple(key for key in both if held[key].shape != other[key].shape)
    differing = [
        key
        for key in both
        if key not in reshaped and not torch.equal(held[key], other[key].to(held[key]))
    ]  # fmt: skip
    changed = sorted((_changed(k, held[k], other[k]) for k in differing), key=lambda c: -c.relative)
    text = class_prototypes(first, names, templates).cpu() if names and differing else None
    projections = []
    for side in ("visual", "text"):
        try:
            one, two = (clip.projection(side) for clip in (first, second))
        except ValueError:
            continue
        if one.key in differing and one.weight is not None and two.weight is not None:
            weights = _folded(one.weight.double().cpu(), two.weight.double().cpu())
            pair = [replace(p, weight=w).matrix() for p, w in zip((one, two), weights, strict=True)]
            projections.append(_projected(side, pair[0], pair[1], names, text, directions))
    return Difference(
        tensors=len(held),
        changed=tuple(changed),
        only_first=tuple(key for key in held if key not in other),
        only_second=tuple(key for key in other if key not in held),
        reshaped=reshaped,
        projections=tuple(projections),
    )


def rank_of(
    moved: Float[Tensor, "rows columns"], near: Float[Tensor, "rows columns"], dtype: torch.dtype
) -> tuple[int, Float[Tensor, " r"]]:
    """Rank of a difference of two matrices that were rounded when they were stored.

    Args:
        moved: The difference, float64.
        near: One of the matrices, float64.
        dtype: What they were stored in.

    Returns:
        How many singular values are above what rounding alone makes (independent errors of an
        entry's last bits, whose largest singular value is about `sqrt(rows) + sqrt(columns)` times
        their size), and all singular values.
    """
    values = torch.linalg.svdvals(moved)
    rows, columns = moved.shape
    error = _ROUNDINGS * torch.finfo(dtype).eps * near.square().mean().sqrt()
    return int((values > error * (rows**0.5 + columns**0.5)).sum()), values


def _changed(key: str, before: Tensor, after: Tensor) -> Changed:
    one, two = (value.detach().to("cpu", torch.float64) for value in (before, after))
    distance, size = float((two - one).norm()), float(one.norm())
    rank, values = None, torch.empty(0)
    if one.ndim == 2 and before.is_floating_point():
        one, two = _folded(one, two)
        rank, values = rank_of(two - one, one, before.dtype)
    return Changed(
        key=key,
        shape=tuple(one.shape),
        distance=distance,
        relative=distance / size if size else 0.0,
        rank=rank,
        singular_values=tuple(values[: min(rank or 0, 10)].tolist()),
    )


def _projected(
    side: Side,
    before: Float[Tensor, "width dim"],
    after: Float[Tensor, "width dim"],
    names: Sequence[str],
    text: Float[Tensor, "names dim"] | None,
    most: int,
) -> Projected:
    """Read an edit off a projection before and after it."""
    lost = before - after
    edit = torch.linalg.lstsq(before, lost, driver="gelsd").solution
    unexplained = float((before @ edit - lost).norm() / lost.norm())
    embedding = unexplained < _AN_EDIT
    left, values, right = torch.linalg.svd(edit if embedding else lost, full_matrices=False)
    rank, _ = rank_of(lost, before, torch.float32)
    directions = tuple(
        Direction(
            size=float(values[i]),
            reads=_nearest(left[:, i], names, text) if embedding else {},
            writes=_nearest(right[i], names, text),
        )
        for i in range(min(rank, most, len(values)))
    )
    moved: dict[str, float] = {}
    if text is not None and side == "visual":
        shares = (lost @ text.mT).norm(dim=0) / (before @ text.mT).norm(dim=0)
        top = shares.topk(min(most, len(names)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        moved = {names[i]: share for i, share in pairs}
    space = "embedding" if embedding else "hidden"
    return Projected(side, space, unexplained, directions, moved)


def _folded(
    before: Float[Tensor, "rows columns"], after: Float[Tensor, "rows columns"]
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
    """Two matrices without the noise that folding may have added to one; see `clip.grid`.

    Where the one differs from the other with that noise by fewer directions than without, that is
    what was folded.
    """
    pairs = [(before, after), (off_grid(before), after), (before, off_grid(after))]
    ranks = [rank_of(two - one, one, torch.float32)[0] for one, two in pairs]
    return pairs[ranks.index(min(ranks))]


def _nearest(
    direction: Float[Tensor, " dim"], names: Sequence[str], text: Float[Tensor, "names dim"] | None
) -> dict[str, float]:
    """The names nearest to a line, which has no sign of its own: the nearest one's is positive."""
    if text is None or len(names) < 2:
        return {}
    cosines = unit(text - text.mean(0)) @ unit(direction[None])[0]
    order = cosines.abs().argsort(descending=True)[:_NAMES].tolist()
    sign = 1.0 if cosines[order[0]] >= 0 else -1.0
    return {names[i]: sign * float(cosines[i]) for i in order}
