"""Any grid of (request x method x numbers x strength x rank), measured on cached features."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.edit import Edit, joined
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.evaluate.asking import Told
from nullspace_unlearn.evaluate.compare import EVERYWHERE
from nullspace_unlearn.evaluate.figures import FIGURES, figures
from nullspace_unlearn.evaluate.fused import count_right
from nullspace_unlearn.evaluate.ideal import Untouched
from nullspace_unlearn.evaluate.kept_search import Searched
from nullspace_unlearn.evaluate.told import Shared
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.plans import Texts
from nullspace_unlearn.progress import progress
from nullspace_unlearn.spelling import did_you_mean, listed
from nullspace_unlearn.unlearn import MAX_STRENGTH

Row = dict[str, Any]


def swept() -> tuple[str, ...]:
    """Methods whose edits of the image tower are made from text prototypes alone."""
    return tuple(
        name
        for name, method in METHODS.items()
        if "visual" in method.sides and method.images != "must"
    )


COLUMNS: Mapping[str, type] = {
    "request": int,
    "kind": str,
    "classes": str,
    "domains": str,
    "method": str,
    "strength": float,
    "rank": int,
    "rank_used": int,
    "numbers": str,
    **dict.fromkeys(FIGURES, float),
    **{f"before_{name}": float for name in FIGURES},
    **{f"ideal_{name}": float for name in FIGURES},
    "images": int,
    "refused": str,
}
"""What a row of the result holds; what does not apply is None."""

# Requests of one chunk, at most, and numbers held for them: a chunk is what a stopped run loses.
_MOST, _NUMBERS = 128, 1 << 25
# A direction of an edit that moves embeddings by less than this share of the first is rounding.
_NO_RANK = 1e-9


@dataclass(frozen=True)
class Sweep:
    """What to sweep: every request by every method that takes it, at every setting.

    Attributes:
        requests: What to forget, none twice; aliases filled in and domains by key (`resolved`).
        methods: Names out of `swept()`.
        strengths: `Edit.scale`, in (0, 2].
        ranks: The edit is cut to so many directions (`cut`); None leaves it as derived.
        numbers: Name of a number -> its values, for the methods that have such a number; the
            others are measured once, and so is a method's own number where none is given.
    """

    requests: tuple[Forget, ...]
    methods: tuple[str, ...]
    strengths: tuple[float, ...] = (1.0,)
    ranks: tuple[int | None, ...] = (None,)
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        axes = {name: getattr(self, name) for name in ("requests", "methods", "strengths", "ranks")}
        for name, values in (*axes.items(), *self.numbers.items()):
            if not values:
                raise ValueError(f"a sweep needs at least one of its {name}")
            seen = set()
            for value in values:
                said = _named(value) if isinstance(value, Forget) else repr(value)
                key = (value.classes, value.domains) if isinstance(value, Forget) else value
                if key in seen:
                    raise ValueError(f"{name} hold {said} twice")
                seen.add(key)
        for method in self.methods:
            if method not in swept():
                raise ValueError(
                    f"method {method!r} cannot be swept{did_you_mean(method, swept())}; "
                    f"allowed: {listed(swept())}"
                )
        for strength in self.strengths:
            if not 0 < strength <= MAX_STRENGTH:
                raise ValueError(f"strength must lie in (0, {MAX_STRENGTH:g}], got {strength:g}")
        for rank in self.ranks:
            if rank is not None and rank < 1:
                raise ValueError(f"rank must be at least 1, got {rank}")
        for name, values in self.numbers.items():
            able = [method for method in self.methods if name in _numbers_of(method)]
            if not able:
                raise ValueError(f"no method of the sweep has a number {name!r}")
            for method, value in product(able, values):
                if not math.isfinite(value):
                    raise ValueError(f"{name} must be finite, got {value:g}")
                METHODS[method].checked({name: value})
        if any(request.keep for request in self.requests):
            raise ValueError("a sweep keeps the classes of its images: leave out keep")
        if "leace" in self.methods and importlib.util.find_spec("concept_erasure") is None:
            raise ValueError(
                "leace needs the concept-erasure package: pip install 'nullspace-unlearn[leace]'"
            )
        for method in self.methods:
            if not self.taken(method):
                kinds = ", ".join(sorted({request.paradigm for request in self.requests}))
                able = [name for name in swept() if self.taken(name)]
                raise ValueError(
                    f"method {method!r} takes none of the requests ({kinds}); allowed here: "
                    f"{', '.join(able)}"
                )

    def taken(self, method: str) -> tuple[int, ...]:
        """Which of the requests a method takes."""
        kinds = METHODS[method].paradigms
        return tuple(i for i, one in enumerate(self.requests) if one.paradigm in kinds)

    def numbers_of(self, method: str) -> list[dict[str, float]]:
        """The numbers that a method is derived with, one choice of each: those that it has."""
        own = {name: self.numbers[name] for name in self.numbers if name in _numbers_of(method)}
        return [dict(zip(own, values, strict=True)) for values in product(*own.values())]

    def settings(self, method: str) -> int:
        """How many rows each request of a method gets."""
        return len(self.numbers_of(method)) * len(self.strengths) * len(self.ranks)

    def __len__(self) -> int:
        return sum(len(self.taken(method)) * self.settings(method) for method in self.methods)

    def to_json(self) -> dict[str, Any]:
        """Plain values: the requests and each axis."""
        return {
            "requests": [request.to_json() for request in self.requests],
            "methods": list(self.methods),
            "strengths": list(self.strengths),
            "ranks": list(self.ranks),
            "numbers": {name: list(values) for name, values in self.numbers.items()},
        }


def cut(edit: Edit, rank: int) -> Edit:
    """An edit of at most a given rank.

    A projection onto the nullspace (it reads what it writes) keeps its leading directions, which is
    the same method at that rank: they come in the order of the prototypes' singular values, and to
    the update itself they are all alike. Of any other update `read writeᵀ` the truncated singular
    value decomposition is kept: of all updates of that rank the one nearest to it (Eckart and
    Young), so the one that moves embeddings most like it, all directions of the source alike.

    What a method promises of its whole edit (hull's certificate) a part of it does not keep.

    Args:
        edit: The edit, or a batch of them.
        rank: At least 1.

    Returns:
        The edit itself where its rank is no higher.
    """
    if rank >= edit.rank:
        return edit
    if torch.equal(edit.read, edit.write):
        return replace(edit, read=edit.read[..., :rank], write=edit.write[..., :rank])
    read, write, core = _factors(edit)
    left, size, right = torch.linalg.svd(core)
    return replace(
        edit,
        read=read @ (left[..., :rank] * size[..., None, :rank]),
        write=write @ right.mT[..., :rank],
    )


def ranks_used(edit: Edit) -> Int[Tensor, " *batch"]:
    """The ranks of a batch of updates, each its own: columns of zeros count for nothing."""
    size = edit.spectrum()
    return (size > _NO_RANK * size[..., :1]).sum(-1)


def _factors(edit: Edit) -> tuple[Tensor, Tensor, Tensor]:
    """`read writeᵀ` as two orthonormal bases and the small matrix between them."""
    read, upper = torch.linalg.qr(edit.read)
    write, lower = torch.linalg.qr(edit.write)
    return read, write, upper @ lower.mT


@dataclass(frozen=True)
class _Chunk:
    """Requests whose edits one method derives together, with the same numbers."""

    method: str
    numbers: Mapping[str, float]
    requests: tuple[int, ...]


class Run:
    """The features, the prototypes and the requests of a sweep, ready to be measured."""

    def __init__(
        self,
        sweep: Sweep,
        features: Features,
        classifier: Float[Tensor, "classes dim"],
        texts: Texts,
    ) -> None:
        """Check that every request can be measured, and measure the untouched model.

        Args:
            sweep: The grid.
            features: Embeddings of the untouched model.
            classifier: `[classes, dim]` what the images are named by; any scale of a row.
            texts: What edits are made from.

        Raises:
            ValueError: If no image is of what a request forgets, or none of what it keeps, or a
                request in some domains has no prototypes that name them.
        """
        self.sweep, self.texts = sweep, texts
        classes, domains = features.class_names, features.domain_names or EVERYWHERE
        self.shape, self.columns = (len(classes), len(domains)), domains
        self.masks = torch.stack([one.mask(classes, domains) for one in sweep.requests])
        self.classifier = unit(classifier.double())
        self.embeddings, self.labels = features.embeddings, features.labels
        self.domains = (
            torch.zeros_like(features.labels) if features.domains is None else features.domains
        )
        if texts.cells is None and any(one.domains for one in sweep.requests):
            raise ValueError(
                "a request in some domains needs prompts that name the domain, and there is no "
                "model to make them with: give --model"
            )
        self.told: dict[int, tuple[Told, Searched]] = {}
        self.shared = Shared.of(self.embeddings, self.classifier, self.labels, self.domains)
        struck = self.masks.all(-1).sum(-1)
        self.untouched = Untouched.of(
            self.embeddings, self.classifier, self.labels, self.domains, self.shape,
            most=max(1, int(struck.max())),
        )  # fmt: skip
        seen = self.untouched.count > 0
        for what, some in (("forgotten", self.masks), ("kept", ~self.masks)):
            bare = ~(some & seen).any(-1).any(-1)
            if bare.any():
                name = _named(sweep.requests[int(bare.nonzero()[0])])
                raise ValueError(f"there are no images of {what} cells in the request {name}")

    def chunks(self) -> Iterator[_Chunk]:
        """The chunks, in an order that depends on the sweep and the sizes alone."""
        sweep = self.sweep
        for method, numbers in ((m, n) for m in sweep.methods for n in sweep.numbers_of(m)):
            order = sorted(sweep.taken(method), key=self._rows_forgotten)
            # Whether domains play a part is one thing for all requests of a batch.
            for everywhere in (True, False):
                some = [i for i in order if everywhere == (not sweep.requests[i].domains)]
                if not some:
                    continue
                largest = self._rows_forgotten(some[-1])
                each = 4 * largest * len(self.texts.rows) + len(sweep.strengths) * (
                    2 * largest * self.classifier.shape[1] + 8 * math.prod(self.shape)
                )
                size = max(1, min(_MOST, _NUMBERS // each))
                for start in range(0, len(some), size):
                    yield _Chunk(method, numbers, tuple(some[start : start + size]))

    def measure(self, skip: int = 0, quiet: bool = False) -> Iterator[list[Row]]:
        """Derive and measure, a chunk at a time.

        Args:
            skip: Chunks that were measured before.
            quiet: Whether to leave out the progress bar on stderr.

        Yields:
            The rows of a chunk. A request that a method refuses (it finds nothing to remove, say)
            has no figures but says why in "refused".
        """
        with progress(total=len(self.sweep), unit="row", hidden=quiet, desc="sweeping") as bar:
            for number, chunk in enumerate(self.chunks()):
                if number >= skip:
                    yield self._measure(chunk)
                settings = len(self.sweep.strengths) * len(self.sweep.ranks)
                bar.update(len(chunk.requests) * settings)

    def _measure(self, chunk: _Chunk) -> list[Row]:
        made, refused = self._derive(chunk, chunk.requests)
        base = self._bases(chunk)
        axes = list(product(self.sweep.ranks, self.sweep.strengths))
        rows: list[Row] = [
            {**base[i], "rank": asked, "strength": strength, "refused": why}
            for (asked, strength), (i, why) in product(axes, refused.items())
        ]
        if made is None:
            return rows
        taken = [i for i in chunk.requests if i not in refused]
        by_rank: dict[int, list[int | None]] = {}
        for asked in self.sweep.ranks:
            by_rank.setdefault(min(asked or made.rank, made.rank), []).append(asked)
        for rank, asks in by_rank.items():
            edit = cut(made, rank)
            used = ranks_used(edit).tolist()
            right, scaled = self._right(edit), self._scaled(edit)
            values = self._figures(taken, right, scaled)
            for asked, (s, strength), (b, i) in product(
                asks, enumerate(self.sweep.strengths), enumerate(taken)
            ):
                found = {name: _value(one[s, b]) for name, one in values.items()}
                said = {"rank": asked, "strength": strength, "rank_used": used[b]}
                rows.append({**base[i], **said, **found})
        return rows

    def _right(self, edit: Edit) -> Int[Tensor, "strengths batch classes domains"]:
        """Images named right in each cell, under each edit at each strength."""
        right = count_right(
            self.embeddings, self.classifier, self.labels, self.domains, self.shape,
            self._scaled(edit),
        )  # fmt: skip
        return right.reshape(len(self.sweep.strengths), -1, *self.shape)

    def _scaled(self, edit: Edit) -> Edit:
        """The edits at each strength, one batch after the other."""
        read = torch.cat([edit.scale(strength).read for strength in self.sweep.strengths])
        return Edit(read, edit.write.repeat(len(self.sweep.strengths), 1, 1))

    def _figures(
        self,
        taken: Sequence[int],
        right: Int[Tensor, "strengths batch classes domains"],
        scaled: Edit,
    ) -> dict[str, Float[Tensor, "strengths batch"]]:
        """Every figure of each request's edit at each strength."""
        many = len(taken)
        told = [
            self.shared.told(self.masks[i], scaled[b::many]).averaged() for b, i in enumerate(taken)
        ]
        found = [self.shared.searched(self.masks[i], scaled[b::many]) for b, i in enumerate(taken)]
        evidence = replace(
            self.untouched.evidence(right, self.masks[torch.tensor(taken)]),
            told=Told.together(told),
            told_before=Told.together([self._told(i)[0] for i in taken]),
            searched=Searched.together(found),
        )
        return {name: v.expand(right.shape[:2]) for name, v in figures(evidence).items()}

    def _told(self, i: int) -> tuple[Told, Searched]:
        """What the untouched model tells under a request, and finds by names that stay."""
        if i not in self.told:
            mask = self.masks[i]
            told = self.shared.told(mask, None).averaged()
            self.told[i] = told, self.shared.searched(mask, None)
        return self.told[i]

    def _bases(self, chunk: _Chunk) -> dict[int, Row]:
        """What the rows of each request have in common."""
        masks = self.masks[torch.tensor(chunk.requests)]
        before = self.untouched.right.expand(masks.shape)
        ideal = torch.stack([self.untouched.ideal(mask) for mask in masks])
        told = Told.together([self._told(i)[0] for i in chunk.requests])
        searched = Searched.together([self._told(i)[1] for i in chunk.requests])
        found: dict[str, Tensor] = {}
        for model, right, says, finds in (
            ("before", before, told, searched), ("ideal", ideal, None, None),
        ):  # fmt: skip
            evidence = self.untouched.evidence(right, masks)
            values = figures(replace(evidence, told=says, told_before=says, searched=finds))
            found |= {f"{model}_{name}": v.expand(len(masks)) for name, v in values.items()}
        return {
            i: self._base(i, chunk, {name: _value(value[b]) for name, value in found.items()})
            for b, i in enumerate(chunk.requests)
        }

    def _base(self, i: int, chunk: _Chunk, values: Mapping[str, float | None]) -> Row:
        request = self.sweep.requests[i]
        return {
            **dict.fromkeys(COLUMNS),
            "request": i,
            "kind": request.paradigm,
            "classes": ";".join(request.classes),
            "domains": ";".join(request.domains),
            "method": chunk.method,
            "numbers": said_numbers(chunk.numbers),
            "images": len(self.labels),
            **values,
        }

    def _derive(
        self, chunk: _Chunk, requests: tuple[int, ...]
    ) -> tuple[Edit | None, dict[int, str]]:
        """The edits of some requests as one batch, and why those without one have none."""
        try:
            asked = [self.sweep.requests[i] for i in requests]
            given = self.texts.given(asked, self.columns)
            return METHODS[chunk.method].edit(given, chunk.numbers), {}
        except (ValueError, RuntimeError) as error:
            if len(requests) == 1:
                return None, {requests[0]: str(error)}
        edits: list[Edit] = []
        refused: dict[int, str] = {}
        for i in requests:
            edit, why = self._derive(chunk, (i,))
            edits += [] if edit is None else [edit]
            refused |= why
        return (joined(edits) if edits else None), refused

    def _rows_forgotten(self, i: int) -> int:
        """How many prototypes a request's edit is made from."""
        request = self.sweep.requests[i]
        if request.domains:
            return int(self.masks[i].sum())
        return int(self.masks[i].all(-1).sum()) + len(request.names) - len(request.classes)


def said_numbers(numbers: Mapping[str, float]) -> str | None:
    """Numbers on one line, as the table has them; None for a method's own."""
    return ", ".join(f"{name}={value:g}" for name, value in numbers.items()) or None


def _numbers_of(method: str) -> list[str]:
    """The names of a method's numbers."""
    return [one.name for one in fields(METHODS[method].numbers)]


def _value(figure: Tensor) -> float | None:
    value = float(figure)
    return None if math.isnan(value) else value


def _named(request: Forget) -> str:
    """A request in a message."""
    what = ", ".join(map(repr, request.classes[:5])) or "every class"
    more = f" and {len(request.classes) - 5} more" if len(request.classes) > 5 else ""
    return what + more + (f" in {', '.join(map(repr, request.domains))}" if request.domains else "")
