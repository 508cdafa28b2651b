"""What a safetensors file says of itself.

A file is the length of its header (8 bytes), the header (JSON), and the tensors end to end.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from nullspace_unlearn.files import check_regular


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        dtype: Its dtype in the format's words, such as "F16".
        shape: Its shape.
        start: Offset of its first byte after the header.
        stop: Offset of the byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        text: The header, verbatim, from which the file can be laid out again.
        entries: Its tensors by name, in the order they are stored.
        metadata: Its free text.
        offset: Where the tensors begin in the file.
    """

    text: str
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    offset: int


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file.

    Args:
        path: The file.

    Returns:
        The header.

    Raises:
        ValueError: If the file is not a whole safetensors file.
    """
    try:
        check_regular(path)
        with safe_open(str(path), framework="np"):
            pass  # its checks: offsets in range, no holes, sizes that agree
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return parse_header(file.read(length).decode())
    except (OSError, SafetensorError, struct.error, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def parse_header(text: str) -> Header:
    """Parse the text of a header.

    Args:
        text: The header, verbatim.

    Returns:
        The header.

    Raises:
        ValueError: If it is not one.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        metadata = data.pop("__metadata__", None) or {}
        entries = {
            name: Entry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in data.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"malformed safetensors header: {error}") from None
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    return Header(text, ordered, metadata, 8 + len(text.encode()))


def layout(
    specs: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> str:
    """The header of a file: the widest elements first, so that every tensor is aligned.

    Args:
        specs: dtype, shape and bytes of each tensor, by name.
        metadata: Free text.

    Returns:
        The header's text, padded to a multiple of 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape, size) in sorted(specs.items(), key=lambda item: -_width(*item[1])):
        stop = start + size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)


def _width(dtype: str, shape: tuple[int, ...], size: int) -> float:
    """Bytes an element takes."""
    return size / max(math.prod(shape), 1)


def opening(text: str) -> bytes:
    """What a file begins with, before its tensors.

    Args:
        text: Its header.
    """
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def write_arrays(
    target: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write NumPy arrays to a safetensors file: the same ones always give the same bytes.

    Args:
        target: The file to write.
        arrays: By name, float16, float32, float64 or int64.
        metadata: Free text.

    Raises:
        OSError: If it cannot be written.
    """
    stored = {
        name: np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        for name, value in arrays.items()
    }
    specs = {
        name: (f"{value.dtype.kind.upper()}{8 * value.itemsize}", value.shape, value.nbytes)
        for name, value in stored.items()
    }
    write_file(target, layout(specs, metadata), lambda out, name: out.write(stored[name].tobytes()))


def write_file(target: Path, text: str, write: Callable[[BinaryIO, str], object]) -> None:
    """Write a file as its header says: the header, then one tensor after another.

    Args:
        target: The file to write.
        text: The header.
        write: Writes the bytes of a tensor, of which it gets the name, to the file.

    Raises:
        OSError: If it cannot be written.
    """
    with target.open("wb") as out:
        out.write(opening(text))
        for name in parse_header(text).entries:
            write(out, name)
