"""Batched bases, ridge, covariances, nearest point of a hull: float64, relative tolerances.

Everything takes leading batch dimensions, runs on the device its input is on, and knows nothing of
models, files or requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Numbers held at once by one chunk of problems.
_CHUNK = 1 << 22
# Numbers gathered at once.
_CACHE = 1 << 18
# Vertices that join a hull problem at once: many make its inner products costly, few make rounds.
_FRESH = 8
# Newton steps of a one-sided regression, and halvings of one; it takes some ten, and hardly any.
_ROUNDS, _HALVINGS = 200, 40


def as_float64(name: str, tensor: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """The tensor in float64, refused where a decomposition could not be trusted.

    Args:
        name: What the tensor is, for the message.
        tensor: Any real floating tensor.

    Returns:
        The same numbers in float64.

    Raises:
        ValueError: If it is not floating, or holds NaN or Inf.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a floating point tensor, got {kind}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or Inf")
    return tensor.to(torch.float64)


def unit(rows: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
    """Rows scaled to unit norm; a zero row stays zero.

    Args:
        rows: `[*any, dim]`.

    Returns:
        `[*any, dim]`, same dtype.
    """
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norm.masked_fill(norm == 0, 1)


def leading_basis(
    rows: Float[Tensor, "*batch n dim"], energy: float = 1.0, rtol: float = 1e-6
) -> tuple[Float[Tensor, "*batch dim rank"], Float[Tensor, "*batch k"]]:
    """Leading right singular vectors of the rows, with a relative rank rule.

    Directions whose singular value is at most `rtol` times the largest are never kept; of the
    others, the fewest that hold a share `energy` of the sum of squares. In a batch the rank is the
    largest any member needs, and the columns that a member does not need are zero.

    Args:
        rows: `[*batch, n, dim]`, float64; n may exceed dim and the rows may be dependent.
        energy: Share of squared singular values to keep, in (0, 1].
        rtol: Relative cut-off that separates rank from rounding.

    Returns:
        Orthonormal columns `[*batch, dim, rank]` and all singular values `[*batch, min(n, dim)]`.
    """
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    squares = singular**2
    before = squares.cumsum(-1) - squares
    total = squares.sum(-1, keepdim=True)
    # The small slack keeps energy=1 from asking for the rounding error of the sum itself.
    needed = (before < total * (energy - 1e-12)) & (singular > rtol * singular[..., :1])
    rank = int(needed.sum(-1).max()) if needed.numel() else 0
    basis = right.mT[..., :rank] * needed[..., None, :rank]
    return basis, singular


def regularised(matrix: Float[Tensor, "*batch n n"], ridge: float) -> Float[Tensor, "*batch n n"]:
    """`matrix + ridge · tr(matrix)/n · I`: a ridge that means the same at any scale.

    A zero matrix (the covariance of one name) has no scale and becomes `ridge · I`.

    Args:
        matrix: `[*batch, n, n]` positive semi-definite.
        ridge: Relative ridge, at least 0.

    Returns:
        `[*batch, n, n]`.
    """
    n = matrix.shape[-1]
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = mean.masked_fill(mean == 0, 1)
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    return matrix + ridge * mean[..., None, None] * eye


def solve_definite(
    matrix: Float[Tensor, "*batch n n"], right: Float[Tensor, "*batch n k"]
) -> Float[Tensor, "*batch n k"]:
    """`matrix⁻¹ right` for symmetric positive definite matrices, by Cholesky.

    Args:
        matrix: `[*batch, n, n]`; one matrix may serve a batch of right-hand sides.
        right: `[*batch, n, k]`.

    Returns:
        `[*batch, n, k]`.
    """
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))


def oblique_dual(
    basis: Float[Tensor, "*batch dim k"], solved: Float[Tensor, "*batch dim k"]
) -> Float[Tensor, "*batch dim k"]:
    """The dual of a basis that is least in a metric S: `W = S⁻¹B (Bᵀ S⁻¹ B)⁻¹`, so `Wᵀ B = I`.

    Of all duals it has the least `tr(Wᵀ S W)`; `I - B Wᵀ` is the oblique projection that kills B.

    Args:
        basis: `[*batch, dim, k]` columns B, float64; those that a member of a batch does not need
            are zero, and so are its dual's.
        solved: `[*batch, dim, k]`, `S⁻¹B` up to a positive factor.

    Returns:
        `[*batch, dim, k]`.
    """
    # A 1 in place of an unused column's 0 keeps the inverse finite.
    unused = torch.diag_embed((basis.abs().amax(-2) == 0).to(basis.dtype))
    return solve_definite(basis.mT @ solved + unused, solved.mT).mT


def covariance(
    rows: Float[Tensor, "*batch n dim"], weight: Float[Tensor, "*weights n"] | None = None
) -> Float[Tensor, "*out dim dim"]:
    """Covariance of the rows about their mean (divided by the total weight, not n - 1).

    Args:
        rows: `[*batch, n, dim]`, float64.
        weight: `[*weights, n]` non-negative weights, whose leading dimensions broadcast with the
            rows'; absent means equal ones.

    Returns:
        `[*out, dim, dim]`, of the broadcast leading dimensions; zero where all rows are one row.
    """
    weight = rows.new_ones(rows.shape[:-1]) if weight is None else weight
    share = (weight / weight.sum(-1, keepdim=True))[..., None]
    centred = rows - (share * rows).sum(-2, keepdim=True)
    matrix = centred.mT @ (share * centred)
    # Copies of one row differ from their mean by rounding, which no ridge must be relative to.
    spread = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    size = (share[..., 0] * rows.square().sum(-1)).sum(-1)
    return matrix.masked_fill((spread <= 1e-24 * size)[..., None, None], 0)


def group_means(
    values: Float[Tensor, n * any], group: Int[Tensor, " n"], groups: int
) -> Float[Tensor, groups * any]:
    """Mean of the values of each group.

    Args:
        values: `[n, *any]`.
        group: `[n]` which group each belongs to.
        groups: Number of groups; one without values gives NaN.

    Returns:
        `[groups, *any]`, same dtype.
    """
    total = values.new_zeros(groups, *values.shape[1:]).index_add(0, group, values)
    count = torch.bincount(group, minlength=groups)
    return total / count.reshape(-1, *(1 for _ in values.shape[1:]))


def solve_covariance_of_kept(
    rows: Float[Tensor, "*batch_or_none n dim"],
    kept: Bool[Tensor, "*batch n"],
    ridge: float,
    right: Float[Tensor, "*batch dim k"],
) -> Float[Tensor, "*batch dim k"]:
    """`n_kept⁻¹ (C + ridge · tr(C)/dim · I)⁻¹ right`, C the covariance of each member's kept rows.

    One eigendecomposition serves every request on a shared vocabulary: leaving rows out of a
    covariance is a downdate of their number plus one (for the mean), solved by Woodbury's
    identity, so neither a dim x dim matrix nor a copy of the rows is made for each request. The
    factor `n_kept⁻¹` is left in, since who wants a direction does not need it.

    Args:
        rows: `[n, dim]` shared, or `[*batch, n, dim]`; float64.
        kept: `[*batch, n]`, which rows count; at least one each.
        ridge: Relative ridge, above 0. Where all kept rows are one row, C is 0 and has no scale:
            the solution is then `right` itself.
        right: `[*batch, dim, k]`.

    Returns:
        `[*batch, dim, k]`.
    """
    dim = rows.shape[-1]
    centred = rows - rows.mean(-2, keepdim=True)
    energy, frame = torch.linalg.eigh(centred.mT @ centred)
    count = kept.sum(-1).to(rows.dtype)
    order = _marked_first(~kept)
    if rows.ndim == 2:
        left_out = centred[order]
    else:
        left_out = centred.take_along_dim(order[..., None], -2)
    left_out = left_out * (~kept).take_along_dim(order, -1)[..., None]
    shift = -left_out.sum(-2) / count[..., None]  # mean of the kept rows, about the mean of all
    update = torch.cat([left_out, (count.sqrt()[..., None] * shift)[..., None, :]], -2).mT
    total = energy.clamp(min=0).sum(-1) - update.square().sum((-2, -1))
    size = count * rows.square().sum(-1).mean(-1)
    single = total <= 1e-12 * size
    scale = (energy.clamp(min=0) + torch.where(single, 1.0, ridge * total / dim)[..., None])[
        ..., None
    ]
    # Transposed, a frame that serves the whole batch multiplies it as one matrix.
    turned, turned_update = (right.mT @ frame).mT, (update.mT @ frame).mT
    solved, solved_update = turned / scale, turned_update / scale
    core = torch.eye(update.shape[-1], dtype=rows.dtype, device=rows.device)
    core = core - turned_update.mT @ solved_update
    correction = solve_definite(core, turned_update.mT @ solved)
    back = ((solved + solved_update @ correction).mT @ frame.mT).mT
    return torch.where(single[..., None, None], right, back)


def _marked_first(marked: Bool[Tensor, "*batch n"]) -> Int[Tensor, "*batch most"]:
    """Where the marked rows of each member stand, and behind a shorter list a row not marked."""
    flat = marked.reshape(-1, marked.shape[-1])
    count = flat.sum(-1)
    most = int(count.max()) if len(flat) else 0
    row, column = flat.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    order = flat.to(torch.int8).argmin(-1, keepdim=True).repeat(1, most)
    order[row, place] = column
    return order.reshape(*marked.shape[:-1], most)


def weighted_ridge(
    rows: Float[Tensor, "n dim"],
    weight: Float[Tensor, "*batch n"],
    target: Float[Tensor, "*batch n"],
    ridge: Float[Tensor, "*batch"],
    gram: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, "*batch dim"]:
    """Minimise `Σ_i weight_i (g·row_i - target_i)² + ridge · mean|row|²/dim · |g|²` over g.

    One set of rows serves every problem of the batch. Solved through the smaller of the two normal
    equations: that of the rows that weigh anything where these are fewer than the dimensions, else
    dim x dim.

    Args:
        rows: `[n, dim]`, float64.
        weight: `[*batch, n]`, at least 0; 0 leaves a row out.
        target: `[*batch, n]`.
        ridge: `[*batch]`, above 0.
        gram: `[n, n]`, `rows @ rows.mT`, where it is at hand.

    Returns:
        `[*batch, dim]` the solutions g.
    """
    n, dim = rows.shape
    scale = ridge * rows.square().sum(-1).mean() / dim
    chosen = _marked_first(weight > 0)
    if chosen.shape[-1] < dim:
        root = weight.take_along_dim(chosen, -1).sqrt()
        if gram is None:
            picked = rows[chosen]
            system = picked @ picked.mT
        else:
            system = gram[chosen[..., :, None], chosen[..., None, :]]
        system.mul_(root[..., :, None]).mul_(root[..., None, :])
        system.diagonal(dim1=-2, dim2=-1).add_(scale[..., None])
        right = (root * target.take_along_dim(chosen, -1))[..., None]
        dual = root * solve_definite(system, right)[..., 0]
        return torch.zeros_like(weight).scatter(-1, chosen, dual) @ rows
    moment = (rows.mT * weight[..., None, :]) @ rows
    moment.diagonal(dim1=-2, dim2=-1).add_(scale[..., None])
    return solve_definite(moment, ((weight * target) @ rows)[..., None])[..., 0]


def one_sided_ridge(
    rows: Float[Tensor, "n dim"],
    weight: Float[Tensor, "*batch n"],
    low: Float[Tensor, "*batch n"],
    high: Float[Tensor, "*batch n"],
    ridge: float,
) -> Float[Tensor, "*batch dim"]:
    """Ridge regression onto intervals.

    Minimises `Σ_i weight_i dist(g·row_i, [low_i, high_i])² + ridge · mean|row|²/dim · |g|²` over g.

    A row only says at least how much, or at most; within its bounds it costs nothing. The objective
    is convex and piecewise quadratic: Newton's method on it is a weighted ridge regression on the
    rows that are out of bounds, and ends exactly when these stay the same after a whole step. A
    step that would not lower the objective enough is halved.

    Args:
        rows: `[n, dim]`, float64.
        weight: `[*batch, n]`, at least 0.
        low: `[*batch, n]`, at most `high`; -inf where there is no lower bound.
        high: `[*batch, n]`; inf where there is no upper bound.
        ridge: Relative to the rows' mean square per dimension, above 0.

    Returns:
        `[*batch, dim]` the solutions g.

    Raises:
        RuntimeError: If the bounds in force never settle (not seen on finite input).
    """
    n, dim = rows.shape
    batch = weight.shape[:-1]
    problems = [part.reshape(-1, n) for part in (weight, low, high)]
    size = max(1, _CHUNK // min(n, dim) ** 2)
    solved = [
        _one_sided(rows, w, at_least, at_most, ridge)
        for w, at_least, at_most in zip(*(part.split(size) for part in problems), strict=True)
    ]
    return torch.cat(solved).reshape(*batch, dim)


def _one_sided(rows: Tensor, weight: Tensor, low: Tensor, high: Tensor, ridge: float) -> Tensor:
    n, dim = rows.shape
    scale = ridge * rows.square().sum(-1).mean() / dim
    strength = weight.new_full(weight.shape[:-1], ridge)
    gram = rows @ rows.mT if n <= 2 * dim else None

    def beyond(value: Tensor) -> Tensor:
        return value - value.clamp(low, high)

    def cost(g: Tensor, out: Tensor) -> Tensor:
        return (weight * out.square()).sum(-1) + scale * g.square().sum(-1)

    g = rows.new_zeros(*weight.shape[:-1], dim)
    out = beyond(g @ rows.mT)
    for _ in range(_ROUNDS):
        active = out != 0
        target = torch.where(active, torch.where(out > 0, high, low), 0.0)
        step = weighted_ridge(rows, weight * active, target, strength, gram) - g
        # What the whole step would gain if no bound came into force or fell away (Armijo's rule).
        gain = cost(step, (step @ rows.mT) * active)
        share, best = torch.ones_like(g[:, :1]), cost(g, out)
        for _ in range(_HALVINGS):
            new = g + share * step
            new_out = beyond(new @ rows.mT)
            worse = cost(new, new_out) > best * (1 + 1e-12) - 1e-4 * share[:, 0] * gain
            if not worse.any():
                break
            share = torch.where(worse[:, None], share / 2, share)
        # A row that ends upon its bound may go in and out by rounding; the step is then none.
        same = (torch.sign(new_out) == torch.sign(out)).all(-1) & (share[:, 0] == 1)
        still = step.square().sum(-1) <= 1e-20 * new.square().sum(-1)
        g, out = new, new_out
        if (same | still).all():
            return g
    raise RuntimeError("one-sided ridge regression did not settle")


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


def nearest_in_hull(
    points: Float[Tensor, "*batch m dim"],
    vertices: Float[Tensor, "*batch_or_none n dim"],
    allowed: Bool[Tensor, "*batch m_or_one n"] | None = None,
    tol: float = 1e-10,
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
    size = max(1, _CHUNK // (max(n, 8 * dim) * m)) if vertices.ndim == 2 else 1
    own = None if vertices.ndim == 2 else vertices.reshape(-1, n, dim)
    solved: list[HullPoint] = []
    for start in range(0, len(flat), size):
        some = flat[start : start + size]
        mask = None
        if masks is not None:
            mask = masks[start : start + size].expand(-1, m, -1).reshape(-1, n)
        corners = vertices if own is None else own[start]
        solved.append(_nearest(some.reshape(-1, dim), corners, mask, tol))
    support = max((part.index.shape[-1] for part in solved), default=1)
    pad = torch.nn.functional.pad
    index, weight = (
        torch.cat([pad(part, (0, support - part.shape[-1])) for part in parts])
        for parts in ([part.index for part in solved], [part.weight for part in solved])
    )
    return HullPoint(
        index.reshape(*batch, m, support),
        weight.reshape(*batch, m, support),
        torch.cat([part.point for part in solved]).reshape(*batch, m, dim),
        torch.cat([part.gap for part in solved]).reshape(*batch, m),
    )


def _nearest(points: Tensor, vertices: Tensor, allowed: Tensor | None, tol: float) -> HullPoint:
    """Solve one chunk: `[p, dim]` points against `[n, dim]` vertices."""
    p, fresh = len(points), min(_FRESH, len(vertices))
    half_square = vertices.square().sum(-1) / 2
    # Nearest vertices: |v - t|²/2 = |v|²/2 - v·t + const.
    nearness, entering = _best(points @ vertices.mT - half_square, allowed, fresh)
    nearest = (vertices[entering[:, 0]] - points).square().sum(-1)
    # A point nearer to a vertex than this is on it: below lies the rounding of the products.
    size = (2 * half_square.max()).clamp(min=torch.finfo(points.dtype).tiny)
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
        gram = _seen_from(points[todo], vertices, among)
        found = _wolfe(gram, begin, usable, tol * scale[todo])
        index, weight = _keep_support(index, weight, todo, among, found)
        x = _combined(index[todo], weight[todo], vertices)
        point[todo] = x
        # Optimal where no vertex lies further along the residual than the point itself.
        residual = points[todo] - x
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


def _seen_from(points: Tensor, vertices: Tensor, among: Tensor) -> Tensor:
    """Inner products `[p, k, k]` of some vertices, seen from each point."""
    k, dim = among.shape[-1], points.shape[-1]
    # So few at a time that the gathered vertices stay in the processor's cache.
    size = max(1, _CACHE // (k * dim))
    parts = []
    for start in range(0, len(points), size):
        some = slice(start, start + size)
        here = vertices[among[some]].sub_(points[some, None])
        parts.append(here @ here.mT)
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
    order = _marked_first(found > 0)
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
        order = _marked_first((weight[todo] > 0) | entering)
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
