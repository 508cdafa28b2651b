"""Gated: lower a class's score by how much the image looks like the forgotten cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.judged import SOFTNESS, harmonic_of
from nullspace_unlearn.erasers.method import Given, Method, said
from nullspace_unlearn.forget import groups
from nullspace_unlearn.linalg import (
    as_float64,
    covariance,
    one_sided_ridge,
    regularised,
    solve_definite,
)

# Classes tried as decoy, those first that score highest on what is to be forgotten.
_TOGETHER = 512  # classes whose scores are held at a time
_DECOYS = 16
_ENTRIES = 1 << 24  # of prototypes, which as many gates as are fitted at a time see


class NothingForgotten(ValueError):
    """No prototype of what is to be forgotten is recognised in the first place."""


@dataclass(frozen=True)
class Numbers:
    """What `gated` must be told beside prototypes and request.

    The defaults were chosen for images, on training images of two small models and pictures of the
    bundled one that no figure is reported on; they lie on a plateau (ridge .01 to .1, margin 1.25
    to 1.75, slack .3 to .5).

    Attributes:
        ridge: Relative to the prototypes' mean square per dimension, above 0.
        margin: How far below its rival a forgotten prototype must end, above 0, in units of the
            forgotten prototypes' mean lead over it: 1 asks for the mirror image.
        slack: Share of its lead over another class that a kept prototype may lose to it, in [0, 1).
    """

    ridge: float = 0.1
    margin: float = 1.5
    slack: float = 0.4

    def __post_init__(self) -> None:
        if not self.ridge > 0 or not self.margin > 0 or not 0 <= self.slack < 1:
            raise ValueError(
                f"ridge and margin must be above 0 and slack in [0, 1), got {self.ridge}, "
                f"{self.margin} and {self.slack}"
            )


IMAGES = Numbers()
"""For images, or pictures that stand for them."""

TEXT = Numbers(ridge=0.3, margin=2.0, slack=0.6)
"""For prototypes made from prompts alone, which lie elsewhere than images."""


def gated(
    embeddings: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    classes: Float[Tensor, "classes dim"],
    mask: Bool[Tensor, "*batch classes domains"],
    *,
    hidden: Float[Tensor, "n width"] | None = None,
    numbers: Numbers = IMAGES,
) -> Edit:
    """Forget cells of the class x domain grid: text says where to write, prototypes what to read.

    A linear edit cannot multiply "is a sketch" with "is a car", and need not: `read = g_c`,
    `write = w_c` moves the score of class c alone, `z'·t_k = z·t_k - (z·g_c) δ_kc`, and a dog in a
    sketch is unharmed since its car score was low anyway. So each prototype only bounds how far a
    score may or must move, and each gate `g_c` is the ridge regression from prototypes onto those
    intervals (`linalg.one_sided_ridge`):

    - Where the forgotten domain keeps some class, every class with a forgotten cell falls: in its
      forgotten cells to `margin` below the best class that stays, in its kept cells not at all.
      On images of other classes it may fall as it likes, and rise by at most a share `slack` of
      the other's lead over it.
    - Where a whole domain goes, falling together would change nothing. One class, the decoy, must
      rise to `margin` above the true one throughout the domain, and a second one above the decoy on
      the decoy's own images there; elsewhere they may rise by the same share of the true one's
      lead. A domain is read more easily than a cell, which is why two columns do better than one a
      class. The decoy is the class that does best on the prototypes (`judged.harmonic`). The same
      serves where every class has a cell to forget, so that none stays to fall beneath.

    `w_c` moves the score of class c against the other names' mean by 1 and the others' differences
    as little as possible in the mean square: `S⁻¹d/(dᵀS⁻¹d)`, `d = t_c - mean`, `S = cov` of the
    other class prototypes with a small ridge.

    Args:
        embeddings: `[n, dim]` prototypes of cells in the joint space: prompts, synthesised or real
            images, any number a cell; scale does not matter. Every cell counts the same.
        labels: `[n]` the class of each.
        domains: `[n]` the domain of each.
        classes: `[classes, dim]` unit text prototypes of the classes, which the scores use.
        mask: `[*batch, classes, domains]`, true where a cell is forgotten.
        hidden: `[n, width]` hidden features of the prototypes (on their embeddings' scale): read
            these instead.
        numbers: Ridge, margin and slack.

    Returns:
        An edit of the joint space, or of the hidden one, float64. Its rank is the largest number of
        classes a request moves.

    Raises:
        ValueError: If shapes do not fit, something is not finite, a cell has no prototype, a
            request forgets nothing or everything, or nothing to be forgotten is recognised in the
            first place.
    """
    z, t = as_float64("embeddings", embeddings), as_float64("classes", classes)
    source = z if hidden is None else as_float64("hidden", hidden)
    _check(z, source, labels, domains, t, mask)
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    table = _Table(
        rows=source / norm,
        z=z / norm,
        t=t,
        labels=labels.to(z.device),
        domains=domains.to(z.device),
        numbers=numbers,
    )
    batch = mask.shape[:-2]
    requests = mask.reshape(-1, *mask.shape[-2:]).to(z.device)
    gates = [_decoys(table, one) if _needs_decoy(one) else _falls(table, one) for one in requests]
    written = torch.cat([gate.classes for gate in gates]).unique()
    writes = _writes(t, written)
    rank = max(len(gate.classes) for gate in gates)
    read = z.new_zeros(len(gates), rank, source.shape[-1])
    write = z.new_zeros(len(gates), rank, z.shape[-1])
    for i, gate in enumerate(gates):
        read[i, : len(gate.classes)] = gate.falls
        write[i, : len(gate.classes)] = writes[torch.searchsorted(written, gate.classes)]
    return Edit(
        read=read.mT.reshape(*batch, -1, rank),
        write=write.mT.reshape(*batch, -1, rank),
        space="embedding" if hidden is None else "hidden",
        provenance=said("gated", numbers, rank),
    )


@dataclass(frozen=True, eq=False)
class _Table:
    """Prototypes as the regressions see them: rows to read, what gives scores, and the numbers.

    Scores of all rows for all classes would be gigabytes where there are ten thousand names.
    """

    rows: Float[Tensor, "n source"]
    z: Float[Tensor, "n dim"]
    t: Float[Tensor, "classes dim"]
    labels: Int[Tensor, " n"]
    domains: Int[Tensor, " n"]
    numbers: Numbers

    @property
    def first(self) -> Float[Tensor, " n"]:
        """The score of each row's own class."""
        return (self.z * self.t[self.labels]).sum(-1)

    def scores(self, classes: Int[Tensor, " k"]) -> Float[Tensor, "k n"]:
        """The scores of all rows for some classes."""
        return self.t[classes] @ self.z.mT

    def own(self, classes: Int[Tensor, " k"]) -> Bool[Tensor, "k n"]:
        """Which rows are of some classes."""
        return self.labels == classes[:, None]

    def best(self, classes: Int[Tensor, " k"]) -> Float[Tensor, " n"]:
        """The best score of each row among some classes, a few of these at a time."""
        found = torch.full_like(self.z[:, 0], -torch.inf)
        for some in classes.split(_TOGETHER):
            found = torch.maximum(found, self.scores(some).amax(0))
        return found

    def foremost(self, count: int) -> tuple[Float[Tensor, "k n"], Int[Tensor, "k n"]]:
        """The best scores of each row and whose they are, a few classes at a time."""
        score, whose = self.z.new_empty(0, len(self.z)), self.labels.new_empty(0, len(self.z))
        for some in torch.arange(len(self.t), device=self.z.device).split(_TOGETHER):
            score = torch.cat([score, self.scores(some)])
            whose = torch.cat([whose, some[:, None].expand(-1, len(self.z))])
            score, place = score.topk(min(count, len(score)), dim=0)
            whose = whose.gather(0, place)
        return score, whose

    def weight(self, mask: Bool[Tensor, "classes domains"]) -> Float[Tensor, " n"]:
        """Each group of cells that a request is judged by weighs the same, each cell in it too."""
        parts = torch.stack(groups(mask))
        grid = (parts / parts.sum((1, 2), keepdim=True).clamp(min=1)).sum(0)
        cell = self.labels * mask.shape[-1] + self.domains
        count = torch.bincount(cell, minlength=mask.numel())
        return (grid.flatten() / count)[cell].to(self.rows)

    def fit(self, weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Gates within bounds, and how far they move each row."""
        at_once = max(1, _ENTRIES // self.rows.numel())
        parts = [
            one_sided_ridge(self.rows, weight.expand_as(some[0]), *some, self.numbers.ridge)
            for some in zip(low.split(at_once), high.split(at_once), strict=True)
        ]
        gate = torch.cat(parts)
        return gate, gate @ self.rows.mT


@dataclass(frozen=True, eq=False)
class _Gates:
    """The classes one request moves, in ascending order, and the gate by which each falls."""

    classes: Int[Tensor, " k"]
    falls: Float[Tensor, "k source"]


def _needs_decoy(mask: Bool[Tensor, "classes domains"]) -> bool:
    return bool(mask.all(0).any() or mask.any(1).all())


def _falls(table: _Table, mask: Bool[Tensor, "classes domains"]) -> _Gates:
    """Each class with a forgotten cell falls there, beneath the best class that does not."""
    touched = mask.any(-1)
    moving = touched.nonzero()[:, 0]
    forgotten = mask[table.labels, table.domains]
    first = table.first
    weight = table.weight(mask)
    above = first - table.best((~touched).nonzero()[:, 0])
    margin = table.numbers.margin * _mean_lead(above, weight * forgotten)
    of_class = table.own(moving)
    rise = table.numbers.slack * (first - table.scores(moving)).clamp(min=0)
    infinite = torch.full_like(rise, torch.inf)
    low = torch.where(of_class & forgotten, margin + above, -infinite)
    low = torch.where(~of_class & ~forgotten, -rise, low)
    high = torch.where(of_class & ~forgotten, torch.zeros_like(rise), infinite)
    return _Gates(moving, table.fit(weight, low, high)[0])


def _decoys(table: _Table, mask: Bool[Tensor, "classes domains"]) -> _Gates:
    """One class rises above all that is forgotten, a second one above that class's own images."""
    forgotten = mask[table.labels, table.domains]
    weight = table.weight(mask)
    first = table.first
    score, whose = table.foremost(4)  # of which the row's own and two decoys may be left out
    of_row = whose == table.labels
    lead = first - score.masked_fill(of_row, -torch.inf).amax(0)
    margin = table.numbers.margin * _mean_lead(lead, weight * forgotten)

    def rise(decoy: Tensor, needed: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Where `needed`, at least `low`; elsewhere as much as the kept images can bear."""
        of_decoy = table.own(decoy)
        bearable = table.numbers.slack * (first - table.scores(decoy)).clamp(min=0)
        low = torch.where(needed, low, torch.full_like(low, -torch.inf))
        low = torch.where(~forgotten & of_decoy, torch.zeros_like(low), low)
        high = torch.where(~forgotten & ~of_decoy, bearable, high)
        return table.fit(weight, low, high)

    by_score = (table.t @ ((weight * forgotten) @ table.z)).argsort(descending=True, stable=True)
    decoy = by_score[:_DECOYS]
    of_decoy, decoys = table.own(decoy), table.scores(decoy)
    unbounded = torch.full_like(decoys, torch.inf)
    needed = forgotten & ~of_decoy
    gate, risen = rise(decoy, needed, margin + first - decoys, unbounded)

    # The decoy's own images in what is forgotten, if there are any, go to another class.
    mine = forgotten & of_decoy
    total = (weight * mine) @ table.z @ table.t.mT
    second = total.scatter(-1, decoy[:, None], -torch.inf).argmax(-1)
    ahead = risen + decoys - table.scores(second)
    high = torch.where(forgotten & table.own(second), ahead - margin, unbounded)
    gate2, risen2 = rise(second, mine, margin + ahead, high)
    two = mine.any(-1)

    softness = SOFTNESS * lead.clamp(min=0).mean()
    judged = []
    for i in range(len(decoy)):
        pair, rises = (
            torch.stack([decoy[i], second[i]]),
            torch.stack([risen[i], risen2[i] * two[i]]),
        )
        own = pair[:, None] == table.labels
        after = first + (rises * own).sum(0)
        still = score.masked_fill(of_row | torch.isin(whose, pair), -torch.inf).amax(0)
        moved = (table.scores(pair) + rises).masked_fill(own, -torch.inf).amax(0)
        ahead_now = after - torch.maximum(still, moved)
        judged.append(harmonic_of(ahead_now, softness, table.labels, table.domains, mask))
    best = max(range(len(judged)), key=judged.__getitem__)
    if not two[best]:
        return _Gates(decoy[best : best + 1], -gate[best : best + 1])
    both = torch.stack([decoy[best], second[best]])
    order = both.argsort()
    return _Gates(both[order], -torch.stack([gate[best], gate2[best]])[order])


def _mean_lead(lead: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    mean = (weight * lead.clamp(min=0)).sum() / weight.sum()
    if not mean > 0:
        raise NothingForgotten(
            "the edit would remove nothing: every prototype of the forgotten cells already scores "
            "another class higher than its own"
        )
    return mean


def _check(
    z: Tensor, source: Tensor, labels: Tensor, domains: Tensor, t: Tensor, mask: Tensor
) -> None:
    n = len(z)
    count, wide = mask.shape[-2:] if mask.ndim >= 2 else (0, 0)
    if (
        z.ndim != 2
        or source.ndim != 2
        or len(source) != n
        or labels.shape != (n,)
        or domains.shape != (n,)
        or t.shape != (count, z.shape[-1])
    ):
        raise ValueError(
            "expected embeddings [n, dim], labels and domains [n], classes [classes, dim], mask "
            f"[..., classes, domains] and hidden [n, width], got {list(z.shape)}, "
            f"{list(labels.shape)}, {list(domains.shape)}, {list(t.shape)}, {list(mask.shape)} and "
            f"{list(source.shape)}"
        )
    if count < 2:
        raise ValueError("a class can only be forgotten among others: give at least 2 classes")
    if n and (
        min(int(labels.min()), int(domains.min())) < 0
        or int(labels.max()) >= count
        or int(domains.max()) >= wide
    ):
        raise ValueError(f"labels and domains must name a cell of the {count} x {wide} grid")
    seen = torch.bincount(labels * wide + domains, minlength=count * wide).reshape(count, wide)
    if (seen == 0).any():
        cell = (seen == 0).nonzero()[0].tolist()
        raise ValueError(f"no prototype is given for the cell (class, domain) {tuple(cell)}")
    if not torch.linalg.vector_norm(z, dim=-1).all():
        raise ValueError("a prototype is the zero vector")
    flat = mask.flatten(-2)
    if not flat.any(-1).all() or flat.all(-1).any():
        raise ValueError("each request must forget at least one cell and keep at least one")


def _writes(t: Float[Tensor, "classes dim"], written: Int[Tensor, " k"]) -> Float[Tensor, "k dim"]:
    """For each written class the direction that moves its score against the others', by 1."""
    rows = []
    for class_ in written.tolist():
        others = torch.cat([t[:class_], t[class_ + 1 :]])
        apart = t[class_] - others.mean(0)
        spread = regularised(covariance(others), 1e-3)
        solved = solve_definite(spread, apart[:, None])[:, 0]
        rows.append(solved / (solved @ apart))
    return torch.stack(rows)


def _derive(given: Given, numbers: Numbers) -> Edit:
    def of(part: Given) -> Edit:
        if part.seen is not None:
            seen, source = part.seen, None
            if part.space != "embedding":
                source = as_float64(part.space, seen.read(part.space))
            rows, labels, domains = seen.embeddings, seen.labels, seen.domains
        else:
            cells, source = part.told().rows, None
            wide = part.mask.shape[-1]
            rows, labels = cells, part.owner.repeat_interleave(wide)
            domains = torch.arange(wide, device=labels.device).repeat(len(part.owner))
        return gated(rows, labels, domains, part.classes, part.mask, hidden=source, numbers=numbers)

    return given.alike(of)


def _choose(given: Given) -> Numbers:
    """Numbers for prompts and pictures; real images say their own."""
    from nullspace_unlearn.erasers.leave_out import leave_out  # which makes edits, by this file

    seen = given.seen
    if seen is None or seen.made_of == "prompts":
        return TEXT
    if seen.made_of == "pictures":
        return IMAGES
    source = None if given.space == "embedding" else seen.read(given.space).double()
    given_ = (seen.embeddings.double(), seen.labels, seen.domains, given.classes, given.mask)
    return leave_out(*given_, hidden=source)


METHOD = Method(
    name="gated",
    title="lower a class's score by how much an image looks like what is forgotten",
    paradigms=("cell", "domain"),
    images="may",
    pictures_for=("domain",),
    spaces=("embedding", "hidden", "mlp"),
    numbers=Numbers,
    derive=_derive,
    choose=_choose,
)
