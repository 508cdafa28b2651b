"""Covariances and what is solved with them: ridge regressions, duals, one vocabulary many ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.linalg.bases import marked_first

# Numbers held at once by one chunk of problems.
_CHUNK = 1 << 22
# Least pivot of a downdate that is trusted: about this share of double precision's digits is left.
_PIVOT = 1e-6
# Newton steps of a one-sided regression, and halvings of one; it takes some ten, and hardly any.
_ROUNDS, _HALVINGS = 200, 40


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


@dataclass(frozen=True, eq=False)
class Spread:
    """How rows lie about their mean, decomposed once for all that is asked of it.

    Attributes:
        centred: `[*batch, n, dim]` the rows less their mean.
        energy: `[*batch, dim]` eigenvalues of their scatter matrix, at least 0, in ascending order.
        frame: `[*batch, dim, dim]` its eigenvectors, in columns.
    """

    centred: Float[Tensor, "*batch n dim"]
    energy: Float[Tensor, "*batch dim"]
    frame: Float[Tensor, "*batch dim dim"]

    @classmethod
    def of(cls, rows: Float[Tensor, "*batch n dim"]) -> Spread:
        """Decompose the scatter of some rows, float64."""
        centred = rows - rows.mean(-2, keepdim=True)
        energy, frame = torch.linalg.eigh(centred.mT @ centred)
        return cls(centred, energy.clamp(min=0), frame)


def solve_covariance_of_kept(
    rows: Float[Tensor, "*batch_or_none n dim"],
    kept: Bool[Tensor, "*batch n"],
    ridge: float,
    right: Float[Tensor, "*batch dim k"],
    spread: Spread | None = None,
) -> Float[Tensor, "*batch dim k"]:
    """`n_kept⁻¹ (C + ridge · tr(C)/dim · I)⁻¹ right`, C the covariance of each member's kept rows.

    One eigendecomposition serves every request on a shared vocabulary: leaving rows out of a
    covariance is a downdate of their number plus one (for the mean), solved by Woodbury's
    identity, so neither a dim x dim matrix nor a copy of the rows is made for each request. What is
    left out hides what is kept where that is far smaller (few names, near one another): the pivots
    of the downdate say how many digits go, and such members are solved directly. The factor
    `n_kept⁻¹` is left in, since who wants a direction does not need it.

    Args:
        rows: `[n, dim]` shared, or `[*batch, n, dim]`; float64.
        kept: `[*batch, n]`, which rows count; at least one each.
        ridge: Relative ridge, above 0. Where all kept rows are one row, C is 0 and has no scale:
            the solution is then `right` itself.
        right: `[*batch, dim, k]`.
        spread: That of the rows, where it is at hand.

    Returns:
        `[*batch, dim, k]`.
    """
    dim = rows.shape[-1]
    spread = spread or Spread.of(rows)
    centred, energy, frame = spread.centred, spread.energy, spread.frame
    count = kept.sum(-1).to(rows.dtype)
    order = marked_first(~kept)
    if rows.ndim == 2:
        left_out = centred[order]
    else:
        left_out = centred.take_along_dim(order[..., None], -2)
    left_out = left_out * (~kept).take_along_dim(order, -1)[..., None]
    shift = -left_out.sum(-2) / count[..., None]  # mean of the kept rows, about the mean of all
    update = torch.cat([left_out, (count.sqrt()[..., None] * shift)[..., None, :]], -2).mT
    total = energy.sum(-1) - update.square().sum((-2, -1))
    size = count * rows.square().sum(-1).mean(-1)
    scale = (energy + (ridge * total / dim)[..., None])[..., None]
    # Transposed, a frame that serves the whole batch multiplies it as one matrix.
    turned, turned_update = (right.mT @ frame).mT, (update.mT @ frame).mT
    solved, solved_update = turned / scale, turned_update / scale
    core = torch.eye(update.shape[-1], dtype=rows.dtype, device=rows.device)
    factor, failed = torch.linalg.cholesky_ex(core - turned_update.mT @ solved_update)
    correction = torch.cholesky_solve(turned_update.mT @ solved, factor)
    back = ((solved + solved_update @ correction).mT @ frame.mT).mT
    pivot = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)  # 1 less what is left out takes
    hidden = ~((failed == 0) & (pivot > _PIVOT) & (total > 1e-12 * size))
    if hidden.any():
        own = rows if rows.ndim == 2 else rows[hidden]
        back[hidden] = _solve_directly(own, kept[hidden], ridge, right[hidden])
    return back


def solve_moment_of_kept(
    rows: Float[Tensor, "*batch_or_none n dim"],
    kept: Bool[Tensor, "*batch n"],
    ridge: float,
    right: Float[Tensor, "*batch dim k"],
    spread: Spread | None = None,
) -> Float[Tensor, "*batch dim k"]:
    """`solve_covariance_of_kept` about the origin: with `C + mean meanᵀ` in place of C.

    The mean is one direction more, by the formula of Sherman and Morrison.

    Args:
        rows: As for `solve_covariance_of_kept`, and so all others.
        kept: `[*batch, n]`.
        ridge: Relative to the covariance, above 0.
        right: `[*batch, dim, k]`.
        spread: That of the rows.

    Returns:
        `[*batch, dim, k]`.
    """
    count = kept.sum(-1).to(rows.dtype)[..., None, None]
    mean = (kept.to(rows.dtype)[..., None, :] @ rows).mT / count
    solved = solve_covariance_of_kept(rows, kept, ridge, torch.cat([right, mean], -1), spread)
    of_right, of_mean = solved[..., :-1], solved[..., -1:]
    # Where all kept rows are one row, the solution is not divided by their number.
    count = torch.where((of_mean == mean).all(-2, keepdim=True), 1, count)
    return of_right - of_mean @ (mean.mT @ of_right) / (1 / count + mean.mT @ of_mean)


def _solve_directly(rows: Tensor, kept: Tensor, ridge: float, right: Tensor) -> Tensor:
    """`solve_covariance_of_kept` by the covariances themselves: `[m, dim, k]` of `[m, n]` kept."""
    n, dim = rows.shape[-2:]
    size = max(1, _CHUNK // (max(n, dim) * dim))
    solved = []
    for start in range(0, len(kept), size):
        some = slice(start, start + size)
        share, wanted = kept[some].to(rows.dtype), right[some]
        spread = covariance(rows if rows.ndim == 2 else rows[some], share)
        answer = solve_definite(regularised(spread, ridge), wanted)
        single = spread.abs().amax((-2, -1), keepdim=True) == 0
        solved.append(torch.where(single, wanted, answer / share.sum(-1)[..., None, None]))
    return torch.cat(solved)


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
    chosen = marked_first(weight > 0)
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
