"""Neutral: every forgotten image is given the mean of its domain, every kept one is left alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.edit import DEEPER, Edit, Space
from nullspace_unlearn.erasers.method import Given, Method, Seen, said
from nullspace_unlearn.forget import groups
from nullspace_unlearn.linalg import (
    CoupledRidge,
    Ridge,
    as_float64,
    covariance,
    group_means,
    regularised,
    unit,
)

RIDGES = (0.003, 0.03, 0.3)
# Pictures are so alike that leaving them out says little of the ridge.
_OF_PICTURES = (0.001,)
LEAST, MOST = 0.5, 3.0
# What heads read is so wide that a smaller ridge shrinks nothing, and beta makes up for more.
_OF_HEADS, _OF_HEADS_OF_PICTURES, _MOST_OF_HEADS = (0.6,), (0.2,), 4.0
# Of pictures read before the last MLP, a higher beta costs what stays more than it forgets.
_SHALLOW = 1.5
# How far a shift falls short on images is a power of how far it does on pictures left out, since
# these are more alike than images are, times a share, since they show their cell more surely.
# Chosen on pictures and training images nothing is reported on; both are 1 for real images, which
# are what they stand for.
_SURER = 0.96
_DOMAINS_BY_PICTURES, _DOMAINS_BY_PICTURES_OF_HEADS, _CELLS_BY_PICTURES = 1.9, 1.5, 2.4
# But for single cells where heads read: few images teach what is forgotten.
_CELLS_OF_HEADS = 1.5
# What pictures beside real images count for, as a share of these.
_BESIDE = 0.3
# By how much of their mean square names may see of where length goes; a hundred times more or less
# is the same.
_UNSEEN = 0.01
# What a forgotten cell counts for in the mean of its domain where others stay. At 1 the name still
# stands a little above the others there, at 0 below them.
_SHARE = 0.5


@dataclass(frozen=True)
class NeutralNumbers:
    """What `neutral` must be told beside prototypes and request; `choose` finds them.

    Attributes:
        ridge: Relative to the prototypes' mean square per dimension (of what one head reads, where
            heads do), above 0.
        beta: What the wanted shift is multiplied by, above 0, to make up for the ridge's shrinkage.
    """

    ridge: float = 0.03
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.ridge > 0 or not self.beta > 0:
            raise ValueError(f"ridge and beta must be above 0, got {self.ridge} and {self.beta}")


def neutral(
    embeddings: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    mask: Bool[Tensor, "*batch classes domains"],
    *,
    source: Float[Tensor, "n source"] | None = None,
    space: Space = "hidden",
    bases: Float[Tensor, "heads dim head_dim"] | None = None,
    classes: Float[Tensor, "classes dim"] | None = None,
    beside: Bool[Tensor, " n"] | None = None,
    numbers: NeutralNumbers | None = None,
) -> Edit:
    """Forget cells, or whole domains, so that nothing tells their classes apart.

    One weighted ridge regression from what is read to shifts of z:

        q_i = beta (z_i - m of i's domain) where forgotten, 0 where kept
        G = argmin sum_i w_i |x_i G - q_i|² + ridge |G|²,    z' = z - x G

    m is the mean over the classes of the domain, of which those forgotten there count half where
    others stay: at that point their names score as they do on other images. No class takes their
    place. A mean is shorter than what it is of, and what is short answers to every name alike, more
    than images do, so that a search finds it: where names are given, m is made as long as an image
    again along a direction that they do not see. Every group of cells that a request is judged by
    weighs the same (`forget.groups`), and each cell in it, so that the forgotten ones do as much as
    those that stay, and their neighbours (the class elsewhere, other classes in the domain) as much
    as the rest.

    Reading z or h, a linear map cannot multiply "is a sketch" with "which class"; reading the last
    MLP's activation it can, or of what each head of an attention pool gathers. There the rows are
    a block a head, and each head h has a regression `G_h` of its own that writes where the head
    leads, all of them fitted together (`linalg.CoupledRidge`): `z' = z - sum_h x_h G_h`.

    Args:
        embeddings: `[n, dim]` prototypes of cells, any number a cell; scale does not matter.
        labels: `[n]` the class of each.
        domains: `[n]` the domain of each.
        mask: `[*batch, classes, domains]`, true where a cell is forgotten.
        source: `[n, source]` what is read, on the embeddings' scale; absent: the embeddings.
        space: What the source is, where it is given.
        bases: `[heads, dim, head_dim]` where each head can write, orthonormal columns, if the
            source is a block a head.
        classes: `[classes, dim]` unit text prototypes of the classes; absent: m stays as short as
            it is.
        beside: `[n]`, true for synthesised pictures that stand beside real images. All of a cell
            count for as much as three tenths of its images, and for them m is of pictures.
        numbers: Ridge and beta.

    Returns:
        An edit that reads `source`, float64; its write is in the joint space, `[heads * dim, rank]`
        where heads read. Its rank is at most that of the prototypes and of what is written.

    Raises:
        ValueError: If shapes do not fit, something is not finite, a cell has no prototype, or a
            request forgets nothing or everything.
    """
    numbers = numbers or NeutralNumbers()
    shown = _Shown.of(embeddings, labels, domains, mask, source, bases, classes, beside)
    batch = mask.shape[:-2]
    shifts = []
    for one in mask.reshape(-1, *mask.shape[-2:]):
        request = _Request.of(shown, one)
        shifts.append(request.ridge.solve(numbers.beta * request.wanted, numbers.ridge))
    # [requests, source, dim], or [requests, heads, source, head_dim]
    left, singular, right = torch.linalg.svd(torch.stack(shifts), full_matrices=False)
    largest = singular.flatten(1).amax(-1).reshape(-1, *[1] * (singular.ndim - 1))
    rank = int((singular > 1e-9 * largest).sum(-1).max())
    read = (left * singular[..., None, :])[..., :rank]
    write = right.mT[..., :rank]
    write = write if shown.bases is None else shown.bases @ write
    return Edit(
        read=read.reshape(*batch, -1, rank),
        write=write.reshape(*batch, -1, rank),
        space="embedding" if source is None else space,
        provenance=said("neutral", numbers, rank),
    )


def choose(
    embeddings: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    classes: Float[Tensor, "classes dim"],
    mask: Bool[Tensor, "classes domains"],
    *,
    source: Float[Tensor, "n source"] | None = None,
    bases: Float[Tensor, "heads dim head_dim"] | None = None,
    beside: Bool[Tensor, " n"] | None = None,
    pictures: bool = False,
    most: float = MOST,
) -> NeutralNumbers:
    """Ridge and beta with which prototypes that are left out end neutral.

    In closed form (`linalg.Ridge.held_out`): real images are left out one by one, pictures by
    what they started from, one of each cell together. Beta is the number by which the left-out
    shift of the forgotten ones falls short in the score of their own class; of images the ridge is
    that of the least squared error. Pictures are so alike that those of one cell say little of
    that number: they are asked as if their whole domain went, but where heads read.

    Args:
        embeddings: As for `neutral`, and so `labels`, `domains` and `source`.
        labels: `[n]`.
        domains: `[n]`.
        classes: `[classes, dim]` unit text prototypes of the classes.
        mask: `[classes, domains]`, one request.
        source: `[n, source]`.
        bases: `[heads, dim, head_dim]`.
        beside: `[n]`; no number is chosen by what these end as.
        pictures: Whether the prototypes are synthesised, those of a cell in the order of what they
            started from.
        most: The highest beta.

    Returns:
        The numbers; the defaults, and a warning, where some cell has a single prototype, so that
        none can be left out.

    Raises:
        ValueError: As `neutral`.
    """
    shown = _Shown.of(embeddings, labels, domains, mask, source, bases, classes, beside)
    if int(shown.count.min()) < 2:
        fixed = NeutralNumbers()
        warnings.warn(
            "a cell has a single image or picture, so none can be left out to choose numbers by: "
            f"ridge {fixed.ridge:g} and beta {fixed.beta:g} are taken unchosen",
            stacklevel=2,
        )
        return fixed
    asked = mask.any(0).expand_as(mask)
    of_cells = bool((asked != mask).any())
    if not pictures or bases is not None or asked.all():
        asked = mask
    request = _Request.of(shown, asked.to(shown.rows.device))
    group = _place(shown.cell) if pictures else torch.arange(len(shown.cell))
    names = as_float64("classes", classes)
    names = (names - names.mean(0))[labels]
    wanted = (request.wanted * names).sum(-1)
    judging = request.weight * ~shown.beside
    best, chosen = torch.inf, NeutralNumbers()
    ridges, share, power = _shortfall(pictures, heads=bases is not None, of_cells=of_cells)
    held = False
    for ridge in ridges:
        shift = request.ridge.held_out(request.wanted, ridge, group.to(shown.cell.device))
        given = judging * (shift * names).sum(-1)
        reached = float((given @ wanted) / (judging @ wanted.square()).clamp(min=1e-300))
        asked_for = share / max(reached, 1e-3) ** power
        beta = min(max(asked_for, LEAST), most)
        error = (judging[:, None] * (beta * shift - request.wanted).square()).sum()
        if float(error) < best:
            best, chosen, held = float(error), NeutralNumbers(ridge, beta), asked_for > most
    if held and most > _SHALLOW:
        warnings.warn(
            f"prototypes that are left out are hardly reached, so beta is held at {most:g}: more "
            "is left than usual; more images a cell may help",
            stacklevel=2,
        )
    return chosen


def _shortfall(
    pictures: bool, heads: bool, of_cells: bool
) -> tuple[tuple[float, ...], float, float]:
    """Ridges to try, and how beta follows from what is reached: that share of it to that power."""
    if not pictures:
        return (_OF_HEADS if heads else RIDGES), 1.0, _CELLS_OF_HEADS if heads and of_cells else 1.0
    domains = _DOMAINS_BY_PICTURES_OF_HEADS if heads else _DOMAINS_BY_PICTURES
    ridges = _OF_HEADS_OF_PICTURES if heads else _OF_PICTURES
    return ridges, _SURER, _CELLS_BY_PICTURES if of_cells else domains


@dataclass(frozen=True, eq=False)
class _Shown:
    """Prototypes as the regression sees them.

    Attributes:
        rows: What is read, on the scale of unit embeddings.
        bases: Where heads write.
        z: Unit embeddings.
        cell: The cell of each, counted through the grid.
        beside: Which are pictures that stand beside images.
        count: Of each cell, those that do not.
        part: What each row counts for in its cell.
        means: Of each cell, of those that do not stand beside others and (where any do) of those.
        unseen: Where images differ and names do not look; zero where there are no names.
    """

    rows: Float[Tensor, "n source"]
    bases: Float[Tensor, "heads dim head_dim"] | None
    z: Float[Tensor, "n dim"]
    cell: Int[Tensor, " n"]
    beside: Bool[Tensor, " n"]
    count: Int[Tensor, " cells"]
    part: Float[Tensor, " n"]
    means: Float[Tensor, "kinds classes domains dim"]
    unseen: Float[Tensor, " dim"]

    @classmethod
    def of(
        cls,
        embeddings: Tensor,
        labels: Tensor,
        domains: Tensor,
        mask: Tensor,
        source: Tensor | None,
        bases: Tensor | None = None,
        classes: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> _Shown:
        z = as_float64("embeddings", embeddings)
        rows = z if source is None else as_float64("source", source)
        beside = torch.zeros(len(z), dtype=torch.bool) if beside is None else beside
        _check(z, rows, labels, domains, mask, beside)
        grid = mask.shape[-2:]
        cell = (labels * grid[1] + domains).to(z.device)
        beside = beside.to(z.device)
        norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        if not norm.all():
            raise ValueError("a prototype is the zero vector")
        z = unit(z)
        part, means, counts = torch.zeros_like(z[:, 0]), [], []
        for kind, weight in ((~beside, 1.0), (beside, _BESIDE)):
            if not kind.any():
                continue
            count = torch.bincount(cell[kind], minlength=grid.numel())
            if not count.all():
                empty = divmod(int((count == 0).nonzero()[0]), grid[1])
                raise ValueError(f"no prototype is given for the cell (class, domain) {empty}")
            part[kind] = weight / count[cell[kind]].double()
            means.append(group_means(z[kind], cell[kind], grid.numel()).reshape(*grid, -1))
            counts.append(count)
        if bases is not None:
            bases = as_float64("bases", bases)
            if rows.shape[1] % len(bases) or bases.shape[1] != z.shape[1]:
                raise ValueError(
                    f"a source of {rows.shape[1]} dimensions is no block for each of "
                    f"{len(bases)} heads that write {bases.shape[1]} of {z.shape[1]} dimensions"
                )
        unseen = torch.zeros_like(z[0]) if classes is None else _unseen(classes, z)
        return cls(rows / norm, bases, z, cell, beside, counts[0], part, torch.stack(means), unseen)


@dataclass(frozen=True, eq=False)
class _Request:
    """One request's regression: how rows weigh, and the shift that is wanted of each."""

    weight: Float[Tensor, " n"]
    wanted: Float[Tensor, "n dim"]
    ridge: Ridge | CoupledRidge

    @classmethod
    def of(cls, shown: _Shown, mask: Bool[Tensor, "classes domains"]) -> _Request:
        mask = mask.to(shown.rows.device)
        counts = (1 - (1 - _SHARE) * mask.double())[..., None]
        domain = (counts * shown.means).sum(1) / counts.sum(0)
        target = _lengthened(domain, shown.unseen)
        gone = mask.flatten()[shown.cell]
        kind = shown.beside.long() * (len(target) - 1)
        wanted = (shown.z - target[kind, shown.cell % mask.shape[1]]) * gone[:, None]
        parts = torch.stack(groups(mask)).double()
        grid = (parts / parts.sum((1, 2), keepdim=True).clamp(min=1)).sum(0)
        weight = grid.flatten()[shown.cell] * shown.part
        if shown.bases is None:
            return cls(weight, wanted, Ridge(shown.rows, weight))
        blocks = shown.rows.unflatten(1, (len(shown.bases), -1))
        return cls(weight, wanted, CoupledRidge(blocks, weight, shown.bases))


def _unseen(
    classes: Float[Tensor, "classes dim"], z: Float[Tensor, "n dim"]
) -> Float[Tensor, " dim"]:
    """The unit direction in which images vary most for what names, and their mean, have of it.

    `max |u|_C / |u|_S`, C the covariance of the images, which says that the model can write there,
    S the second moment of names and mean image.
    """
    names = torch.cat([unit(as_float64("classes", classes)).to(z.device), unit(z.mean(0))[None]])
    root = torch.linalg.cholesky(regularised(names.mT @ names / len(names), _UNSEEN))
    half = torch.linalg.solve_triangular(root, covariance(z), upper=False)
    both = torch.linalg.solve_triangular(root, half.mT, upper=False)
    leading = torch.linalg.eigh(both).eigenvectors[:, -1:]
    return unit(torch.linalg.solve_triangular(root.mT, leading, upper=True)[:, 0])


def _lengthened(
    means: Float[Tensor, "*cells dim"], unseen: Float[Tensor, " dim"]
) -> Float[Tensor, "*cells dim"]:
    """Means of unit vectors, as long as these again: the rest of their length along a direction."""
    if not unseen.any():
        return means
    along = (means @ unseen)[..., None]
    lost = (1 - means.square().sum(-1, keepdim=True)).clamp(min=0)
    full = (along.square() + lost).sqrt().copysign(along)
    return means + (full - along) * unseen


def _place(cell: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Where each row stands among those of its cell."""
    order = torch.argsort(cell, stable=True)
    count = torch.bincount(cell)
    place = torch.empty_like(order)
    first = count.cumsum(0) - count
    place[order] = torch.arange(len(cell), device=cell.device) - first[cell[order]]
    return place


def _check(
    z: Tensor, rows: Tensor, labels: Tensor, domains: Tensor, mask: Tensor, beside: Tensor
) -> None:
    n = len(z)
    fits = z.ndim == rows.ndim == 2 and len(rows) == n and mask.ndim >= 2
    if not fits or not labels.shape == domains.shape == beside.shape == (n,):
        raise ValueError(
            "expected embeddings [n, dim], labels, domains and beside [n], "
            "mask [..., classes, domains] "
            f"and source [n, source], got {list(z.shape)}, {list(labels.shape)}, "
            f"{list(domains.shape)}, {list(beside.shape)}, {list(mask.shape)} and "
            f"{list(rows.shape)}"
        )
    if beside.any() and beside.all():
        raise ValueError("pictures stand beside images, and there is none")
    count, wide = mask.shape[-2:]
    inside = (labels >= 0) & (labels < count) & (domains >= 0) & (domains < wide)
    if count < 2 or not inside.all():
        raise ValueError(
            f"labels and domains must name a cell of the {count} x {wide} grid, of 2 classes at "
            "least"
        )
    flat = mask.flatten(-2)
    if not flat.any(-1).all() or flat.all(-1).any():
        raise ValueError("each request must forget at least one cell and keep at least one")


def _derive(given: Given, numbers: NeutralNumbers) -> Edit:
    def of(part: Given) -> Edit:
        return neutral(mask=part.mask, space=part.space, numbers=numbers, **_arguments(part))

    return given.alike(of)


def _choose(given: Given) -> NeutralNumbers:
    used = given.forgotten | given.kept
    part = given.of_names(used)
    seen = _seen(part)
    return choose(
        mask=part.mask,
        pictures=seen.made_of == "pictures",
        most=_most(part.space, seen),
        **_arguments(part),
    )


def _arguments(part: Given) -> dict[str, Any]:
    """What `neutral` and `choose` are both told."""
    seen, beside = _seen(part).joined()
    if part.space == "value" and seen.bases is None:
        raise ValueError("heads read the value feature: say where each of them can write (bases)")
    return {
        "embeddings": seen.embeddings,
        "labels": seen.labels,
        "domains": seen.domains,
        "classes": part.classes,
        "source": None if part.space == "embedding" else seen.read(part.space),
        "bases": seen.bases if part.space == "value" else None,
        "beside": beside,
    }


def _most(space: Space, seen: Seen) -> float:
    if space == "value":
        return _MOST_OF_HEADS
    return _SHALLOW if seen.made_of == "pictures" and space != "mlp" else MOST


def _seen(given: Given) -> Seen:
    assert given.seen is not None  # the method must have images
    return given.seen


METHOD = Method(
    name="neutral",
    title="give every forgotten image the mean of its domain, and leave every other alone",
    numbers=NeutralNumbers,
    derive=_derive,
    choose=_choose,
    paradigms=("cell", "domain"),
    sides=("visual",),
    images="must",
    pictures_for=("cell", "domain"),
    beside=True,
    spaces=(*DEEPER, "hidden", "embedding"),
)
