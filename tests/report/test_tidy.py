"""Tables read back by other readers; a journal that a stopped run goes on from."""

from __future__ import annotations

import builtins
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullspace_unlearn.files import OutputExists
from nullspace_unlearn.fingerprint import Fingerprint, OtherRun
from nullspace_unlearn.report import tidy
from nullspace_unlearn.report.tidy import Journal, write_csv, write_parquet

COLUMNS = {"number": int, "name": str, "share": float}
NAMES = ("number", "name", "share")
ROWS: list[dict[str, Any]] = [
    {"number": 1, "name": 'a "quoted", name', "share": 0.1 + 0.2},
    {"share": None, "name": "two\nlines; 猫", "number": None},
    {"number": 3, "name": None, "share": 1 / 3},
]


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    write_csv(ROWS, NAMES, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == NAMES
    assert rows[0] == ["1", 'a "quoted", name', "0.30000000000000004"]
    assert rows[1] == ["", "two\nlines; 猫", ""]
    assert [float(row[2]) for row in (rows[0], rows[2])] == [0.1 + 0.2, 1 / 3]


def test_parquet_keeps_types_and_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(tidy, "_GROUP", 2)
    write_parquet(iter(ROWS), COLUMNS, tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == list(NAMES)
    assert [str(kind) for kind in table.schema.types] == ["int64", "string", "double"]
    assert table.to_pylist() == [{name: row[name] for name in NAMES} for row in ROWS]
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 2
    write_parquet([], COLUMNS, tmp_path / "none.parquet")
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def failing() -> Iterator[dict[str, Any]]:
    yield ROWS[0]
    raise RuntimeError("no more")


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_a_table_is_whole_or_not_there(tmp_path: Path, write: Any) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "table"
    with pytest.raises(RuntimeError):
        write(failing(), COLUMNS, path)
    assert not list(tmp_path.iterdir())
    write(ROWS, COLUMNS, path)
    with pytest.raises(OutputExists):
        write(ROWS, COLUMNS, path)
    write(ROWS[:1], COLUMNS, path, overwrite=True)
    with pytest.raises(ValueError, match="columns of the table; not in both: other"):
        write([{**ROWS[0], "other": 1}], COLUMNS, tmp_path / "b")
    with pytest.raises(ValueError, match="not in both: share"):
        write([{"number": 1, "name": "a"}], COLUMNS, tmp_path / "b")
    assert [file.name for file in tmp_path.iterdir()] == ["table"]


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'nullspace-unlearn\[report\]'"):
        write_parquet(ROWS, COLUMNS, tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())
    write_csv(ROWS, NAMES, tmp_path / "a.csv")


# The journal.

RUN = Fingerprint({"ridge": 0.1})


@given(st.lists(st.lists(st.sampled_from(ROWS), max_size=3), max_size=4))
def test_a_journal_gives_back_what_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[dict[str, Any]]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "run"
    journal = Journal(path, RUN, NAMES)
    for chunk in chunks:
        journal.append(chunk)
    again = Journal(path, RUN, NAMES)
    assert again.chunks == journal.chunks == len(chunks)
    assert list(again.rows()) == [row for chunk in chunks for row in chunk]


def test_a_line_cut_short_is_dropped_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "run"
    journal = Journal(path, RUN, NAMES)
    journal.append(ROWS[:1])
    whole = path.stat().st_size
    journal.append(ROWS[1:])
    text = path.read_bytes()
    for end in range(whole, len(text)):
        path.write_bytes(text[:end])
        again = Journal(path, RUN, NAMES)
        assert again.chunks == 1 and path.stat().st_size == whole
    again.append(ROWS[2:])
    assert list(Journal(path, RUN, NAMES).rows()) == [ROWS[0], ROWS[2]]
    path.write_bytes(text)  # the control
    assert Journal(path, RUN, NAMES).chunks == 2


def test_other_files_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Journal(path, RUN, NAMES).append(ROWS)
    text = path.read_bytes()
    other_run = Fingerprint({"ridge": 0.5})
    for run, names, differs in (
        (other_run, NAMES, "run.ridge: 0.1, now 0.5"),
        (RUN, NAMES[:2], "columns: "),
    ):
        with pytest.raises(OtherRun, match=rf"is of another run \({differs}"):
            Journal(path, run, names)
    assert path.read_bytes() == text
    for other in (b"", b"\x89PNG\r\n\n", b"[]\n", b"null\n", b'{"format": 1}\n' + text):
        path.write_bytes(other)
        with pytest.raises(OtherRun):
            Journal(path, RUN, NAMES)
        assert path.read_bytes() == other


@pytest.mark.parametrize("line", [b"{}\n", b"x\n", b"[[1]]\n", b'["ab"]\n', b"[[1, 2, 3], 4]\n"])
def test_a_damaged_line_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "run"
    Journal(path, RUN, NAMES).append(ROWS)
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(ValueError, match="is damaged: remove it to begin anew"):
        Journal(path, RUN, NAMES)


def test_names_that_a_spreadsheet_would_compute_are_text(tmp_path: Path) -> None:
    names = ["=1+1", "@x", "-2 dogs", "+", "dog", "", "a=b"]
    write_csv(({"name": n, "value": -1.5} for n in names), ("name", "value"), tmp_path / "a.csv")
    lines = (tmp_path / "a.csv").read_text().splitlines()[1:]
    assert lines == ["'=1+1,-1.5", "'@x,-1.5", "'-2 dogs,-1.5", "'+,-1.5", "dog,-1.5", ",-1.5",
                     "a=b,-1.5"]  # fmt: skip
