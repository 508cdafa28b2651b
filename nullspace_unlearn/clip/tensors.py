"""safetensors files as bytes: replace a few tensors and leave every other bit as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from nullspace_unlearn.header import Header, layout, parse_header, read_header, write_file

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_BLOCK = 1 << 22


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
    write_file(
        target, layout(specs, metadata or {}), lambda out, name: out.write(to_bytes(values[name]))
    )


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
    with source.open("rb") as original:

        def put(out: BinaryIO, name: str) -> None:
            if name in replaced:
                out.write(to_bytes(replaced[name]))
            else:
                _copy(original, header, name, out)

        write_file(target, text, put)


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
    with source.open("rb") as original:
        write_file(target, text, lambda out, name: _copy(original, header, name, out))


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
    entries = parse_header(text).entries
    with first.open("rb") as one, second.open("rb") as two:

        def put(out: BinaryIO, name: str) -> None:
            entry = entries[name]
            file, path = (one, first) if name in headers[first].entries else (two, second)
            held = headers[path].entries.get(name)
            if held is None or (held.dtype, held.shape) != (entry.dtype, entry.shape):
                raise ValueError(f"{path} does not hold {name} as {entry.dtype} {entry.shape}")
            _copy(file, headers[path], name, out)

        write_file(target, text, put)


def to_bytes(value: Tensor) -> bytes:
    """A tensor's elements as stored: row by row, little-endian."""
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()


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
