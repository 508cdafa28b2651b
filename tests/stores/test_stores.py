"""Stored embeddings: edited as NumPy in float64 would, in any format, stopped or not."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killed import CHANGES, forked, killed_at, posix
from packaging.version import Version
from safetensors.numpy import load_file, save_file

from nullspace_unlearn.files import OutputExists
from nullspace_unlearn.patch import Patch
from nullspace_unlearn.stores import arrays, tables
from nullspace_unlearn.stores.change import Change, change
from nullspace_unlearn.stores.job import edit_store

DIM = 12


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def patch(seed: int = 0, dim: int = DIM, space: str = "embedding", side: str = "visual") -> Patch:
    said = {"request": {"classes": ["car"]}}
    return Patch(draw(dim, 2, seed=seed) / 4, draw(dim, 2, seed=seed + 1) / 4, space, said, side)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def oracle(rows: np.ndarray, *patches: Patch) -> np.ndarray:
    """What float64 gives, each row of length 1 given length 1 again, rounded once."""
    out = rows.astype(np.float64)
    for one in patches:
        out = out @ (np.eye(DIM) - one.read @ one.write.T)
    was = np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1) < 1e-3
    return np.where(was[:, None], unit(out), out)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Within one unit in the last place of what is stored, or the arithmetic's rounding."""
    eps = np.finfo(found.dtype).eps if found.dtype != np.float64 else 1e-12
    np.testing.assert_allclose(found, wanted, rtol=2 * eps, atol=4e-7)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 200 rows are many parts of several blocks."""
    monkeypatch.setattr(arrays, "_UNIT", 1000)
    monkeypatch.setattr(arrays, "_BLOCK", 300)
    monkeypatch.setattr(tables, "_BLOCK", 1000)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_is_edited_as_float64_would(
    dtype: type, tmp_path: Path, small_parts: None
) -> None:
    rows = draw(200, DIM)
    rows[:150] = unit(rows[:150])  # some normalised, some not
    rows = rows.astype(dtype)
    np.save(tmp_path / "a.npy", rows)
    seen = edit_store(tmp_path / "a.npy", tmp_path / "b.npy", change([patch()]), quiet=True)
    out = np.load(tmp_path / "b.npy")
    assert out.dtype == dtype and (seen.rows, seen.normalised, seen.bad) == (200, 150, 0)
    close(out, oracle(rows, patch()))
    assert not np.allclose(out, rows.astype(np.float64) @ (np.eye(DIM) - patch().read @
                                                           patch().write.T), atol=1e-2)  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.npy"]


def test_lengths_are_linear_where_that_is_asked() -> None:
    rows = unit(draw(20, DIM))
    operator = np.eye(DIM) - patch().read @ patch().write.T
    out, seen = change([patch()], "linear").of(rows)
    np.testing.assert_allclose(out, rows @ operator)
    assert seen.normalised == 0 and not np.allclose(np.linalg.norm(out, axis=1), 1, atol=1e-2)
    # A row of which nothing is left stays nothing.
    axis = np.eye(DIM)[:, :1]
    out, _ = change([Patch(axis, axis)]).of(np.eye(DIM)[:1])
    assert not out.any()


def test_several_patches_are_one_after_another(tmp_path: Path) -> None:
    rows = unit(draw(200, DIM))
    np.save(tmp_path / "a.npy", rows)
    both = [patch(0), patch(7)]
    edit_store(tmp_path / "a.npy", tmp_path / "b.npy", change(both), quiet=True)
    for i, one in enumerate(both):
        edit_store(tmp_path / f"{'ac'[i]}.npy", tmp_path / f"{'cd'[i]}.npy", change([one]),
                   quiet=True)  # fmt: skip
    together, apart = (np.load(tmp_path / f"{name}.npy") for name in "bd")
    np.testing.assert_allclose(together, apart)
    np.testing.assert_allclose(together, oracle(rows, *both))
    assert not np.allclose(together, oracle(rows, *both[::-1]))


def test_the_text_takes_a_patch_transposed() -> None:
    z, t = draw(5, DIM), draw(4, DIM, seed=3)
    edited = [change([patch(side=side)], "linear").of(rows)[0]
              for side, rows in (("visual", z), ("text", t))]  # fmt: skip
    np.testing.assert_allclose(edited[0] @ t.T, z @ edited[1].T)


def test_other_tensors_of_a_file_stay_bit_for_bit(tmp_path: Path, small_parts: None) -> None:
    rows = unit(draw(200, DIM)).astype(np.float16)
    provenance = {"made_with": {"weights": "abc", "edits": {"visual": None, "text": None}}}
    held = {"embeddings": rows, "labels": np.arange(200), "hidden": draw(200, 5)}
    save_file(held, tmp_path / "a", {"provenance": json.dumps(provenance), "class_names": "[]"})
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    edit_store(tmp_path / "a.safetensors", tmp_path / "b.safetensors", change([patch()]),
               quiet=True)  # fmt: skip
    found = load_file(tmp_path / "b.safetensors")
    close(found.pop("embeddings"), oracle(rows, patch()))
    assert all(np.array_equal(found[name], held[name]) for name in ("labels", "hidden"))
    header = arrays.read_header(tmp_path / "b.safetensors").metadata
    # It does not pass for what the untouched model gives.
    edits = json.loads(header["provenance"])["made_with"]["edits"]
    assert edits["visual"].startswith("patched ") and edits["text"] is None
    edit_store(tmp_path / "a.safetensors", tmp_path / "c.safetensors",
               change([patch(dim=5)]), column="hidden", quiet=True)  # fmt: skip
    assert np.array_equal(load_file(tmp_path / "c.safetensors")["embeddings"], rows)


KINDS: dict[str, Callable[[int], pa.DataType]] = {
    "fixed": lambda n: pa.list_(pa.float16(), n),
    "list": lambda n: pa.list_(pa.float32()),
    "large": lambda n: pa.large_list(pa.float64()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_tables(kind: str, tmp_path: Path, small_parts: None) -> None:
    rows, type_ = unit(draw(120, DIM)), KINDS[kind](DIM)
    numpy = type_.value_type.to_pandas_dtype()
    # Before 26, Arrow itself reads no Parquet file of fixed-size lists with a row missing.
    missing = [7] if kind != "fixed" or Version(pa.__version__).major >= 26 else []
    (tmp_path / "in" / "year=2024").mkdir(parents=True)
    (tmp_path / "in" / "README.md").write_text("about")
    names = ["year=2024/a.parquet", "b.parquet"]
    for i, name in enumerate(names):
        some = list(rows[60 * i : 60 * i + 60].astype(numpy))
        for j in missing:
            some[j] = None
        table = pa.table({"id": list(range(60)), "vector": pa.array(some, type_),
                          "text": [f"caption {j}" for j in range(60)]})  # fmt: skip
        pq.write_table(table.replace_schema_metadata({"made": "by hand"}), tmp_path / "in" / name)
    seen = edit_store(tmp_path / "in", tmp_path / "out", change([patch()]), quiet=True)
    assert (seen.rows, seen.normalised) == (120, 120 - 2 * len(missing))
    for i, name in enumerate(names):
        before, after = (pq.read_table(tmp_path / root / name, partitioning=None)
                         for root in ("in", "out"))  # fmt: skip
        assert after.schema.equals(before.schema, check_metadata=True)
        assert after["id"].equals(before["id"]) and after["text"].equals(before["text"])
        vectors = after["vector"].to_pylist()
        assert all(vectors.pop(j) is None for j in missing)
        wanted = np.delete(rows[60 * i : 60 * i + 60].astype(numpy), missing, axis=0)
        close(np.array(vectors, numpy), oracle(wanted, patch()))
    assert (tmp_path / "out" / "README.md").read_text() == "about"


# What is refused.


def test_rows_with_nan_are_counted_named_and_refused_or_kept(
    tmp_path: Path, small_parts: None
) -> None:
    rows = unit(draw(200, DIM)).astype(np.float16)
    rows[[3, 90, 91, 92, 93, 199], [0, 1, 2, 3, 4, 5]] = [np.nan, np.inf, *[np.nan] * 4]
    np.save(tmp_path / "a.npy", rows)
    message = (
        "6 of 200 rows hold NaN or Inf .a.npy row 3; a.npy row 90; a.npy row 91; a.npy row 92; "
        "a.npy row 93 and 1 more.: mend them, or pass --nan keep"
    )
    with pytest.raises(ValueError, match=message):
        edit_store(tmp_path / "a.npy", tmp_path / "b.npy", change([patch()]), quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
    seen = edit_store(
        tmp_path / "a.npy", tmp_path / "b.npy", change([patch()]), bad="keep", quiet=True
    )
    out = np.load(tmp_path / "b.npy")
    bad = ~np.isfinite(rows).all(1)
    assert seen.bad == 6 and np.array_equal(out[bad].view(np.uint16), rows[bad].view(np.uint16))
    close(out[~bad], oracle(rows[~bad], patch()))


def test_edits_of_other_features_are_refused_with_what_to_do_instead() -> None:
    for space in ("hidden", "mlp"):
        with pytest.raises(ValueError, match=f"the {space} feature.*--model.*and embed the images"):
            change([patch(space=space)])
    with pytest.raises(ValueError, match="apply those to stored images and these to stored texts"):
        change([patch(), patch(side="text")])
    with pytest.raises(ValueError, match="different widths: 12, 5"):
        change([patch(), patch(dim=5)])
    with pytest.raises(ValueError, match="there is no patch"):
        change([])


def bad_stores(root: Path) -> dict[str, str]:
    """Path -> what is said of it."""
    rows = draw(6, DIM)
    np.save(root / "wide.npy", draw(6, 7))
    np.save(root / "flat.npy", rows[0])
    np.save(root / "whole.npy", np.ones((6, DIM), np.int64))
    np.save(root / "columns.npy", np.asfortranarray(rows))
    np.save(root / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    (root / "cut.npy").write_bytes((root / "flat.npy").read_bytes()[:-8])
    (root / "text.txt").write_text("no store")
    save_file({"a": rows, "b": rows}, root / "two.safetensors")
    (root / "cut.safetensors").write_bytes((root / "two.safetensors").read_bytes()[:-8])
    pq.write_table(pa.table({"a": list(rows), "b": list(rows)}), root / "two.parquet")
    pq.write_table(pa.table({"a": [[1.0] * DIM, [1.0] * 3]}), root / "ragged.parquet")
    pq.write_table(pa.table({"a": [[None] + [1.0] * (DIM - 1)]}), root / "holes.parquet")
    (root / "cut.parquet").write_bytes((root / "two.parquet").read_bytes()[:-8])
    (root / "empty").mkdir()
    return {
        "wide.npy": "wide.npy holds vectors of 7 dimensions, and the patch is for 12",
        "flat.npy": "float64 of shape .12.; a store is .n, dim.",
        "whole.npy": "holds int64",
        "columns.npy": "stored by columns",
        "pickled.npy": "is no .npy file of numbers",
        "cut.npy": "is no .npy file of numbers",
        "text.txt": "allowed: .npy, .parquet, .safetensors, or a folder",
        "two.safetensors": "say with --column which tensor of two.safetensors holds vectors: a, b",
        "cut.safetensors": "is not a safetensors file",
        "two.parquet": "say with --column which column of two.parquet holds vectors: a, b",
        "ragged.parquet": "1 of rows 0 to 1 of ragged.parquet are vectors of 3 dimensions",
        "holes.parquet": "has 1 numbers missing",
        "cut.parquet": "is no Parquet file",
        "empty": "holds no vectors that can be read",
        "no": "store '.*no' is not there",
    }


def test_bad_stores_get_a_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, message in bad_stores(tmp_path / "in").items():
        with pytest.raises(ValueError, match=message):
            edit_store(tmp_path / "in" / name, tmp_path / "out", change([patch()]), quiet=True)
        shutil.rmtree(tmp_path / "out.parts", ignore_errors=True)  # of rows met on the way
        assert not (tmp_path / "out").exists()
    good = change([patch()])
    edit_store(tmp_path / "in/two.parquet", tmp_path / "out", good, column="b", quiet=True)
    for column, message in (("c", "no column 'c'; it has a, b"), ("a", "exists")):
        with pytest.raises(ValueError, match=message):
            edit_store(tmp_path / "in/two.parquet", tmp_path / "out", good, column=column,
                       quiet=True)  # fmt: skip


def test_what_is_refused_in_the_midst_leaves_nothing(tmp_path: Path, small_parts: None) -> None:
    """That a row of a list is of another length shows when it is read."""
    rows = [list(row) for row in draw(40, DIM)]
    for name, last in (("whole", rows[0]), ("cut", rows[0][1:])):
        pq.write_table(pa.table({"v": [*rows, last]}), tmp_path / f"{name}.parquet")
    before = set(tmp_path.iterdir())
    run = partial(edit_store, output=tmp_path / "out", change=change([patch()]), quiet=True)
    with pytest.raises(ValueError, match="1 of rows .* vectors of 11 dimensions.* is for 12"):
        run(tmp_path / "cut.parquet")
    assert set(tmp_path.iterdir()) == before
    run(tmp_path / "whole.parquet")  # the control
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out"}


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", draw(6, DIM))
    made = change([patch()])

    def run(output: str, **options: bool) -> None:
        edit_store(tmp_path / "in", tmp_path / output, made, quiet=True, **options)

    for output in ("in", "in/out", "."):
        with pytest.raises(ValueError, match="is the store, or one holds the other"):
            run(output)
    run("out")
    with pytest.raises(OutputExists):
        run("out")
    run("out", overwrite=True)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds 'mine.txt', which is not of this store"):
        run("out", overwrite=True)


# Stopped, and gone on with.


def store(root: Path) -> Path:
    """Two arrays of many parts and a table."""
    (root / "in").mkdir()
    for name in "ab":
        np.save(root / "in" / f"{name}.npy", unit(draw(200, DIM)).astype(np.float16))
    pq.write_table(pa.table({"v": list(unit(draw(60, DIM)))}), root / "in" / "c.parquet")
    return root / "in"


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def path_size(path: Path) -> int:
    return sum(map(len, contents(path).values()))


@posix
def test_it_goes_on_where_it_was_killed(tmp_path: Path, small_parts: None) -> None:
    path = store(tmp_path)

    def run(output: str, seed: int = 0) -> None:
        edit_store(path, tmp_path / output, change([patch(seed)]), threads=1, quiet=True)

    run("whole")
    run("again")
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")

    def dies(step: int) -> Callable[[], None]:
        def work() -> None:
            count = itertools.count(1)

            def hook(event: str, _: object) -> None:
                if event in ("open", "os.rename", "os.mkdir") and next(count) == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            run("killed")

        return work

    done = tmp_path / "killed.parts" / "done"
    for step in (1, 7, 12, 20, 45, 45):
        assert forked(dies(step)) == -signal.SIGKILL
        assert not (tmp_path / "killed").exists()
    notes = {p: p.stat().st_mtime_ns for p in done.glob("*.json")}
    assert 0 < len(notes) < 11
    with pytest.raises(ValueError, match="parts of another job .patches"):
        run("killed", seed=3)
    assert forked(dies(20)) == -signal.SIGKILL
    assert all(p.stat().st_mtime_ns == when for p, when in notes.items())  # not done again
    run("killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not (tmp_path / "killed.parts").exists()


@posix
@pytest.mark.parametrize("alone", [True, False])
def test_a_table_that_was_cut_off_is_written_anew(
    tmp_path: Path, small_parts: None, alone: bool
) -> None:
    """Killed in its midst it leaves nothing under the output's name, nor afterwards beside it."""
    path = tmp_path / "in"
    path.mkdir()
    table = pa.table({"v": list(unit(draw(60, DIM))), "id": list(range(60))})
    pq.write_table(table, path / "c.parquet", row_group_size=20)
    if alone:
        path = (path / "c.parquet").rename(tmp_path / "c.parquet")

    def run(output: str) -> None:
        edit_store(path, tmp_path / output, change([patch()]), threads=1, quiet=True)

    run("whole")
    begun = pq.ParquetWriter.write_batch

    def dies() -> None:
        def write(*given: object, **named: object) -> None:
            begun(*given, **named)
            if next(count) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        count = itertools.count(1)
        pq.ParquetWriter.write_batch = write
        run("out")

    for _ in range(2):
        assert forked(dies) == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
        # The control: something was begun, of which the next run must not make use.
        parts = list((tmp_path / "out.parts" / "edited").iterdir())
        assert [0 < p.stat().st_size < path_size(tmp_path / "whole") for p in parts] == [True]
        with pytest.raises(pa.ArrowInvalid):
            pq.read_table(parts[0])
    run("out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"in", path.name, "whole", "out"}


@posix
def test_a_kill_at_the_very_end_is_in_nobodys_way(tmp_path: Path) -> None:
    """Killed at each change of what is there, up to the last: the same call writes it again."""
    np.save(tmp_path / "in.npy", draw(6, DIM))

    def run() -> None:
        out = tmp_path / "out.npy"
        edit_store(tmp_path / "in.npy", out, change([patch()]), overwrite=True, quiet=True)

    run()
    whole, left = contents(tmp_path), set()
    for step in itertools.count(1):
        ended = forked(killed_at(step, run, CHANGES))
        left |= {path.name for path in tmp_path.iterdir()}
        run()
        assert contents(tmp_path) == whole
        if ended == 0:
            break
    # The control: some of these kills left the parts, and some what is removed of them.
    assert "out.npy.parts" in left and any(name.startswith(".out.npy.parts.") for name in left)


def test_a_store_that_changed_meanwhile_is_another_job(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = store(tmp_path), change([patch()])

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device", "b.npy")

    original = Change.of
    calls = itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr(
            Change, "of", lambda *given: fails() if next(calls) > 30 else original(*given)
        )
        with pytest.raises(OSError, match="parts are done and kept, and the same command goes on"):
            edit_store(path, tmp_path / "out", made, threads=1, quiet=True)
    np.save(path / "a.npy", draw(200, DIM))
    with pytest.raises(ValueError, match="parts of another job .files.a.npy"):
        edit_store(path, tmp_path / "out", made, quiet=True)
    edit_store(path, tmp_path / "out", made, overwrite=True, quiet=True)
    close(np.load(tmp_path / "out" / "a.npy"), oracle(np.load(path / "a.npy"), patch()))
