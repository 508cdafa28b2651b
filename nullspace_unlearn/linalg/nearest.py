"""The nearest point of a convex hull, for many points at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.linalg.bases import marked_first

# Numbers held at once by one chunk of problems.
_CHUNK = 1 << 22
# Numbers gathered at once.
_CACHE = 1 << 18
# Vertices that join a hull problem at once: many make its inner products costly, few make rounds.
_FRESH = 8


@dataclass(frozen=True, eq=False)
class HullPoint:
    """The nearest point of a convex hull to each of some points.

    Attributes:
        index: `[*batch, m, s]` vertices that support the point (padding names vertex 0).
        weight: `[*batch, m, s]` their convex weights: at least 0, sum 1, padding 0.
        point: `[*batch, m, dim]` the nearest point itself.
        gap: `[*batch, m]` optimality gap relative to the squared distance of the nearest vertex:
            `(max over vertices v of (p - x)·(v - x)) / min |p - v|²`, 0 at the exact optimum; the
            denominator is at least `1e-6 · max |v|²`, where rounding begins. The squared distance
            to `point` exceeds the least possible by at most twice this, times the denominator.
    """

    index: Int[Tensor, "*batch m s"]
    weight: Float[Tensor, "*batch m s"]
    point: Float[Tensor, "*batch m dim"]
    gap: Float[Tensor, "*batch m"]

    def __getitem__(self, index: Any) -> HullPoint:
        """Some members of the batch, or one more leading dimension by None."""
        return HullPoint(*(getattr(self, one.name)[index] for one in fields(self)))

    def reshape(self, *batch: int) -> HullPoint:
        """The same points with other leading dimensions."""
        m = self.index.shape[-2]
        return HullPoint(
            self.index.reshape(*batch, m, -1),
            self.weight.reshape(*batch, m, -1),
            self.point.reshape(*batch, m, -1),
            self.gap.reshape(*batch, m),
        )

    def of(self, rows: Float[Tensor, "*batch_or_none n any"]) -> Float[Tensor, "*batch m any"]:
        """The same convex combinations, of other rows.

        Args:
            rows: `[n, any]` or `[*batch, n, any]`, one row a vertex.

        Returns:
            `[*batch, m, any]`.
        """
        return _combined(self.index, self.weight, rows)

    def dense(self, n: int) -> Float[Tensor, "*batch m n"]:
        """The weights of all vertices, 0 for those not in use.

        Args:
            n: Number of vertices.

        Returns:
            `[*batch, m, n]`.
        """
        zeros = self.weight.new_zeros(*self.index.shape[:-1], n)
        return zeros.scatter_add_(-1, self.index, self.weight)


@dataclass(frozen=True, eq=False)
class Metric:
    """An inner product for each member of a batch: `diag(scale) - lessᵀ less`, definite.

    Attributes:
        scale: `[*batch, dim]`.
        less: `[*batch, u, dim]`, u small.
    """

    scale: Float[Tensor, "*batch dim"]
    less: Float[Tensor, "*batch u dim"]

    def __getitem__(self, index: Tensor | slice) -> Metric:
        """Some of the members."""
        return Metric(self.scale[index], self.less[index])

    def of(self, rows: Float[Tensor, "*batch k dim"]) -> Float[Tensor, "*batch k dim"]:
        """Rows as their inner products with others need them: each times the matrix."""
        return rows * self.scale[..., None, :] - (rows @ self.less.mT) @ self.less

    def products(self, rows: Float[Tensor, "*batch k dim"]) -> Float[Tensor, "*batch k k"]:
        """Inner products of the rows of each member."""
        k = rows.shape[-2]
        # Both products in one: of many small ones each has its price.
        left = rows.new_empty(*rows.shape[:-2], k + self.less.shape[-2], rows.shape[-1])
        torch.mul(rows, self.scale[..., None, :], out=left[..., :k, :])
        left[..., k:, :] = self.less
        both = left @ rows.mT
        less = both[..., k:, :]
        return both[..., :k, :] - less.mT @ less


def nearest_in_hull(
    points: Float[Tensor, "*batch m dim"],
    vertices: Float[Tensor, "*batch_or_none n dim"],
    allowed: Bool[Tensor, "*batch m_or_one n"] | None = None,
    tol: float = 1e-10,
    metric: Metric | None = None,
) -> HullPoint:
    """Nearest point of the convex hull of the vertices, for many points at once.

    Each point is first solved on the vertices nearest to it, by Wolfe's active-set algorithm (P.
    Wolfe, "Finding the nearest point in a polytope", Mathematical Programming 11, 1976), batched
    and on inner products alone. One matrix product then says which of all vertices violate the
    optimality condition; these join the ones in use, and so on until none does. It ends by that
    condition, over all vertices, not by a count of rounds, and holds no more at once than one chunk
    of points needs.

    Args:
        points: `[*batch, m, dim]`, float64.
        vertices: `[n, dim]` shared by the whole batch, or `[*batch, n, dim]`; float64.
        allowed: `[*batch, m, n]`, which vertices each point may use, or `[*batch, 1, n]` where the
            points of a member share them; absent means all. One shared vocabulary and a mask a
            request need no copy of the vocabulary.
        tol: Optimality gap at which a problem is done (see `HullPoint.gap`).
        metric: `[*batch]`, what each member measures distances in; absent: the plain one.

    Returns:
        Weights, points and optimality gaps.

    Raises:
        ValueError: If there is no vertex, or a point may use none.
        RuntimeError: If the optimality condition could not be met (not seen on finite input).
    """
    *batch, m, dim = points.shape
    n = vertices.shape[-2]
    if n == 0 or (allowed is not None and not allowed.any(-1).all()):
        raise ValueError("a hull needs at least one vertex to be nearest to; nothing is kept")
    flat = points.reshape(-1, m, dim)
    masks = None if allowed is None else allowed.reshape(-1, allowed.shape[-2], n)
    # Members that share their vertices are solved together, so many of them to a chunk.
    wide = 0 if metric is None else dim * metric.less.shape[-2]
    size = max(1, _CHUNK // (max(n, 8 * dim, wide) * m)) if vertices.ndim == 2 else 1
    measure = None
    if metric is not None:
        measure = Metric(
            metric.scale.reshape(-1, dim), metric.less.reshape(-1, *metric.less.shape[-2:])
        )
    own = None if vertices.ndim == 2 else vertices.reshape(-1, n, dim)
    solved: list[HullPoint] = []
    for start in range(0, len(flat), size):
        some = flat[start : start + size]
        mask = None
        if masks is not None:
            mask = masks[start : start + size].expand(-1, m, -1).reshape(-1, n)
        corners = vertices if own is None else own[start]
        each = None
        if measure is not None:  # one a point
            owner = torch.arange(start, start + len(some), device=points.device)
            each = measure[owner.repeat_interleave(m)]
        solved.append(_nearest(some.reshape(-1, dim), corners, mask, tol, each))
    whole = stacked(solved)
    support = whole.index.shape[-1]
    return HullPoint(
        whole.index.reshape(*batch, m, support),
        whole.weight.reshape(*batch, m, support),
        whole.point.reshape(*batch, m, dim),
        whole.gap.reshape(*batch, m),
    )


def stacked(parts: Sequence[HullPoint]) -> HullPoint:
    """Several batches of points as one, the smaller supports filled up.

    Args:
        parts: Points whose leading dimensions but the first are alike.

    Returns:
        One batch, in their order.
    """
    support = max(part.index.shape[-1] for part in parts)
    pad = torch.nn.functional.pad
    index, weight = (
        torch.cat([pad(value, (0, support - value.shape[-1])) for value in values])
        for values in ([part.index for part in parts], [part.weight for part in parts])
    )
    return HullPoint(
        index, weight, torch.cat([part.point for part in parts]), torch.cat([p.gap for p in parts])
    )


def _nearest(
    points: Tensor, vertices: Tensor, allowed: Tensor | None, tol: float, metric: Metric | None
) -> HullPoint:
    """Solve one chunk: `[p, dim]` points against `[n, dim]` vertices."""
    p, fresh = len(points), min(_FRESH, len(vertices))
    # Nearest vertices: |v - t|²/2 = |v|²/2 - v·t + const. Any vertices would do to begin with, so
    # one metric does for all points here.
    if metric is None:
        half_square = vertices.square().sum(-1) / 2
        nearness = points @ vertices.mT - half_square
    else:
        common = metric.scale.mean(0)
        half_square = vertices.square() @ common / 2
        nearness = (points * common) @ vertices.mT - half_square
    size = (2 * half_square.max()).clamp(min=torch.finfo(points.dtype).tiny)
    nearness, entering = _best(nearness, allowed, fresh)
    first = vertices[entering[:, 0]] - points
    nearest = (first * _measured(first, metric)).sum(-1)
    # A point nearer to a vertex than this is on it: below lies the rounding of the products.
    scale = nearest.clamp(min=1e-6 * size)
    usable = nearness > -torch.inf
    index = entering.new_zeros(p, 0)
    weight, point = points.new_zeros(p, 0), torch.zeros_like(points)
    gap = torch.full_like(scale, torch.inf)
    todo = torch.arange(p, device=points.device)
    for _ in range(8 * (points.shape[-1] + 2)):
        among = torch.cat([index[todo], entering], -1)
        usable = torch.cat([weight[todo] > 0, usable], -1)
        begin = torch.nn.functional.pad(weight[todo], (0, entering.shape[-1]))
        here = None if metric is None else metric[todo]
        gram = _seen_from(points[todo], vertices, among, here)
        found = _wolfe(gram, begin, usable, tol * scale[todo])
        index, weight = _keep_support(index, weight, todo, among, found)
        x = _combined(index[todo], weight[todo], vertices)
        point[todo] = x
        # Optimal where no vertex lies further along the residual than the point itself.
        residual = _measured(points[todo] - x, here)
        best, entering = _best(residual @ vertices.mT, _of(allowed, todo), fresh)
        excess = best - (residual * x).sum(-1, keepdim=True)
        gap[todo] = excess[:, 0].clamp(min=0) / scale[todo]
        # A vertex already among those in use cannot enter: what is left of its gap is rounding.
        known = ((among == entering[:, :1]) & usable).any(-1)
        going = (gap[todo] > tol) & ~known
        todo, usable = todo[going], excess[going] > 0
        if not len(todo):
            break
        # Best first, so those that no problem has a use for stand at the end.
        usable = usable[:, : int(usable.sum(-1).max())]
        entering = entering[going, : usable.shape[-1]]
    if (gap > max(tol, 1e-8)).any():
        raise RuntimeError(f"nearest point of the hull not reached: gap {float(gap.max()):.1e}")
    return HullPoint(index, weight, point, gap)


def _measured(rows: Tensor, metric: Metric | None) -> Tensor:
    """Rows `[p, dim]`, each in its own metric."""
    return rows if metric is None else metric.of(rows[:, None])[:, 0]


def _seen_from(points: Tensor, vertices: Tensor, among: Tensor, metric: Metric | None) -> Tensor:
    """Inner products `[p, k, k]` of some vertices, seen from each point."""
    k, dim = among.shape[-1], points.shape[-1]
    # So few at a time that the gathered vertices stay in the processor's cache.
    size = max(1, _CACHE // (k * dim))
    parts = []
    for start in range(0, len(points), size):
        some = slice(start, start + size)
        here = vertices[among[some]].sub_(points[some, None])
        parts.append(here @ here.mT if metric is None else metric[some].products(here))
    return torch.cat(parts) if parts else points.new_zeros(0, k, k)


def _combined(index: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Convex combinations of rows, a vertex at a time: no `[*, m, s, dim]` is ever made."""
    total = rows.new_zeros(*index.shape[:-1], rows.shape[-1])
    for i, w in zip(index.unbind(-1), weight.unbind(-1), strict=True):
        chosen = rows[i] if rows.ndim == 2 else rows.take_along_dim(i[..., None], -2)
        total.addcmul_(w[..., None], chosen)
    return total


def _of(allowed: Tensor | None, todo: Tensor) -> Tensor | None:
    return None if allowed is None else allowed[todo]


def _best(scores: Tensor, allowed: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k best vertices of each problem, best first; -inf marks those it may not use."""
    best = (scores if allowed is None else scores.masked_fill_(~allowed, -torch.inf)).topk(k)
    return best.values, best.indices


def _keep_support(
    index: Tensor, weight: Tensor, todo: Tensor, among: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """Put new weights in place of those of the problems to do, in as few slots as they need."""
    order = marked_first(found > 0)
    more = max(0, order.shape[-1] - index.shape[-1])
    index, weight = (torch.nn.functional.pad(held, (0, more)) for held in (index, weight))
    index[todo], weight[todo] = 0, 0.0
    kept = found.take_along_dim(order, -1)
    chosen = among.take_along_dim(order, -1).masked_fill(kept <= 0, 0)
    index[todo, : order.shape[-1]], weight[todo, : order.shape[-1]] = chosen, kept
    return index, weight


def _wolfe(gram: Tensor, weight: Tensor, usable: Tensor, enough: Tensor) -> Tensor:
    """Convex weights of least norm by inner products alone.

    Args:
        gram: `[p, k, k]` of the vertices, seen from each problem's point.
        weight: `[p, k]` optimal on its own support, or all zero.
        usable: `[p, k]`.
        enough: `[p]`, optimality gap at which a problem is done, not relative.

    Returns:
        `[p, k]`.
    """
    weight = weight.clone()
    square = gram.diagonal(dim1=-2, dim2=-1).masked_fill(~usable, torch.inf)
    empty = ~(weight > 0).any(-1)
    weight[empty] = torch.nn.functional.one_hot(square.argmin(-1), gram.shape[-1]).to(gram)[empty]
    todo = torch.arange(len(gram), device=gram.device)
    for _ in range(8 * gram.shape[-1]):
        slope = (gram[todo] @ weight[todo, :, None])[..., 0]
        norm = (slope * weight[todo]).sum(-1)
        low, enter = slope.masked_fill(~usable[todo], torch.inf).min(-1)
        inside = weight[todo].gather(1, enter[:, None])[:, 0] > 0
        going = (norm - low > enough[todo]) & ~inside
        todo, enter = todo[going], enter[going]
        if not len(todo):
            break
        entering = torch.zeros_like(usable[todo]).scatter_(1, enter[:, None], True)
        order = marked_first((weight[todo] > 0) | entering)
        start, new = weight[todo].take_along_dim(order, -1), entering.take_along_dim(order, -1)
        part = gram[todo[:, None, None], order[:, :, None], order[:, None, :]]
        moved = _minimise(part, start, new)
        weight[todo] = torch.zeros_like(weight[todo]).scatter_add_(1, order, moved)
        # A vertex thrown out again at once gained nothing: only rounding let it in.
        todo = todo[(new & (moved > 0)).any(-1)]
    return weight


def _minimise(gram: Tensor, weight: Tensor, entering: Tensor) -> Tensor:
    """Wolfe's minor cycle: least norm over the hull of the support, from the current weights."""
    support = (weight > 0) | entering
    current = weight.clone()
    todo = torch.arange(len(gram), device=gram.device)
    scale = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
    while len(todo):
        inside = support[todo]
        pair = inside[:, :, None] & inside[:, None, :]
        # min |Σ a p|² with Σ a = 1  <=>  (Gram + s 11ᵀ) y ∝ 1; free slots become identity rows.
        system = torch.where(pair, gram[todo] / scale[todo, None, None] + 1.0, 0.0)
        system = system + torch.diag_embed((~inside).to(gram.dtype) + 1e-14)
        right = inside.to(gram.dtype)
        affine = torch.linalg.solve(system, right[..., None])[..., 0] * right
        affine = affine / affine.sum(-1, keepdim=True)
        negative = inside & (affine <= 0)
        stuck = negative.any(-1)
        current[todo[~stuck]] = affine[~stuck]
        if not stuck.any():
            break
        todo, affine, negative = todo[stuck], affine[stuck], negative[stuck]
        old = current[todo]
        ratio = torch.where(negative, old / (old - affine), torch.inf)
        step, leaving = ratio.min(-1, keepdim=True)
        moved = (old + step * (affine - old)).clamp(min=0)
        support[todo] = (
            support[todo] & (moved > 0) & ~torch.zeros_like(negative).scatter(1, leaving, True)
        )
        current[todo] = moved * support[todo]
        current[todo] = current[todo] / current[todo].sum(-1, keepdim=True)
    return current
