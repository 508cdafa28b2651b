"""safetensors files as bytes: replace a few tensors and leave every other bit as it was.

A file is the length of its header (8 bytes), the header (JSON), and the tensors end to end.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_BLOCK = 1 << 22


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
        with safe_open(str(path), framework="pt"):
            pass  # its checks: offsets in range, no holes, sizes that agree
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return parse_header(file.read(length).decode())
    except (OSError, SafetensorError, struct.error, UnicodeDecodeError) as error:
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


def write(
    target: Path, values: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file: the same ones always give the same bytes.

    Args:
        target: The file to write.
        values: The tensors by name, in a floating dtype.
        metadata: Free text.

    Raises:
        OSError: If it cannot be written.
    """
    specs = {k: (_NAMES[v.dtype], tuple(v.shape), v.nbytes) for k, v in values.items()}
    text = layout(specs, metadata or {})
    with target.open("wb") as out:
        _start(out, text)
        for name in parse_header(text).entries:
            out.write(to_bytes(values[name]))


def rewrite(source: Path, target: Path, replaced: Mapping[str, Tensor]) -> None:
    """Copy a file with some tensors replaced or added; with none, byte for byte.

    Args:
        source: The file to copy.
        target: The file to write.
        replaced: New values by name, in the dtype they are to be stored in.

    Raises:
        ValueError: If `source` is not a safetensors file.
        OSError: If `target` cannot be written.
    """
    header = read_header(source)
    before = {name: (e.dtype, e.shape, e.stop - e.start) for name, e in header.entries.items()}
    after = before | {
        name: (_NAMES[value.dtype], tuple(value.shape), value.nbytes)
        for name, value in replaced.items()
    }
    text = header.text if after == before else layout(after, header.metadata)
    with source.open("rb") as original, target.open("wb") as out:
        _start(out, text)
        for name in parse_header(text).entries:
            if name in replaced:
                out.write(to_bytes(replaced[name]))
            else:
                _copy(original, header, name, out)


def extract(source: Path, target: Path, names: Iterable[str], metadata: Mapping[str, str]) -> None:
    """Write some of a file's tensors, bit for bit, to a file of their own.

    Args:
        source: The file to take them from.
        target: The file to write.
        names: Which tensors.
        metadata: Free text for the new file.

    Raises:
        ValueError: If `source` is not a safetensors file.
        OSError: If `target` cannot be written.
    """
    header = read_header(source)
    taken = {name: header.entries[name] for name in names}
    specs = {name: (e.dtype, e.shape, e.stop - e.start) for name, e in taken.items()}
    text = layout(specs, metadata)
    with source.open("rb") as original, target.open("wb") as out:
        _start(out, text)
        for name in parse_header(text).entries:
            _copy(original, header, name, out)


def reassemble(text: str, first: Path, second: Path, target: Path) -> None:
    """Lay a file out as a header says, with tensors from two others.

    Args:
        text: The header of the file to write, verbatim.
        first: Where a tensor is taken from if it is there.
        second: Where it is taken from otherwise.
        target: The file to write.

    Raises:
        ValueError: If a tensor is in neither file, or of another size than the header says.
        OSError: If `target` cannot be written.
    """
    headers = {path: read_header(path) for path in (first, second)}
    with first.open("rb") as one, second.open("rb") as two, target.open("wb") as out:
        _start(out, text)
        for name, entry in parse_header(text).entries.items():
            file, path = (one, first) if name in headers[first].entries else (two, second)
            held = headers[path].entries.get(name)
            if held is None or (held.dtype, held.shape) != (entry.dtype, entry.shape):
                raise ValueError(f"{path} does not hold {name} as {entry.dtype} {entry.shape}")
            _copy(file, headers[path], name, out)


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


def to_bytes(value: Tensor) -> bytes:
    """A tensor's elements as stored: row by row, little-endian."""
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()


def _width(dtype: str, shape: tuple[int, ...], size: int) -> float:
    """Bytes an element takes."""
    return size / max(int(torch.Size(shape).numel()), 1)


def _start(out: BinaryIO, text: str) -> None:
    encoded = text.encode()
    out.write(struct.pack("<Q", len(encoded)) + encoded)


def _copy(source: BinaryIO, header: Header, name: str, out: BinaryIO) -> None:
    entry = header.entries[name]
    source.seek(header.offset + entry.start)
    left = entry.stop - entry.start
    while left:
        block = source.read(min(left, _BLOCK))
        if not block:
            raise OSError(f"{source.name} ended in the middle of {name}")
        out.write(block)
        left -= len(block)
