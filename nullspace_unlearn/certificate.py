"""The certificate: proof, from weights alone, that a class cannot win on any image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.erasers.hull import INWARD, nearest_kept, same_names
from nullspace_unlearn.linalg import as_float64, nearest_in_hull

TOLERANCE = 1e-5
"""Violation up to which a certificate holds; float32 weights leave about 1e-7."""


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
    """

    index: Int[Tensor, "m n"]
    weight: Float[Tensor, "m n"]
    violation: Float[Tensor, " m"]

    @property
    def holds(self) -> Bool[Tensor, " m"]:
        """`[m]`, true where the violation is within rounding of float32 weights."""
        return self.violation <= TOLERANCE


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
    # try. Where they do not, the nearest point of the edited hull says how far off the model is.
    usable = ~same_names(f, k)
    weight = f.new_zeros(len(f), len(k))
    if usable.any():
        middle = usable / usable.sum()
        weight = (1 - INWARD) * nearest_kept(f, k, usable).dense(len(k)) + INWARD * middle
    far = violation(weight, forgotten) > TOLERANCE
    if far.any():
        nearest = nearest_in_hull(forgotten[far], kept, tol=1e-12)
        weight[far] = nearest.dense(len(k))
    ordered = weight.sort(-1, descending=True)
    return Certificate(ordered.indices, ordered.values, violation(weight, forgotten))
