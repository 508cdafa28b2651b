"""What an eraser is (`Method`) and what it is given (`Given`): tensors, and never a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.edit import SPACES, Edit, Side, Space, joined
from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.linalg import as_float64, group_means, marked_first, unit
from nullspace_unlearn.spelling import did_you_mean, listed

Images = Literal["none", "may", "must"]
MadeOf = Literal["prompts", "pictures", "images"]

N = TypeVar("N")

# What `Seen` holds a row of for each image.
_ROWS = ("embeddings", "labels", "domains", "hidden", "mlp", "value")


@dataclass(frozen=True, eq=False)
class Seen:
    """Visual prototypes: rows as the model sees images of each cell.

    Attributes:
        embeddings: `[n, dim]` in the joint space; scale does not matter.
        labels: `[n]` the class of each, a row of `Given.mask`.
        domains: `[n]` the domain of each: a column of `Given.mask`, or, where classes go
            everywhere, of any other list of domains.
        made_of: What they come from: prompts moved to where images lie, pictures synthesised from
            the model, or real images, which can be judged by one another.
        hidden: `[n, width]` what enters the final projection, on the embeddings' scale.
        mlp: `[n, mlp_width]` what enters the last MLP's output layer, divided by the deviation that
            the last norm divides by.
        value: `[n, heads * embed]` what enters an attention pool's value projection, a block a
            head.
        bases: `[heads, dim, head_dim]` where in the joint space each head can write, orthonormal
            columns; given with `value`.
        beside: Pictures synthesised from the model, beside real images: a method may read them too.
    """

    embeddings: Float[Tensor, "n dim"]
    labels: Int[Tensor, " n"]
    domains: Int[Tensor, " n"]
    made_of: MadeOf = "images"
    hidden: Float[Tensor, "n width"] | None = None
    mlp: Float[Tensor, "n mlp_width"] | None = None
    value: Float[Tensor, "n heads_embed"] | None = None
    bases: Float[Tensor, "heads dim head_dim"] | None = None
    beside: Seen | None = None

    def read(self, space: Space) -> Float[Tensor, "n source"]:
        """The rows that an edit of a space reads.

        Raises:
            ValueError: If the prototypes were made without them.
        """
        source = self.embeddings if space == "embedding" else getattr(self, space)
        if source is None:
            raise ValueError(f"the visual prototypes were made without the {space} feature")
        return source

    def __getitem__(self, rows: Tensor) -> Seen:
        """Some of the rows."""
        return self._each(lambda _, mine: mine[rows])

    def of_classes(self, used: Bool[Tensor, " classes"]) -> Seen:
        """The rows of some classes alone, whose labels count these."""
        rows = self[used[self.labels]]
        place = used.cumsum(0) - 1
        beside = None if self.beside is None else self.beside.of_classes(used)
        return replace(rows, labels=place[rows.labels], beside=beside)

    def joined(self) -> tuple[Seen, Bool[Tensor, " rows"]]:
        """These rows and those beside them as one, and which are the latter."""
        beside = self.beside
        if beside is None:
            return self, torch.zeros(len(self.labels), dtype=torch.bool)
        both = self._each(lambda name, mine: torch.cat([mine, getattr(beside, name)]))
        count = torch.tensor([len(self.labels), len(beside.labels)])
        which = torch.tensor([False, True]).repeat_interleave(count)
        return replace(both, beside=None), which

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> Seen:
        """The rows of every kind that there are, changed alike."""
        changed: dict[str, Any] = {
            name: change(name, rows) for name in _ROWS if (rows := getattr(self, name)) is not None
        }
        return replace(self, **changed)

    def cell_means(self) -> tuple[Float[Tensor, "cells dim"], Int[Tensor, " c"], Int[Tensor, " c"]]:
        """One unit row for each cell that has any: the mean of its unit embeddings, normalised.

        Returns:
            The rows in float64, and the class and the domain of each.
        """
        rows = unit(as_float64("embeddings", self.embeddings))
        cells, which = torch.stack([self.labels, self.domains]).unique(dim=1, return_inverse=True)
        means = unit(group_means(rows, which, cells.shape[1]))
        return means, cells[0], cells[1]


@dataclass(frozen=True, eq=False)
class Told:
    """Text prototypes that a request tells apart.

    Attributes:
        rows: `[n, dim]` shared by the batch, float64.
        forgotten: `[*batch, n]` which of them each request forgets.
        kept: `[*batch, n]` which of them stay; some may be neither.
    """

    rows: Float[Tensor, "n dim"]
    forgotten: Bool[Tensor, "*batch n"]
    kept: Bool[Tensor, "*batch n"]

    def padded(self) -> Float[Tensor, "*batch most dim"]:
        """The forgotten rows of each request, those of shorter requests filled up with zeros."""
        return _padded(self.rows, self.forgotten)


@dataclass(frozen=True, eq=False)
class Given:
    """What an eraser is given: a vocabulary and, for each request of a batch, masks over it.

    Everything but the masks is shared by the batch: one request and ten thousand are the same code,
    and the same edit. All requests of a batch forget everywhere, or all of them in some domains.

    Attributes:
        names: `[names, dim]` unit text prototypes: of the classes, then of further names of them.
        owner: `[names]` the class that each is a name of; `0, 1, ...` for the classes themselves.
        mask: `[*batch, classes, domains]`, true where a cell is forgotten.
        forgotten: `[*batch, names]`, which names have anything forgotten. A further name takes part
            where its class is forgotten, and only in requests that list it.
        kept: `[*batch, names]`, which names stay; a near-synonym may be neither.
        cells: `[names, domains, dim]` unit prototypes from prompts that name the domain; None where
            requests forget everywhere, or nothing needs them.
        seen: Visual prototypes, where images are shown.
        space: What the edit is to read.
        moves: `[*batch, m, wordings, dim]` how other words move each of m forgotten names; for an
            edit of the images beyond how they move any name, which tells nothing there. None where
            nobody looked.
    """

    names: Float[Tensor, "names dim"]
    owner: Int[Tensor, " names"]
    mask: Bool[Tensor, "*batch classes domains"]
    forgotten: Bool[Tensor, "*batch names"]
    kept: Bool[Tensor, "*batch names"]
    cells: Float[Tensor, "names domains dim"] | None = None
    seen: Seen | None = None
    space: Space = "embedding"
    moves: Float[Tensor, "*batch m wordings dim"] | None = None

    def __post_init__(self) -> None:
        n, batch = len(self.names), self.mask.shape[:-2]
        wanted = {"owner": (n,), "forgotten": (*batch, n), "kept": (*batch, n)}
        if self.cells is not None:
            wanted["cells"] = (n, self.mask.shape[-1], self.names.shape[-1])
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} must be {list(shape)} beside names {list(self.names.shape)} and mask "
                    f"{list(self.mask.shape)}, got {list(getattr(self, name).shape)}"
                )
        if int(self.owner.max()) >= self.mask.shape[-2]:
            raise ValueError("owner must name one of the classes of the mask")

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions of the masks: empty for one request."""
        return self.mask.shape[:-2]

    @property
    def classes(self) -> Float[Tensor, "classes dim"]:
        """Prototypes of the classes alone."""
        return self.names[: self.mask.shape[-2]]

    @property
    def everywhere(self) -> bool:
        """Whether whole classes go, so that domains play no part."""
        return bool((self.mask.any(-1) == self.mask.all(-1)).all())

    def __getitem__(self, index: Any) -> Given:
        """One request, or some of them."""
        own = {name: getattr(self, name)[index] for name in ("mask", "forgotten", "kept")}
        return replace(self, **own, moves=None if self.moves is None else self.moves[index])

    def flat(self) -> Given:
        """The same requests with one batch dimension."""
        return replace(
            self,
            mask=self.mask.reshape(-1, *self.mask.shape[-2:]),
            forgotten=self.forgotten.reshape(-1, len(self.names)),
            kept=self.kept.reshape(-1, len(self.names)),
            moves=None if self.moves is None else self.moves.reshape(-1, *self.moves.shape[-3:]),
        )

    def __iter__(self) -> Iterator[Given]:
        """The requests, one by one."""
        flat = self.flat()
        return (flat[i] for i in range(len(flat.mask)))

    def told(self) -> Told:
        """The text prototypes to be told apart: names where classes go everywhere, else cells.

        Every cell of a name that takes part is one row: an alias counts as its class does.

        Raises:
            ValueError: If domains play a part and there are no prompts that name them.
        """
        if self.everywhere:
            return Told(as_float64("names", self.names), self.forgotten, self.kept)
        if self.cells is None:
            raise ValueError("a request in some domains needs prompts that name the domain")
        used = (self.forgotten | self.kept)[..., None]
        gone = self.mask[..., self.owner, :]
        cells = as_float64("cells", self.cells.flatten(0, 1))
        return Told(cells, (gone & used).flatten(-2), (~gone & used).flatten(-2))

    def forgets(
        self, labels: Int[Tensor, " n"], domains: Int[Tensor, " n"]
    ) -> Bool[Tensor, "*batch n"]:
        """Which of some cells (class and domain of each, as in `Seen`) each request forgets."""
        if self.everywhere:
            return self.mask.all(-1)[..., labels]
        return self.mask[..., labels, domains]

    def apart(self, group: Int[Tensor, " requests"], derive: Callable[[Given, int], Edit]) -> Edit:
        """Derive the edits of each group of requests together, and put them in order again.

        Args:
            group: The group of each request, counted from 0, in the order of `flat`.
            derive: Requests of one group, and its number -> their edits.

        Returns:
            The edits of all requests.
        """
        flat = self.flat()
        order = [(group == g).nonzero()[:, 0] for g in range(int(group.max()) + 1)]
        edits = joined([derive(flat[index], g) for g, index in enumerate(order)])
        edits = edits[torch.cat(order).argsort()]
        shapes = (self.batch_shape + part.shape[1:] for part in (edits.read, edits.write))
        read, write = (
            part.reshape(shape)
            for part, shape in zip((edits.read, edits.write), shapes, strict=True)
        )
        return replace(edits, read=read, write=write)

    def one_by_one(self, derive: Callable[[Given], Edit]) -> Edit:
        """Derive each request's edit by itself, for an eraser that takes no batch."""
        if not self.batch_shape:
            return derive(self)
        return self.apart(
            torch.arange(len(self.flat().mask)), lambda part, _: derive(part[0])[None]
        )

    def alike(self, derive: Callable[[Given], Edit]) -> Edit:
        """Derive together the edits of requests in which the same names take part.

        Args:
            derive: Such requests, with these names alone -> their edits.

        Returns:
            The edits of all requests.
        """
        used, group = (self.flat().forgotten | self.flat().kept).unique(dim=0, return_inverse=True)
        return self.apart(group, lambda part, g: derive(part.of_names(used[g])))

    def of_names(self, used: Bool[Tensor, " names"]) -> Given:
        """The same requests over some of the names alone."""
        count = self.mask.shape[-2]
        classes = used[:count]
        place = classes.cumsum(0) - 1
        used = used & classes[self.owner]
        return replace(
            self,
            names=self.names[used],
            owner=place[self.owner[used]],
            mask=self.mask[..., classes, :],
            forgotten=self.forgotten[..., used],
            kept=self.kept[..., used],
            cells=None if self.cells is None else self.cells[used],
            seen=None if self.seen is None else self.seen.of_classes(classes),
        )


@dataclass(frozen=True)
class NoNumbers:
    """The numbers of a method that has none."""


@dataclass(frozen=True)
class Method(Generic[N]):
    """An eraser as the library, the command line and the tests know it.

    Attributes:
        name: What it is called.
        title: What it does, in a line.
        derive: What it is given, and its numbers -> edits with the batch's leading dimensions. An
            edit that reads another space than embeddings writes in the joint space all the same,
            for each head where heads read.
        numbers: Its numbers: a frozen dataclass that refuses what is out of range.
        paradigms: Which kinds of request it takes.
        sides: Which towers its edits are for.
        images: Whether it takes visual prototypes.
        pictures_for: The kinds of request of which prompts say too little, so that pictures are
            made where the user does not say otherwise.
        prompts_beside_images: Whether it reads prompts that name the domain even where images are
            shown.
        beside: Whether it reads synthesised pictures beside real images.
        spaces: What its edits can read; more than embeddings takes visual prototypes. Where the
            user does not say, it is the first that the model has.
        certified: Whether its edits carry a certificate.
        wordings: Whether it looks at other words for the forgotten names, in global requests.
        paper: Where it comes from; absent: from here.
        choose: One request -> the numbers for it; absent: the defaults, whatever is given.
    """

    name: str
    title: str
    derive: Callable[[Given, N], Edit]
    numbers: type[N]
    paradigms: tuple[Paradigm, ...] = ("global", "cell", "domain")
    sides: tuple[Side, ...] = ("visual", "text")
    images: Images = "none"
    pictures_for: tuple[Paradigm, ...] = ()
    prompts_beside_images: bool = False
    beside: bool = False
    spaces: tuple[Space, ...] = ("embedding",)
    certified: bool = False
    wordings: bool = False
    paper: str = ""
    choose: Callable[[Given], N] | None = None

    def edit(self, given: Given, numbers: Mapping[str, Any] | None = None) -> Edit:
        """Derive the edits of some requests.

        Args:
            given: The requests and what they are about.
            numbers: Some of the method's numbers, by name; the others are the method's own.

        Returns:
            The edits, float64, with the batch's leading dimensions.

        Raises:
            ValueError: If a number is unknown or out of range, something is lacking, the edit would
                remove nothing or everything, or a matrix cannot be factorised with these numbers.
        """
        changed = self.checked(numbers or {})
        cells = given.mask.flatten(-2)
        if not cells.any(-1).all() or cells.all(-1).any():
            raise ValueError("each request must forget at least one cell and keep at least one")
        if self.images == "must" and given.seen is None:
            raise ValueError(f"{self.name} looks at images: give visual prototypes")
        if given.space not in self.spaces:
            raise ValueError(f"{self.name} reads {listed(self.spaces)}, not {given.space}")
        if given.space != "embedding" and given.seen is None:
            raise ValueError(
                f"only images show what the {given.space} feature is: give visual prototypes"
            )
        try:
            if self.choose is None or len(changed) == len(fields(self.numbers)):  # type: ignore[arg-type]
                return self._derived(given, self.numbers(**changed))
            # Requests that choose the same numbers are derived together.
            chosen = [replace(self.choose(one), **changed) for one in given]  # type: ignore[type-var]
            distinct = list(dict.fromkeys(chosen))
            group = torch.tensor([distinct.index(one) for one in chosen])
            return given.apart(group, lambda part, g: self._derived(part, distinct[g]))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            said = ", ".join(f"{name}={value:g}" for name, value in changed.items())
            raise ValueError(
                f"{self.name} meets a matrix that cannot be factorised"
                + (f" with {said}" if said else "")
                + f": {' '.join(str(error).split())}"
            ) from None

    def _derived(self, given: Given, numbers: N) -> Edit:
        """Edits that say what made them, whether or not the method does."""
        edit = self.derive(given, numbers)
        return replace(edit, provenance={**said(self.name, numbers, edit.rank), **edit.provenance})

    def checked(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Some of the method's numbers, refused where one is unknown or out of range.

        Raises:
            ValueError: Saying which numbers there are, or what is allowed.
        """
        own = [one.name for one in fields(self.numbers)]  # type: ignore[arg-type]
        for name in numbers:
            if name not in own:
                raise ValueError(
                    f"{self.name} has no number {name!r}{did_you_mean(name, own)}; "
                    f"it has: {listed(own) if own else 'none'}"
                )
        self.numbers(**numbers)
        return dict(numbers)


def said(method: str, numbers: Any, edit_rank: int) -> dict[str, Any]:
    """The provenance of an edit: the method, its numbers and the rank that came out."""
    return {"method": method, "numbers": {**asdict(numbers), "rank": edit_rank}}


def check_space(space: str) -> None:
    """Refuse a space that there is not.

    Raises:
        ValueError: Saying which there are.
    """
    if space not in SPACES:
        raise ValueError(f"space is {space!r}; allowed: {', '.join(SPACES)}")


def _padded(
    rows: Float[Tensor, "n dim"], marked: Bool[Tensor, "*batch n"]
) -> Float[Tensor, "*batch most dim"]:
    order = marked_first(marked)
    return rows[order] * marked.take_along_dim(order, -1)[..., None]
