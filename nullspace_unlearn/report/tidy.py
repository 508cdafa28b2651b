"""Tables of one observation a row: CSV, Parquet, and the journal that a long run keeps."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nullspace_unlearn.evaluate.sweep import Row
from nullspace_unlearn.files import new_file
from nullspace_unlearn.fingerprint import Fingerprint, OtherRun, in_words

_FORMAT = "nullspace-unlearn rows 2"
# Rows of a Parquet row group, all that is held at once.
_GROUP = 1 << 16


def write_csv(
    rows: Iterable[Row], columns: Sequence[str], path: str | Path, overwrite: bool = False
) -> None:
    """Write rows as CSV, a header first; None is an empty field and numbers keep every digit.

    Text that a spreadsheet would compute gets an apostrophe before it.

    Args:
        rows: The rows, read once and not kept.
        columns: Names of the columns, in order.
        path: The file to write.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If a row has other columns.
    """
    with new_file(Path(path), overwrite) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for row in rows:
                writer.writerow([no_formula(value) for value in _checked(row, columns).values()])


def no_formula(value: Any) -> Any:
    """A value for a CSV table: text that a spreadsheet would compute gets an apostrophe before it.

    Args:
        value: Any value; numbers stay.
    """
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def write_parquet(
    rows: Iterable[Row], columns: Mapping[str, type], path: str | Path, overwrite: bool = False
) -> None:
    """Write rows as Parquet, with the types of the columns kept.

    Args:
        rows: The rows, read once; a bounded number of them is held.
        columns: Name of each column -> int, float or str; a value may be None.
        path: The file to write.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If pyarrow is not installed, or a row has other columns or types.
    """
    check_parquet()
    import pyarrow
    import pyarrow.parquet

    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    names, rows = tuple(columns), iter(rows)
    with new_file(Path(path), overwrite) as temporary:
        with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            while group := [_checked(row, names) for row in islice(rows, _GROUP)]:
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def check_parquet() -> None:
    """Refuse to write Parquet where it cannot be, before any work is spent on it.

    Raises:
        ValueError: If pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'nullspace-unlearn[report]'") from None


class Journal:
    """Rows of a run that has not ended, kept a chunk a line so that the run can go on.

    The first line says what the run is of; a line that was being written when the run stopped is
    dropped.
    """

    def __init__(self, path: str | Path, made_from: Fingerprint, columns: Sequence[str]) -> None:
        """Open a journal, or begin one.

        Args:
            path: The file.
            made_from: All that the rows depend on.
            columns: Names that every row has, in order.

        Raises:
            OtherRun: If the file is of another run, saying what differs, or is no journal.
            ValueError: If the file is damaged.
        """
        self.path, self._columns = Path(path), tuple(columns)
        self._head = Fingerprint({"format": _FORMAT, "columns": columns, "run": made_from})
        self.chunks = 0
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(self._head.facts)
            return
        with self.path.open("rb") as file:
            first, whole = file.readline(), file.tell()
            self._check(_parsed(first))
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._chunk(line)
                self.chunks, whole = self.chunks + 1, whole + len(line)
        os.truncate(self.path, whole)

    def append(self, rows: Sequence[Row]) -> None:
        """Add a chunk; when this returns, it is on the disk."""
        self._write([[row[name] for name in self._columns] for row in rows])
        self.chunks += 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, a chunk in memory at a time."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                for values in self._chunk(line):
                    yield dict(zip(self._columns, values, strict=True))

    def _check(self, head: Any) -> None:
        if not isinstance(head, dict) or head.get("format") != _FORMAT:
            raise OtherRun(f"{str(self.path)!r} is no journal of a run")
        if differences := Fingerprint(head).differences(self._head):
            raise OtherRun(f"{str(self.path)!r} is of another run ({in_words(differences)})")

    def _chunk(self, line: bytes) -> list[list[Any]]:
        rows = _parsed(line)
        wide = len(self._columns)
        if not isinstance(rows, list) or not all(
            isinstance(row, list) and len(row) == wide for row in rows
        ):
            raise ValueError(f"{str(self.path)!r} is damaged: remove it to begin anew")
        return rows

    def _write(self, value: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # also what is not UTF-8
        return None


def _checked(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """The row in the order of the columns."""
    if row.keys() != set(columns):
        other = ", ".join(sorted(row.keys() ^ set(columns)))
        raise ValueError(f"a row must have the columns of the table; not in both: {other}")
    return {name: row[name] for name in columns}
