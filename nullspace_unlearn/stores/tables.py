"""Stores that are a column of a Parquet file. The other columns go along as they are."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nullspace_unlearn.stores.change import Change, Seen

_BLOCK = 8 << 20  # bytes of vectors that are in memory at once
_MOST_ROWS = 1 << 16
_FLOATS = {"halffloat": 2, "float": 4, "double": 8}


@dataclass(frozen=True)
class TableFile:
    """A column of vectors in a Parquet file: fixed-size lists or lists of one length.

    Attributes:
        path: The file.
        name: What it is called in its store.
        column: The column.
        rows: How many there are.
        width: Dimensions of the vectors, where the type says; else 0.
        item: Bytes of a number.
    """

    path: Path
    name: str
    column: str
    rows: int
    width: int
    item: int

    # Written from its beginning to its end: what is cut off has no footer and is begun anew, and
    # row groups of several files can be joined only by encoding them again.
    units: int = 1

    def rows_of(self, unit: int) -> int:
        """How many rows a part has."""
        return self.rows

    def check(self, change: Change) -> None:
        """Refuse vectors of another width."""
        if self.width:
            change.check_width(self.width, self.name)

    def check_alike(self, other: Path) -> None:
        """Refuse to replace a file that is no such store."""
        parquet_file(other, other.name, self.column)

    def prepare(self, target: Path) -> None:
        """Make the folder; the file is written whole."""
        target.parent.mkdir(parents=True, exist_ok=True)

    def edit(self, unit: int, target: Path, change: Change, pool: Executor) -> Seen:
        """Write the edited file.

        Args:
            unit: 0.
            target: The file to write.
            change: What is made of the rows.
            pool: Threads; Arrow has its own.

        Returns:
            What was met.

        Raises:
            ValueError: If vectors are of another width, or there is a hole in one.
        """
        import pyarrow.parquet as pq

        seen = Seen()
        at_once = min(_MOST_ROWS, max(1, _BLOCK // (change.width * self.item)))
        with pq.ParquetFile(self.path) as source:
            schema = source.schema_arrow
            place = schema.get_field_index(self.column)
            kind = source.metadata.row_group(0).column(0).compression if self.rows else "SNAPPY"
            with pq.ParquetWriter(target, schema, compression=kind) as writer:
                for batch in source.iter_batches(at_once):
                    vectors, met = self._edited(batch.column(place), change, seen.rows)
                    writer.write_batch(batch.set_column(place, schema.field(place), vectors))
                    seen += met
        with target.open("rb+") as out:
            os.fsync(out.fileno())
        return seen

    def _edited(self, column: Any, change: Change, first: int) -> tuple[Any, Seen]:
        """An Arrow array of vectors, edited; rows that are null stay null."""
        import pyarrow as pa
        import pyarrow.compute as pc

        whole = column.drop_null()
        lengths = set(pc.unique(pc.list_value_length(whole)).to_pylist())
        if lengths - {change.width}:
            wrong = pc.not_equal(pc.list_value_length(whole), change.width)
            other = ", ".join(map(str, sorted(lengths - {change.width})))
            raise ValueError(
                f"{pc.sum(wrong).as_py()} of rows {first} to {first + len(column) - 1} of "
                f"{self.name} are vectors of {other} dimensions, and the patch is for "
                f"{change.width}"
            )
        numbers = whole.flatten()
        if numbers.null_count:
            raise ValueError(f"{self.name} has {numbers.null_count} numbers missing in vectors")
        rows = numbers.to_numpy(zero_copy_only=False).reshape(-1, change.width)
        out, seen = change.of(rows, self.name, first)
        values = pa.array(out.reshape(-1), column.type.value_type)
        if pa.types.is_fixed_size_list(column.type):
            made = pa.FixedSizeListArray.from_arrays(values, type=column.type)
        else:
            make = pa.LargeListArray if pa.types.is_large_list(column.type) else pa.ListArray
            steps = np.arange(len(whole) + 1) * change.width
            kind = pa.int64() if make is pa.LargeListArray else pa.int32()
            made = make.from_arrays(pa.array(steps, kind), values, type=column.type)
        if column.null_count:
            places = np.cumsum(np.asarray(column.is_valid())) - 1
            index = pa.array(places, mask=np.asarray(column.is_null()))
            made = made.take(index)
            seen += Seen(rows=column.null_count)
        return made, seen


def parquet_file(path: Path, name: str, column: str | None) -> TableFile:
    """Look at a Parquet file.

    Args:
        path: The file.
        name: What it is called in its store.
        column: Which column holds the vectors; absent: the only one that does.

    Raises:
        ValueError: If it is damaged, pyarrow is missing, or which column is meant does not show.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(
            f"{name} takes pyarrow to read: pip install 'nullspace-unlearn[report]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{name} is no Parquet file: {' '.join(str(error).split())}") from None
    vectors = [field.name for field in schema if _item(field.type)]
    if column is None:
        if len(vectors) != 1:
            listed = ", ".join(vectors) or "none"
            raise ValueError(f"say with --column which column of {name} holds vectors: {listed}")
        column = vectors[0]
    if column not in schema.names:
        raise ValueError(f"{name} has no column {column!r}; it has {', '.join(schema.names)}")
    kind = schema.field(column).type
    if not _item(kind):
        raise ValueError(
            f"column {column!r} of {name} is {kind}; allowed: lists of float16, float32 or float64"
        )
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
    return TableFile(path, name, column, rows, width, _item(kind))


def _item(kind: Any) -> int:
    """Bytes of a number of a type of vectors; 0 for any other type."""
    import pyarrow as pa

    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    return _FLOATS.get(str(kind.value_type), 0) if any(one(kind) for one in lists) else 0
