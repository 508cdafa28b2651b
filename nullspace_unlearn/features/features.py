"""`Features`: embeddings of labelled images, computed once and kept in a file."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nullspace_unlearn.files import check_regular, new_file, refuse_replacing
from nullspace_unlearn.fingerprint import Fingerprint, of_tensors
from nullspace_unlearn.header import write_arrays
from nullspace_unlearn.words import check_printable

_FORMAT = "nullspace-unlearn features 1"
_ROWS = 1 << 16  # looked at at once, since a file may be larger than the memory


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of labelled images, checked on construction.

    Attributes:
        embeddings: `[n, dim]` float32, what the image tower gives, normalised or not.
        labels: `[n]` int64, index into `class_names`.
        class_names: Names of the classes; empty where a file has neither names nor text, and the
            labels then have no upper end.
        hidden: `[n, width]` float32, what enters the tower's final projection, or None.
        domains: `[n]` int64, index into `domain_names`, or None where there are no domains.
        domain_names: Names of the domains.
        text: `[classes, dim]` float32, a prototype of each class, or None.
        provenance: Where the features come from; plain JSON values.
    """

    embeddings: Float[Tensor, "n dim"]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]
    hidden: Float[Tensor, "n width"] | None = None
    domains: Int[Tensor, " n"] | None = None
    domain_names: tuple[str, ...] = ()
    text: Float[Tensor, "classes dim"] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("class_names", tuple(self.class_names))
        put("domain_names", tuple(self.domain_names))
        for what, names in (("class", self.class_names), ("domain", self.domain_names)):
            for name in names:
                check_printable(what, name)
        put("provenance", MappingProxyType(dict(self.provenance)))
        put("embeddings", _rows("embeddings", self.embeddings))
        n, dim = self.embeddings.shape
        put("labels", _indices("labels", self.labels, n, len(self.class_names) or None))
        if self.hidden is not None:
            put("hidden", _rows("hidden", self.hidden, n))
        if self.domains is not None:
            put("domains", _indices("domains", self.domains, n, len(self.domain_names)))
        elif self.domain_names:
            raise ValueError(f"{len(self.domain_names)} domain names are given, but no domains")
        if self.text is not None:
            put("text", _rows("text", self.text, len(self.class_names), dim))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What figures of these features depend on: their names and every number."""
        names = json.dumps([self.class_names, self.domain_names])
        parts = ("embeddings", "labels", "hidden", "domains", "text")
        return Fingerprint(
            {
                "count": len(self),
                "names": hashlib.sha256(names.encode()).hexdigest(),
                "numbers": of_tensors({name: getattr(self, name) for name in parts}),
            }
        )

    def subset(self, chosen: Int[Tensor, " k"]) -> Features:
        """Some of the rows; names and text stay.

        Args:
            chosen: `[k]` which rows.
        """
        return replace(
            self,
            embeddings=self.embeddings[chosen],
            labels=self.labels[chosen],
            hidden=None if self.hidden is None else self.hidden[chosen],
            domains=None if self.domains is None else self.domains[chosen],
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the features to a safetensors file, the names and provenance in its header.

        Args:
            path: File to write.
            overwrite: Whether an existing file may be replaced.

        Raises:
            OutputExists: If the file exists and `overwrite` is false.
        """
        arrays = {
            name: value.cpu().numpy()
            for name in ("embeddings", "labels", "hidden", "domains", "text")
            if (value := getattr(self, name)) is not None
        }
        header = file_header(self.class_names, self.domain_names, self.provenance)
        with new_file(Path(path), overwrite) as temporary:
            write_arrays(temporary, arrays, header)

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read back a file that `save` wrote.

        Args:
            path: The file.

        Returns:
            The features, on the CPU, mapped from the file: it may be larger than the memory.

        Raises:
            ValueError: If the file is missing, damaged, or not such a file.
        """
        try:
            check_regular(Path(path))
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ValueError(f"its format is {header.get('format')!r}, not {_FORMAT!r}")
                return cls(
                    class_names=_names(json.loads(header["class_names"])),
                    domain_names=_names(json.loads(header["domain_names"])),
                    provenance=json.loads(header["provenance"]),
                    **{name: file.get_tensor(name) for name in file.keys()},
                )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a feature file: {error}") from None


def file_header(
    class_names: tuple[str, ...], domain_names: tuple[str, ...], provenance: Mapping[str, Any]
) -> dict[str, str]:
    """The free text of a feature file's header."""
    return {
        "format": _FORMAT,
        "class_names": json.dumps(class_names),
        "domain_names": json.dumps(domain_names),
        "provenance": json.dumps(dict(provenance)),
    }


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse to write features over anything but older ones.

    Args:
        path: The file to write.
        overwrite: Whether an older one may be replaced.

    Raises:
        OutputExists: If it exists and `overwrite` is false.
        ValueError: If it is another file, or would be read as one.
    """
    if path.suffix.lower() == ".npz":  # which `read_features` takes for arrays of NumPy
        raise ValueError(
            f"output {str(path)!r}: features are written as safetensors, not as .npz: name it "
            f"{str(path.with_suffix('.safetensors'))!r}"
        )
    refuse_replacing(path, overwrite, _FORMAT.encode(), "feature file")


def read_features(path: str | Path) -> Features:
    """Read a feature file: one that `Features.save` wrote, or an .npz of arrays.

    The .npz holds `image_features` `[n, dim]` and `labels` `[n]`, and may hold `text_features`
    `[classes, dim]`, `class_names` (or `classes`) `[classes]`, and `domains` `[n]`, which are names
    or index `domain_names`; other arrays are passed over. With text but no names the classes are
    called "0", "1", ...; with neither they have no names, lest prompts be made from numbers.

    Rows of zeros, which are of no image, are left out and counted in the provenance, "zero_rows".

    Args:
        path: The file.

    Returns:
        The features in float32, on the CPU.

    Raises:
        ValueError: If the file is missing, damaged, holds pickled objects, lacks an array, or holds
            wrong shapes, NaN, Inf, labels out of range, or nothing but zeros.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"feature file {str(path)!r} is not a file")
    features = Features.load(path) if path.suffix.lower() != ".npz" else _read_npz(path)
    return _without_zeros(features, path)


def _read_npz(path: Path) -> Features:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in ("image_features", "labels"):
                if name not in arrays:
                    raise ValueError(f"it lacks {name!r}; it holds {', '.join(arrays.files)}")
            text = arrays["text_features"] if "text_features" in arrays else None
            named = next((name for name in ("class_names", "classes") if name in arrays), None)
            if named is not None:
                names = _names(arrays[named].tolist())
            else:
                names = tuple(map(str, range(0 if text is None else len(text))))
            domains, domain_names = _domains(arrays)
            return Features(
                embeddings=_tensor("image_features", arrays["image_features"]),
                labels=_tensor("labels", arrays["labels"]),
                class_names=names,
                domains=domains,
                domain_names=domain_names,
                text=None if text is None else _tensor("text_features", text),
                provenance={"file": path.name},
            )
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a feature file: {' '.join(str(error).split())}") from None


def _domains(arrays: Mapping[str, np.ndarray]) -> tuple[Tensor | None, tuple[str, ...]]:
    """The domain of each row and the domains' names, of an .npz that has them."""
    if "domains" not in arrays:
        return None, ()
    given = arrays["domains"]
    if given.dtype.kind == "U":
        names, places = np.unique(given, return_inverse=True)
        return torch.from_numpy(places.reshape(-1).astype(np.int64)), tuple(names.tolist())
    index = _tensor("domains", given)
    if "domain_names" in arrays:
        return index, _names(arrays["domain_names"].tolist())
    return index, tuple(map(str, range(int(index.max()) + 1 if index.numel() else 0)))


def _without_zeros(features: Features, path: Path) -> Features:
    zero = torch.cat([(rows == 0).all(1) for rows in features.embeddings.split(_ROWS)])
    if zero.all():
        raise ValueError(f"{path} is not a feature file: all its rows are zeros")
    if not zero.any():
        return features
    kept = features.subset((~zero).nonzero()[:, 0])
    return replace(kept, provenance={**features.provenance, "zero_rows": int(zero.sum())})


def _tensor(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold numbers, got {array.dtype}")
    # torch reads native byte order and few unsigned types.
    wide = np.float64 if array.dtype.kind == "f" else np.int64
    return torch.from_numpy(array.astype(np.float32 if array.dtype == np.float16 else wide))


def _rows(name: str, value: Tensor, n: int | None = None, dim: int | None = None) -> Tensor:
    expected = f"[{'n' if n is None else n}, {'dim' if dim is None else dim}]"
    if value.ndim != 2 or n not in (None, value.shape[0]) or dim not in (None, value.shape[1]):
        raise ValueError(f"{name} must be {expected}, got {list(value.shape)}")
    if not value.is_floating_point() or not value.numel():
        raise ValueError(f"{name} must hold real numbers, got {list(value.shape)} of {value.dtype}")
    value = value.float()
    for number, rows in enumerate(value.split(_ROWS)):
        if not torch.isfinite(rows).all():
            bad = number * _ROWS + int((~torch.isfinite(rows)).any(1).nonzero()[0])
            raise ValueError(f"{name} must be finite, got NaN or Inf, first in row {bad}")
    return value


def _indices(name: str, value: Tensor, n: int, below: int | None) -> Tensor:
    if value.ndim != 1 or len(value) != n:
        raise ValueError(f"{name} must be [{n}], got {list(value.shape)}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {value.dtype}")
    low, high = int(value.min()), int(value.max())
    if low < 0 or (below is not None and high >= below):
        end = "" if below is None else f" to {below - 1}"
        raise ValueError(f"{name} must be from 0{end}, got {low} to {high}")
    return value.long()


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("names must be a list of strings")
    return tuple(value)
