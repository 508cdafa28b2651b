"""Many edits on the same images: exact predictions from shared scores and low-rank updates.

An edit changes the score of class k on image i by `-a_i · b_k`, with `a = source @ read` and
`b = prototypes @ write`: no edited model, and no matrix of images x classes an edit, is needed.
Most edits leave most images alone, and that can be proven: only the classes that score highest on
the image untouched, and those that the edit moves most, are looked at one by one; what any other
class could reach is bounded. Images of which the bound says too little get all their scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.edit import DEEPER, Edit
from nullspace_unlearn.linalg import unit

# Numbers held at once in one tile of images x edits, and in the edits' writes.
_TILE, _WRITES = 1 << 20, 1 << 25
# Images whose scores are shared by the tiles of one row.
_IMAGES = 512
# Classes looked at for each image, and for each edit.
_NEAREST, _MOVED = 4, 4


def predict_edits(
    embeddings: Float[Tensor, "n dim"],
    prototypes: Float[Tensor, "classes dim"],
    edit: Edit,
    hidden: Float[Tensor, "n width"] | None = None,
) -> Int[Tensor, "edits n"]:
    """The class that each edited model names each image: exactly the arg max of all its scores.

    Args:
        embeddings: `[n, dim]` of the untouched model, any positive scale of a row.
        prototypes: `[classes, dim]`, the zero-shot classifier, any positive scale of a row.
        edit: A batch `[edits]` of edits of the visual side.
        hidden: `[n, width]` hidden features of the same rows; edits of the hidden space need them.

    Returns:
        `[edits, n]` int64, on the embeddings' device; of classes with an equal score, the first.
        The arithmetic is float64.

    Raises:
        ValueError: If dimensions differ, the edits are not a batch, or their space is of `DEEPER`
            or lacks its hidden features.
    """
    _check(embeddings, prototypes, edit, hidden)
    named = torch.empty(*edit.batch_shape, len(embeddings), dtype=torch.int64)
    named = named.to(embeddings.device)
    for edits, images, predicted in _tiles(embeddings, prototypes, edit, hidden):
        named[edits, images] = predicted.mT
    return named


def count_right(
    embeddings: Float[Tensor, "n dim"],
    prototypes: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"] | None,
    shape: tuple[int, int],
    edit: Edit,
    hidden: Float[Tensor, "n width"] | None = None,
) -> Int[Tensor, "edits classes domains"]:
    """How many images of each cell each edited model names right.

    Args:
        embeddings: `[n, dim]` of the untouched model.
        prototypes: `[classes, dim]`, the zero-shot classifier.
        labels: `[n]` true classes.
        domains: `[n]` domains, or None for a single one.
        shape: Number of classes and of domains.
        edit: A batch `[edits]` of edits of the visual side.
        hidden: `[n, width]` hidden features; edits of the hidden space need them.

    Returns:
        `[edits, classes, domains]` int64, on the embeddings' device.

    Raises:
        ValueError: As `predict_edits`; and if labels or domains do not fit.
    """
    _check(embeddings, prototypes, edit, hidden)
    device = embeddings.device
    labels = labels.to(device)
    domains = torch.zeros_like(labels) if domains is None else domains.to(device)
    if not labels.shape == domains.shape == embeddings.shape[:1] or shape[0] != len(prototypes):
        raise ValueError(
            f"{len(embeddings)} images and {len(prototypes)} classes need as many labels, domains "
            f"and rows, got {list(labels.shape)}, {list(domains.shape)} and {shape[0]}"
        )
    cell = labels * shape[1] + domains
    right = torch.zeros(shape[0] * shape[1], *edit.batch_shape, dtype=torch.int64, device=device)
    for edits, images, predicted in _tiles(embeddings, prototypes, edit, hidden):
        hit = (predicted == labels[images, None]).long()
        right[:, edits].index_add_(0, cell[images], hit)
    return right.mT.reshape(-1, *shape)


def _check(embeddings: Tensor, prototypes: Tensor, edit: Edit, hidden: Tensor | None) -> None:
    if len(edit.batch_shape) != 1:
        raise ValueError(f"edits must be a batch [edits], got {list(edit.batch_shape)}")
    if edit.space in DEEPER:
        raise ValueError(
            f"edits of space {edit.space!r} act on embeddings through later layers: fold them "
            "instead"
        )
    if edit.space == "hidden" and hidden is None:
        raise ValueError(
            "edits of the hidden space read the hidden feature: pass hidden=[n, width]"
        )
    source = embeddings if edit.space == "embedding" or hidden is None else hidden
    sizes = [embeddings.shape[-1], prototypes.shape[-1], source.shape[-1], len(source)]
    if sizes != [edit.dim, edit.dim, edit.read.shape[-2], len(embeddings)] or not len(prototypes):
        raise ValueError(
            f"the edits read {edit.read.shape[-2]} and write {edit.dim} dimensions, got features "
            f"{list(source.shape)}, embeddings {list(embeddings.shape)} and prototypes "
            f"{list(prototypes.shape)}"
        )


@dataclass(frozen=True, eq=False)
class _Moves:
    """What a tile of edits does to the scores of the classes, whatever the images.

    Attributes:
        moves: `[classes, edits, rank]`.
        most: `[j, edits]`, the classes that each edit moves most.
        low: `[edits, rank]`, the least of the moves of all other classes; inf where there are none.
        high: `[edits, rank]`, the largest of them; -inf where there are none.
    """

    moves: Tensor
    most: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, rows: Tensor, write: Tensor) -> _Moves:
        moves = torch.einsum("cd,edr->cer", rows, write).contiguous()
        size = torch.linalg.vector_norm(moves, dim=-1)
        most = size.topk(min(_MOVED, len(moves)), dim=0).indices
        others = torch.ones_like(size, dtype=torch.bool).scatter_(0, most, False)[..., None]
        low = moves.masked_fill(~others, torch.inf).amin(0)
        return cls(moves, most, low, moves.masked_fill(~others, -torch.inf).amax(0))


def _tiles(
    embeddings: Tensor, prototypes: Tensor, edit: Edit, hidden: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Edits, images, and the classes `[images, edits]` named there, tile by tile."""
    device = embeddings.device
    rows = unit(prototypes.to(device, torch.float64))
    source = embeddings if hidden is None or edit.space == "embedding" else hidden
    looked, rank = min(_NEAREST, len(rows)), max(edit.rank, 1)
    wide = max(1, _TILE // (_IMAGES * looked * rank))
    many = wide * max(1, _WRITES // (len(rows) * rank * wide))
    for first in range(0, edit.batch_shape[0], many):
        part = edit[first : first + many]
        read, write = (m.to(device, torch.float64) for m in (part.read, part.write))
        tiles = [
            (slice(first + start, first + start + len(r)), r, _Moves.of(rows, w))
            for start, r, w in zip(
                range(0, len(read), wide), read.split(wide), write.split(wide), strict=True
            )
        ]
        for start in range(0, len(embeddings), _IMAGES):
            images = slice(start, min(start + _IMAGES, len(embeddings)))
            scores, seen = embeddings[images].double() @ rows.mT, source[images].double()
            top = scores.topk(min(looked + 1, len(rows)))
            rest = top.values[:, looked:]
            if not rest.numel():
                rest = torch.full_like(scores[:, :1], -torch.inf)
            for edits, reads, moves in tiles:
                amount = torch.einsum("nd,edr->ner", seen, reads)
                yield edits, images, _named(scores, top.indices[:, :looked], rest, amount, moves)


def _named(scores: Tensor, nearest: Tensor, rest: Tensor, amount: Tensor, tile: _Moves) -> Tensor:
    """Arg max of `scores_ik - amount_ie · moves_ke` over k, `[images, edits]`.

    Args:
        scores: `[n, classes]`, untouched.
        nearest: `[n, k]`, the classes that score highest.
        rest: `[n, 1]`, the highest score of the others.
        amount: `[n, edits, rank]`.
        tile: The edits.
    """
    moves = tile.moves
    # No class but those looked at can gain more: each factor at its worst.
    gain = torch.maximum(-amount * tile.low, -amount * tile.high)
    gain = gain.nan_to_num(neginf=-torch.inf).sum(-1)

    best = scores.gather(1, nearest)[..., None] - (amount[:, None] * moves[nearest]).sum(-1)
    value = best.amax(1)
    # Names that are one vector to the model tie exactly; the first is taken, as argmax does.
    named = torch.where(best == value[:, None], nearest[..., None], len(moves)).amin(1)
    for k in tile.most:  # one class an edit
        move = moves.gather(0, k[None, :, None].expand(1, -1, moves.shape[-1]))[0]
        new = scores[:, k] - (amount * move).sum(-1)
        better = (new > value) | ((new == value) & (k < named))
        value, named = torch.where(better, new, value), torch.where(better, k, named)
    unproven = rest + gain >= value
    for e in unproven.any(0).nonzero()[:, 0].tolist():
        images = unproven[:, e].nonzero()[:, 0]
        full = torch.addmm(scores[images], amount[images, e], moves[:, e].mT, alpha=-1)
        named[images, e] = full.argmax(-1)
    return named
