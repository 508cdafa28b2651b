"""The certificate: proof, from weights alone, that a class cannot win on any image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.erasers.hull import nearest_kept, same_names
from nullspace_unlearn.linalg import as_float64, nearest_in_hull

TOLERANCE = 1e-5
"""Violation up to which a certificate holds; float32 weights leave about 1e-7."""

SCOPE = (
    "It speaks of the whole list of names that stay, and of the templates of the recipe; of "
    "shorter lists, of a search by the name and of other templates it says nothing."
)
"""How far the proof goes, for a reader."""

ROOM = 1e-3
"""Room from which a certificate holds: below it a tie with a kept name is left to rounding."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """For each forgotten prototype, how its score is a convex combination of kept scores.

    The score of class c on an image with hidden feature h is `s_c = [h, 1]·u_c`, with
    `u_c = [W; b] t_c`. For convex weights a, `s_c <= max_k s_k + |[h, 1]| |u_c - Σ a_k u_k|`, so a
    zero distance proves that c never beats the best kept class, whatever the image.

    Attributes:
        index: `[m, n]` the kept classes, those of largest weight first.
        weight: `[m, n]` their convex weights.
        violation: `[m]` distance `|u_c - Σ a_k u_k|` relative to the root mean square distance of
            the kept `u_k` from their mean.
        room: `[m]` root mean square distance, by the weights, of the `u_k` that make up `Σ a_k u_k`
            from it, relative to the same. Where it is 0 the forgotten class is a copy of a kept
            one and ties with it on every image.
        depth: `[m]` how far the combination lies from the hull's nearest point (0) to its middle
            (1), as `hull` takes it; NaN where it is another one. At 1 the score of the class is the
            mean of the kept scores on every image.
    """

    index: Int[Tensor, "m n"]
    weight: Float[Tensor, "m n"]
    violation: Float[Tensor, " m"]
    room: Float[Tensor, " m"]
    depth: Float[Tensor, " m"]

    @property
    def holds(self) -> Bool[Tensor, " m"]:
        """`[m]`, true where the violation is within float32 rounding, and there is room for it."""
        return (self.violation <= TOLERANCE) & (self.room >= ROOM)

    def means(self) -> tuple[str, ...]:
        """What it says of each forgotten name, in a line; where it does not hold, why not."""
        columns = (self.violation, self.room, self.depth)
        return tuple(
            _meaning(*one) for one in zip(*(column.tolist() for column in columns), strict=True)
        )


def _meaning(violation: float, room: float, depth: float) -> str:
    if violation > TOLERANCE:
        return "on some image it may score above every name that stays"
    if room < ROOM:
        return "on every image it ties with one name that stays, and rounding decides between them"
    if depth > 1 - TOLERANCE:
        return "on every image it scores the mean of the names that stay"
    return "on every image it scores a mixture of names that stay, hence below the best of them"


def certify(
    matrix: Float[Tensor, "width dim"],
    bias: Float[Tensor, " dim"] | None,
    forget: Float[Tensor, "m dim"],
    keep: Float[Tensor, "n dim"],
) -> Certificate:
    """Compute the certificate of some classes against the rest.

    Args:
        matrix: `[width, dim]` visual projection W as saved, `z = h W + b`; the identity for a tower
            without one.
        bias: `[dim]` its bias b, if it has one.
        forget: `[m, dim]` text prototypes of forgotten names, as the saved text tower gives them.
        keep: `[n, dim]` text prototypes of kept names, likewise.

    Returns:
        Convex weights and violations.

    Raises:
        ValueError: If something is not finite or nothing is kept.
    """
    rows = as_float64("matrix", matrix)
    if bias is not None:
        rows = torch.cat([rows, as_float64("bias", bias)[None]])
    # Distances are all that matters, and QR keeps them with dim rows instead of width + 1.
    _, rows = torch.linalg.qr(rows)
    f, k = as_float64("forget", forget), as_float64("keep", keep)
    if len(k) == 0:
        raise ValueError("nothing is kept, so there is no score to stay below")
    forgotten, kept = f @ rows.mT, k @ rows.mT
    spread = (kept - kept.mean(0)).square().sum(-1).mean().sqrt()
    # A single kept class has no spread: measure against its own length then.
    scale = torch.where(spread > 0, spread, kept.norm(dim=-1).mean())

    def violation(weight: Tensor, rows: Tensor) -> Tensor:
        return (rows - weight @ kept).norm(dim=-1) / scale

    # Any convex weights prove it, and those that `hull` moved the prototypes to are the first to
    # try: a point between the nearest and the middle. Where they do not, the nearest point of the
    # edited hull says how far off the model is.
    usable = ~same_names(f, k)
    weight, depth = f.new_zeros(len(f), len(k)), f.new_full((len(f),), torch.nan)
    if usable.any():
        near = nearest_kept(f, k, usable).dense(len(k))
        middle = (usable.to(near) / usable.sum()).expand_as(near)
        way = (middle - near) @ kept
        depth = ((forgotten - near @ kept) * way).sum(-1) / way.square().sum(-1)
        depth = depth.nan_to_num(nan=1.0, posinf=1.0, neginf=0.0).clamp(0, 1)
        weight = torch.lerp(near, middle, depth[:, None])
    far = violation(weight, forgotten) > TOLERANCE
    if far.any():
        nearest = nearest_in_hull(forgotten[far], kept, tol=1e-12)
        weight[far] = nearest.dense(len(k))
        depth[far] = torch.nan
    # From the hull's own mean: the squares of what all kept names share would hide small room.
    about = kept - kept.mean(0)
    room = (weight @ about.square().sum(-1) - (weight @ about).square().sum(-1)).clamp(min=0).sqrt()
    ordered = weight.sort(-1, descending=True)
    return Certificate(
        ordered.indices, ordered.values, violation(weight, forgotten), room / scale, depth
    )
