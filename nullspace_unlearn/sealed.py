"""Files whose name carries the hash of what they hold, so that damage shows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nullspace_unlearn.files import new_file

SEALED = re.compile(r"([\w.]+)-([0-9a-f]{64})\.safetensors")
"""A sealed file's name: its stem, and the SHA-256 of its bytes."""


def write_sealed(folder: Path, stem: str, tensors: Mapping[str, Tensor], note: str = "") -> Path:
    """Write tensors to a file named after their hash.

    Args:
        folder: Where to.
        stem: How the name begins: letters, digits, dots and underscores.
        tensors: On the CPU, contiguous.
        note: Text for the header.

    Returns:
        The file; of the same contents always the same.

    Raises:
        OSError: If it cannot be written; nothing is left of it then.
    """
    data = save(dict(tensors), metadata={"note": note})
    path = folder / f"{stem}-{hashlib.sha256(data).hexdigest()}.safetensors"
    # `save_file` would report a full disk as an error of its own kind.
    with new_file(path, overwrite=True) as temporary:
        temporary.write_bytes(data)
    return path


def read_sealed(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read back what `write_sealed` wrote.

    Args:
        path: The file.

    Returns:
        The tensors, by name in any order, and the note.

    Raises:
        ValueError: If its contents are not those its name promises.
        OSError: If it cannot be read.
    """
    name = SEALED.fullmatch(path.name)
    data = path.read_bytes()
    if name is None or hashlib.sha256(data).hexdigest() != name[2]:
        raise ValueError(f"{path} is damaged: its contents are not those it was written with")
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return load(data), str(header["__metadata__"]["note"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
