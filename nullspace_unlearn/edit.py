"""`Edit`: the low-rank update of one weight matrix that every eraser returns."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar, cast, get_args, overload, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.layer import EditLayer, subtracted
from nullspace_unlearn.patch import Patch

Space = Literal["embedding", "hidden", "mlp", "value"]
SPACES: tuple[Space, ...] = get_args(Space)
"""What an edit can read."""
DEEPER: tuple[Space, ...] = ("mlp", "value")
"""Those that lie before the final projection, so that embeddings and hidden features lack them."""
Side = Literal["visual", "text"]
_BLOCK = 1 << 20  # numbers that are edited at once: 8 MiB in float64

_Folded = TypeVar("_Folded", covariant=True)


@runtime_checkable
class Foldable(Protocol[_Folded]):
    """What an edit can be folded into: anything that knows where its weights live."""

    def fold(self, edit: Edit, side: Side = "visual") -> _Folded:
        """Return a copy whose weights carry the edit."""
        ...


@dataclass(frozen=True, eq=False)
class Edit:
    """A low-rank update of one final projection `z = h W`, or of a layer before it.

        z' = z - (z @ read) @ write.T        space "embedding":  W' = W (I - read writeT)
        z' = z - (h @ read) @ write.T        space "hidden":     W' = W - read writeT
        x' = x - (k @ read) @ write.T        space "mlp":        C' = C - write readT
        u' = u - (v @ read) @ write.T        space "value":      V' = V - write readT, by heads

    for row features. In a vision transformer, k is what enters the output layer C of the last
    block's MLP and x the residual stream it adds to; only a layer norm and W follow. Where a tower
    ends in an attention pool, v is what enters its value projection V and u what leaves it, each a
    block a head: read and write are stacked blocks of one rank, and a head has no part in another.

    The text side takes an embedding edit transposed, `t' = t - (t @ write) @ read.T`, which gives
    the same inner products: `z'.t = z.t'`. Leading dimensions are a batch of edits.

    Attributes:
        read: `[*batch, dim, rank]` (embedding), `[*batch, width, rank]` (hidden) or
            `[*batch, mlp_width, rank]` (mlp) or `[*batch, heads * embed, rank]` (value), what is
            looked for.
        write: `[*batch, dim, rank]`, what is subtracted where it is found; for an MLP edit in the
            residual stream, so its dim is the tower's width; for a value edit in u.
        space: Which feature is read: the embedding z, the hidden feature h that enters W, k or v.
        provenance: How the edit came to be (method, request, chosen numbers); plain JSON values.
    """

    read: Float[Tensor, "*batch source rank"]
    write: Float[Tensor, "*batch dim rank"]
    space: Space = "embedding"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))
        read, write = self.read, self.write
        if self.space not in SPACES:
            raise ValueError(f"space is {self.space!r}; allowed: {', '.join(SPACES)}")
        if read.ndim < 2 or read.ndim != write.ndim or read.shape[:-2] != write.shape[:-2]:
            raise ValueError(
                f"read {list(read.shape)} and write {list(write.shape)} must be matrices with the "
                "same leading dimensions"
            )
        if read.shape[-1] != write.shape[-1]:
            raise ValueError(
                f"read has rank {read.shape[-1]} and write {write.shape[-1]}; they must be equal"
            )
        if self.space == "embedding" and read.shape[-2] != write.shape[-2]:
            raise ValueError(
                f"an embedding edit reads and writes the same space, got {read.shape[-2]} and "
                f"{write.shape[-2]} dimensions"
            )
        if not (torch.isfinite(read).all() and torch.isfinite(write).all()):
            raise ValueError("read and write must be finite, got NaN or Inf")

    def __repr__(self) -> str:
        batch = f"batch {list(self.batch_shape)}, " if self.batch_shape else ""
        method = self.provenance.get("method")
        return (
            f"Edit({batch}rank {self.rank}, {self.read.shape[-2]} -> {self.dim}, "
            f"space={self.space!r}" + (f", method={method!r})" if method else ")")
        )

    @property
    def rank(self) -> int:
        """Columns of `read` and `write`: the rank of the update, or an upper bound of it."""
        return self.read.shape[-1]

    @property
    def dim(self) -> int:
        """Dimension of what is written: the joint space, the residual stream (mlp) or u (value)."""
        return self.write.shape[-2]

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions: empty for one edit."""
        return self.read.shape[:-2]

    def __getitem__(self, index: Any) -> Edit:
        """One edit (or a smaller batch) out of a batch."""
        return replace(self, read=self.read[index], write=self.write[index])

    @overload
    def apply(self, features: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray: ...

    @overload
    def apply(self, features: Tensor, hidden: Tensor | None = None) -> Tensor: ...

    def apply(
        self,
        features: Float[Tensor, "*any n dim"] | np.ndarray,
        hidden: Float[Tensor, "*any n width"] | np.ndarray | None = None,
    ) -> Float[Tensor, "*out n dim"] | np.ndarray:
        """Edit cached embeddings without touching weights.

        The arithmetic is done in the wider of the features' and the edit's dtypes, some rows at a
        time, and the result is rounded to the features' dtype. `nsu apply --embeddings` does the
        same to stores larger than the memory.

        Args:
            features: `[*any, n, dim]` embeddings z, normalised or not (the edit is linear, so a
                positive scale of a row passes through). A NumPy array gives one.
            hidden: `[*any, n, width]` hidden features h of the same rows; a hidden edit needs them.

        Returns:
            `[*batch, n, dim]` edited embeddings, not normalised.

        Raises:
            ValueError: If a hidden edit gets no hidden features, dimensions differ, the features
                are no floating-point numbers, or the edit is of `DEEPER`: its effect on z takes a
                model to compute.
        """
        if isinstance(features, np.ndarray):
            given = _tensor(features), None if hidden is None else _tensor(np.asarray(hidden))
            return self.apply(*given).numpy()
        if self.space in DEEPER:
            raise ValueError(
                f"an edit of space {self.space!r} acts on z through later layers: fold it and "
                "embed the images again"
            )
        source = features
        if self.space == "hidden":
            if hidden is None:
                raise ValueError("a hidden edit reads the hidden feature: pass hidden=[n, width]")
            source = _tensor(hidden) if isinstance(hidden, np.ndarray) else hidden
        if source.shape[-1] != self.read.shape[-2] or features.shape[-1] != self.dim:
            raise ValueError(
                f"the edit reads {self.read.shape[-2]} and writes {self.dim} dimensions, got "
                f"features of {features.shape[-1]}"
                + (f" and hidden features of {source.shape[-1]}" if source is not features else "")
            )
        if not (features.is_floating_point() and source.is_floating_point()):
            raise ValueError(f"features must be floating-point numbers, got {features.dtype}")
        dtype = torch.promote_types(features.dtype, self.read.dtype)
        read = self.read.to(features.device, dtype)
        write = self.write.to(features.device, dtype)
        # Wider copies of all rows at once would be many times the features.
        at_once = max(1, _BLOCK // (max(source.shape[-1], self.dim) * self.batch_shape.numel()))
        n = features.shape[-2]
        if n <= at_once:
            return subtracted(features, source, read, write)
        leading = torch.broadcast_shapes(features.shape[:-2], self.batch_shape)
        edited = features.new_empty(*leading, n, self.dim)
        for start in range(0, n, at_once):
            rows = (..., slice(start, start + at_once), slice(None))
            edited[rows] = subtracted(features[rows], source[rows], read, write)
        return edited

    def operator(self) -> Float[Tensor, "*batch dim dim"]:
        """The operator on embeddings `M = I - read writeT`, with `z' = z M`, in the edit's dtype.

        Returns:
            `[*batch, dim, dim]`; for tests and folding, never needed to apply the edit.

        Raises:
            ValueError: If the edit is of another space, and so has none.
        """
        if self.space != "embedding":
            raise ValueError(f"an edit of space {self.space!r} has no operator: it does not read z")
        eye = torch.eye(self.dim, dtype=self.read.dtype, device=self.read.device)
        return eye - self.read @ self.write.mT

    def transposed(self) -> Edit:
        """The edit as the text side takes it: of `t`, with `z'.t = z.t'`.

        Returns:
            An embedding edit, `t' = t - (t @ write) @ read.T`.

        Raises:
            ValueError: If the edit is of another space, which text has not.
        """
        if self.space != "embedding":
            raise ValueError(f"an edit of space {self.space!r} is of the image tower alone")
        return replace(self, read=self.write, write=self.read)

    def scale(self, strength: float) -> Edit:
        """The same edit at a strength: 0 does nothing, 1 is the edit itself.

        Args:
            strength: Any finite number; above 1 over-corrects.

        Returns:
            The scaled edit.

        Raises:
            ValueError: If the strength is not finite.
        """
        if not torch.isfinite(torch.tensor(float(strength))):
            raise ValueError(f"strength must be a finite number, got {strength}")
        return replace(self, read=self.read * strength)

    def spectrum(self) -> Float[Tensor, "*batch rank"]:
        """Singular values of the update `read writeT`, largest first, in the edit's dtype.

        Of a value edit as many as of one head, the largest of all heads'.
        """
        # A value edit reads heads times what it writes, and a block of one meets one of the other.
        heads = self.read.shape[-2] // self.dim if self.space == "value" else 1
        blocks = (part.unflatten(-2, (heads, -1)) for part in (self.read, self.write))
        upper, lower = (torch.linalg.qr(part).R for part in blocks)
        sizes = torch.linalg.svdvals(upper @ lower.mT).flatten(-2)
        return sizes.sort(-1, descending=True).values[..., : self.rank]

    def __matmul__(self, other: Edit) -> Edit:
        """Compose: `(a @ b).apply(z) == b.apply(a.apply(z))`, since rows multiply from the left.

        Edits of another space are added to the one weight that they share, so they add up.

        Raises:
            ValueError: If they are of two spaces: the composition would need the weights. Fold one
                after the other instead.
        """
        if self.space != other.space:
            raise ValueError(
                f"an edit of space {self.space!r} and one of {other.space!r} compose by folding "
                "one after the other, not with @"
            )
        crossed = other.read
        if self.space == "embedding":
            crossed = other.read - self.read @ (self.write.mT @ other.read)
        batch = torch.broadcast_shapes(self.batch_shape, other.batch_shape)
        parts = [self.read, crossed, self.write, other.write]
        first, second, third, fourth = (p.expand(*batch, *p.shape[-2:]) for p in parts)
        return Edit(
            read=torch.cat([first, second], -1),
            write=torch.cat([third, fourth], -1),
            space=self.space,
            provenance={"composed": [dict(self.provenance), dict(other.provenance)]},
        )

    def inverse(self) -> Edit:
        """What undoes an embedding edit (Woodbury): `(edit @ edit.inverse())` is identity.

        Returns:
            The inverse edit, of the same rank.

        Raises:
            ValueError: If there is none: the operator is singular, or something else is read.
        """
        if self.space in DEEPER:
            raise ValueError(
                f"an edit of space {self.space!r} is undone by folding it at strength -1, not by "
                "an inverse"
            )
        if self.space == "hidden":
            raise ValueError("a hidden edit is undone by subtracting it from W, not by an inverse")
        # (I - R Wt)^-1 = I + R (I - Wt R)^-1 Wt
        eye = torch.eye(self.rank, dtype=self.read.dtype, device=self.read.device)
        core = eye - self.write.mT @ self.read
        # Against 1, not the condition number: a core of nothing but rounding is well conditioned.
        least = torch.linalg.svdvals(core)[..., -1:] if self.rank else core.new_ones(1)
        if (least <= torch.finfo(core.dtype).eps ** 0.75).any():
            raise ValueError("the edit removes a direction entirely, so nothing can bring it back")
        return replace(self, read=-self.read @ torch.linalg.inv(core))

    def fold(self, model: Foldable[_Folded], side: Side = "visual") -> _Folded:
        """Write the edit into a model's weights.

        Args:
            model: A loaded `Clip` (or anything with a `fold` method).
            side: Which tower changes.

        Returns:
            An edited copy; tensors that do not change are shared with the original.

        Raises:
            ValueError: If the edit is a batch, does not fit, or cannot go on that side.
        """
        if self.batch_shape:
            raise ValueError(
                f"a batch of edits {list(self.batch_shape)} cannot be folded: index one"
            )
        return model.fold(self, side)

    def applied(self, model: Any, side: Side = "visual") -> AbstractContextManager[None]:
        """Put the edit into a live model while a block lasts: `with edit.applied(model): ...`.

        The edited tensors alone are held twice meanwhile, and the model's own come back bit for
        bit, whatever ends the block. As folding does, it proves by a forward pass that it took.

        Args:
            model: A `Clip`, an open_clip model, or transformers' `CLIPModel`; in any training mode.
            side: Which tower changes.

        Returns:
            The context.

        Raises:
            ValueError: As `fold`.
            RuntimeError: If the edited tower does not compute what the edit says.
        """
        # A model's attributes are known further up; whoever has a model has that imported.
        folding = importlib.import_module("nullspace_unlearn.clip.folding")
        return cast(
            AbstractContextManager[None],
            folding.applied(getattr(model, "model", model), self, side),
        )

    def module(self) -> EditLayer:
        """The edit as a layer for embeddings, which can be moved, saved and compiled as any.

        Returns:
            A module `z -> z'` (`z, h -> z'` for a hidden edit), with `read` and `write` as buffers.

        Raises:
            ValueError: If the edit is a batch, or of `DEEPER`: its effect on z takes a model.
        """
        if self.space in DEEPER or self.batch_shape:
            raise ValueError(
                f"an edit of {' or '.join(DEEPER)} or a batch of edits is no layer for embeddings: "
                "fold the one, index the other"
            )
        return EditLayer(self.read, self.write, reads_hidden=self.space == "hidden")

    def patch(self, side: Side = "visual") -> Patch:
        """The edit as it goes to disk, without weights; `patching.make_patch` says which it fits.

        Args:
            side: The tower that it is for.

        Returns:
            The patch; bfloat16, which NumPy does not know, becomes float32.
        """
        read, write = (
            (matrix.float() if matrix.dtype == torch.bfloat16 else matrix).detach().cpu().numpy()
            for matrix in (self.read, self.write)
        )
        return Patch(read, write, self.space, dict(self.provenance), side)

    @classmethod
    def of(cls, patch: Patch) -> Edit:
        """The edit of a patch.

        Args:
            patch: The patch.

        Returns:
            The edit, on the CPU, in the dtype it was saved in.

        Raises:
            ValueError: If the matrices are no edit.
        """
        return cls(
            read=torch.from_numpy(patch.read),
            write=torch.from_numpy(patch.write),
            space=cast(Space, patch.space),  # checked on construction
            provenance=patch.provenance,
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the two thin matrices to a safetensors file (provenance in its header).

        Args:
            path: File to write.
            overwrite: Whether an existing file may be replaced.

        Raises:
            OutputExists: If the file exists and `overwrite` is false.
        """
        self.patch().save(path, overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read an edit back, that of a patch too.

        Args:
            path: A file that `save` wrote, or `nsu erase --patch`.

        Returns:
            The edit, on the CPU, in the dtype it was saved in.

        Raises:
            ValueError: If the file is missing, damaged, or not an edit.
        """
        patch = Patch.load(path)
        try:
            return cls.of(patch)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a saved edit: {error}") from None


def joined(edits: Sequence[Edit]) -> Edit:
    """Batches of edits as one batch, the lower ranks filled up with columns of zeros.

    Args:
        edits: Edits with one leading dimension, of one space and one method.

    Returns:
        One batch, in their order; the provenance is the first one's, its rank the largest.
    """
    rank = max(edit.rank for edit in edits)
    read, write = (
        torch.cat([torch.nn.functional.pad(part, (0, rank - part.shape[-1])) for part in parts])
        for parts in ([edit.read for edit in edits], [edit.write for edit in edits])
    )
    provenance = dict(edits[0].provenance)
    if "rank" in (numbers := provenance.get("numbers", {})):
        provenance["numbers"] = {**numbers, "rank": rank}
    return replace(edits[0], read=read, write=write, provenance=provenance)


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares an array's memory."""
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"features must be float16, float32 or float64, got {array.dtype}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor written to
        return torch.from_numpy(array)
