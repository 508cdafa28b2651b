"""`Patch`: an edit on disk, with the weights that it is for. Read and used without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from nullspace_unlearn.files import check_regular, new_file, refuse_replacing
from nullspace_unlearn.header import write_arrays

_FORMAT = "nullspace-unlearn edit 2"
DIGITS = 16
"""Of a tensor's hash, in hexadecimal, so many tell it from others."""
ORDER = 1e-3
"""Share of an edit from which on it counts which of two goes first: what half precision rounds."""


@dataclass(frozen=True)
class Weights:
    """The weights that a patch is for.

    Attributes:
        model: What the model is called.
        pretrained: The tag or file name that belongs to it.
        sha256: Hash of its weights file; None where it had been changed since it was read.
        tensors: The first `DIGITS` of each tensor's hash, by name in the state_dict.
    """

    model: str
    pretrained: str | None
    sha256: str | None
    tensors: Mapping[str, str]

    @property
    def title(self) -> str:
        """Model and tag in words."""
        return " ".join(filter(None, (self.model, self.pretrained)))

    def differing(self, tensors: Mapping[str, str]) -> list[str]:
        """Names of tensors that are others here, or in one of the two alone.

        Args:
            tensors: As `tensors`.
        """
        names = [*self.tensors, *(name for name in tensors if name not in self.tensors)]
        return [name for name in names if self.tensors.get(name) != tensors.get(name)]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "pretrained": self.pretrained,
            "sha256": self.sha256,
            "tensors": dict(self.tensors),
        }

    @classmethod
    def from_json(cls, said: Any) -> Weights:
        """Read them, trusting nothing.

        Raises:
            ValueError: If it is not what `to_json` gives.
        """
        if not isinstance(said, dict):
            raise ValueError("its weights are no mapping")
        model, pretrained, sha256 = (said.get(name) for name in ("model", "pretrained", "sha256"))
        tensors = said.get("tensors")
        if (
            not isinstance(model, str)
            or not isinstance(pretrained, str | None)
            or not isinstance(sha256, str | None)
            or not isinstance(tensors, dict)
            or not all(isinstance(value, str) for value in tensors.values())
        ):
            raise ValueError("what it says of its weights is malformed")
        return cls(model, pretrained, sha256, tensors)


@dataclass(frozen=True, eq=False)
class Patch:
    """The two thin matrices of an edit, and what they are for. A saved `Edit` is one.

    Attributes:
        read: `[*batch, source, rank]` float16, float32 or float64; as `Edit.read`.
        write: `[*batch, dim, rank]`; as `Edit.write`.
        space: What is read; as `Edit.space`.
        provenance: How the edit came to be, the request among it; plain JSON values.
        side: The tower that it goes to, "visual" or "text".
        weights: The weights that it is for; None for an edit of whatever fits its dimensions.
        figures: What was measured when it was made; plain JSON values, or None.
    """

    read: np.ndarray
    write: np.ndarray
    space: str = "embedding"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    side: str = "visual"
    weights: Weights | None = None
    figures: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        of = f" for {self.weights.title}" if self.weights else ""
        return (
            f"Patch({' -> '.join(str(m.shape[-2]) for m in (self.read, self.write))}, rank "
            f"{self.read.shape[-1]}, space={self.space!r}, side={self.side!r}{of})"
        )

    @property
    def title(self) -> str:
        """The request in words, or the method's name; of several, each."""
        return _title(self.provenance)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the matrices and what they act on, in hexadecimal."""
        digest = hashlib.sha256(f"{self.space} {self.side}".encode())
        for matrix in (self.read, self.write):
            digest.update(f" {matrix.dtype} {matrix.shape} ".encode() + matrix.tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a safetensors file: the same patch always gives the same bytes.

        Args:
            path: File to write.
            overwrite: Whether an existing file may be replaced.

        Raises:
            OutputExists: If the file exists and `overwrite` is false.
            ValueError: If provenance or figures hold more than plain values.
        """
        header = {
            "format": _FORMAT,
            "space": self.space,
            "side": self.side,
            "provenance": _json(dict(self.provenance)),
        }
        if self.weights is not None:
            header["weights"] = _json(self.weights.to_json())
        if self.figures is not None:
            header["figures"] = _json(dict(self.figures))
        check_patch(Path(path), overwrite)
        with new_file(Path(path), overwrite) as temporary:
            write_arrays(temporary, {"read": self.read, "write": self.write}, header)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch, or a saved edit, trusting nothing.

        Args:
            path: A file that `save` or `Edit.save` wrote.

        Returns:
            The patch.

        Raises:
            ValueError: If the file is missing, damaged, or no patch.
        """
        try:
            check_regular(Path(path))
            with safe_open(str(path), framework="np") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ValueError(f"its format is {header.get('format')!r}, not {_FORMAT!r}")
                side = header.get("side", "visual")
                if side not in ("visual", "text"):
                    raise ValueError(f"its side is {side!r}; allowed: visual, text")
                weights, figures = (
                    json.loads(header[name]) if name in header else None
                    for name in ("weights", "figures")
                )
                if not isinstance(figures, dict | None):
                    raise ValueError("its figures are no mapping")
                patch = cls(
                    read=file.get_tensor("read"),
                    write=file.get_tensor("write"),
                    space=header["space"],
                    provenance=dict(json.loads(header["provenance"])),
                    side=side,
                    weights=None if weights is None else Weights.from_json(weights),
                    figures=figures,
                )
            patch._check()
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved edit: {error}") from None
        return patch

    def _check(self) -> None:
        for name, matrix in (("read", self.read), ("write", self.write)):
            if matrix.ndim < 2 or matrix.dtype.kind != "f" or not np.isfinite(matrix).all():
                raise ValueError(f"{name} must be a matrix of finite numbers")
        if self.read.shape[-1] != self.write.shape[-1]:
            raise ValueError("read and write must have one rank")


def check_patch(path: Path, overwrite: bool) -> None:
    """Refuse to write a patch over anything but an older one.

    Args:
        path: The file to write.
        overwrite: Whether an older one may be replaced.

    Raises:
        OutputExists: If it exists and `overwrite` is false.
        ValueError: If it is another file.
    """
    refuse_replacing(path, overwrite, _FORMAT.encode(), "patch")


def order(first: Patch, second: Patch) -> float:
    """How much of two edits depends on which of them goes first.

        |A B - B A| / min(|A|, |B|)

    in the Frobenius norm, of what they subtract: `A = read writeᵀ` for edits of the embedding. A
    hidden edit D is added to W, and an embedding edit E = read writeᵀ multiplies it, which differs
    by D E; its share of D is taken. Edits of different weights, and two that are added to one
    weight, commute.

    Args:
        first: One edit.
        second: Another, on the same tower's weights.

    Returns:
        0 where the order does not count; from `ORDER` on it does.
    """
    if first.side != second.side:
        return 0.0
    spaces = {first.space, second.space}
    a, b = (p.read.astype(np.float64) @ p.write.astype(np.float64).T for p in (first, second))
    if spaces == {"embedding"}:
        between, size = a @ b - b @ a, min(np.linalg.norm(a), np.linalg.norm(b))
    elif spaces == {"embedding", "hidden"}:
        deeper, outer = (a, b) if first.space == "hidden" else (b, a)
        between, size = deeper @ outer, np.linalg.norm(deeper)
    else:
        return 0.0
    return float(np.linalg.norm(between) / size) if size > 0 else 0.0


@dataclass(frozen=True)
class Ordered:
    """How much it counts which of two patches goes first.

    Attributes:
        first: The place of one in the sequence, from 0.
        second: That of the other.
        share: `order` of the two.
    """

    first: int
    second: int
    share: float

    @property
    def matters(self) -> bool:
        """Whether the difference is more than what half precision rounds."""
        return self.share >= ORDER


def ordered(patches: Sequence[Patch]) -> tuple[Ordered, ...]:
    """For each two patches of a sequence, how much their order counts."""
    pairs = combinations(range(len(patches)), 2)
    return tuple(Ordered(i, j, order(patches[i], patches[j])) for i, j in pairs)


def _title(said: Mapping[str, Any]) -> str:
    parts, request = said.get("composed"), said.get("request")
    if isinstance(parts, list) and parts and all(isinstance(part, Mapping) for part in parts):
        return "; ".join(map(_title, parts))
    if not isinstance(request, Mapping):
        return str(said.get("method", "an edit"))
    names = ", ".join(map(str, request.get("classes") or ["every class"]))
    domains = ", ".join(map(str, request.get("domains") or []))
    return f"{names} in {domains}" if domains else names


def _json(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a patch holds plain values only: {error}") from None
