"""Outputs are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from killed import CHANGES, forked, held, killed_at, posix

from nullspace_unlearn import files
from nullspace_unlearn.files import (
    OutputExists,
    OutputInUse,
    claimed,
    clear_cache,
    new_file,
    new_folder,
    read_json,
    refuse_foreign,
    refuse_strangers,
    remove_folder,
)

ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    with new_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # else the rename would not be atomic
    assert path.read_text() == "new"
    assert names(path.parent) == ["file"]


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("new")
        assert not path.exists()
    assert (path / "sub" / "file").read_text() == "new"
    assert names(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(error), new_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_an_error_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(RuntimeError), new_file(tmp_path / "file", overwrite=True):
        raise RuntimeError
    with pytest.raises(RuntimeError), new_folder(tmp_path / "folder", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("new", [new_file, new_folder])
@pytest.mark.parametrize("there", ["file", "folder", "dangling link"])
def test_what_exists_is_refused_before_any_work(tmp_path: Path, new, there: str) -> None:
    path = tmp_path / "out"
    if there == "file":
        path.touch()
    elif there == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists, match="out' exists; name another or pass --overwrite"):
        with new(path):
            pytest.fail("the work was begun")
    assert names(tmp_path) == ["out"]


def test_overwriting_replaces_the_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_file(tmp_path / "file", overwrite=True) as temporary:
            temporary.write_text(content)
        with new_folder(tmp_path / "folder", overwrite=True) as temporary:
            (temporary / content).touch()
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path / "folder") == ["new"]
    assert names(tmp_path) == ["file", "folder"]


KILLED = """
import os, signal, sys
from pathlib import Path
from nullspace_unlearn.files import new_file, new_folder
new = new_file if sys.argv[1] == "file" else new_folder
with new(Path(sys.argv[2]), overwrite=True) as temporary:
    target = temporary if sys.argv[1] == "file" else temporary / "weights"
    target.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@posix
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_kill_in_the_middle_leaves_the_old_or_nothing(
    tmp_path: Path, kind: str, existing: bool
) -> None:
    path = tmp_path / "out"
    inside = path if kind == "file" else path / "weights"
    if existing:
        inside.parent.mkdir(exist_ok=True)
        inside.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, kind, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.exists() == existing
    if existing:
        assert inside.read_text() == "old"
    # The next run is not in the way of what the dead one left.
    new = new_file if kind == "file" else new_folder
    with new(path, overwrite=True) as temporary:
        (temporary if kind == "file" else temporary / "weights").write_text("new")
    assert inside.read_text() == "new"


@posix
@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_kill_at_any_step_of_overwriting_loses_nothing(
    tmp_path: Path, in_one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where folders cannot be exchanged, whoever claims the path next puts the old one back."""
    if not in_one_step:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path, seen, absent = tmp_path / "out", set(), 0

    def write() -> None:
        with new_folder(path, overwrite=True) as temporary:
            (temporary / "weights").write_text("new")

    for step in itertools.count(1):
        path.mkdir(exist_ok=True)
        (path / "weights").write_text("old")
        done = forked(killed_at(step, write, CHANGES))
        assert path.is_dir() or not in_one_step
        absent += not path.exists()
        with claimed(path):
            assert names(tmp_path) == [".out.lock", "out"]
            seen.add((path / "weights").read_text())
            assert names(path) == ["weights"]
        assert names(tmp_path) == ["out"]
        if done == 0:
            break
    assert step > 3 and seen == {"old", "new"}
    assert (absent > 0) != in_one_step  # the control: the steps taken do show a gap


@posix
def test_a_kill_while_a_folder_is_removed_leaves_it_whole_or_gone(tmp_path: Path) -> None:
    path, seen = tmp_path / "out", set()
    for step in itertools.count(1):
        path.mkdir(exist_ok=True)
        for name in "abc":
            (path / name).touch()
        ended = forked(killed_at(step, lambda: remove_folder(path), CHANGES))
        seen.add(len(names(path)) if path.exists() else 0)
        with claimed(path):
            assert set(names(tmp_path)) <= {".out.lock", "out"}
        if ended == 0:
            break
    assert step > 4 and seen == {0, 3}  # with shutil.rmtree alone it is 1 and 2 as well


def test_a_swap_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace, fails = tmp_path / "out", Path.replace, True
    path.mkdir()
    (path / "old").touch()

    def replaced(self: Path, target: Path) -> Path:
        if fails and self.name.endswith(".tmp"):
            raise OSError(5, "disk gone")
        return replace(self, target)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "replace", replaced)
    for expected in ("old", "new"):
        try:
            with new_folder(path, overwrite=True) as temporary:
                (temporary / "new").touch()
        except OSError as error:
            assert fails and error.errno == 5
        assert names(path) == [expected]
        assert names(tmp_path) == ["out"]
        fails = False  # the control: it is this failure that keeps the old one


@posix
@pytest.mark.parametrize("existing", [True, False])
def test_the_second_process_is_told_who_holds_an_output(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "deep" / "out"
    if existing:
        path.mkdir(parents=True)
    with held(path) as holder:
        for _ in range(2):
            with pytest.raises(OutputInUse, match=rf"written by process {holder} on .* since"):
                with new_folder(path, overwrite=True):
                    pytest.fail("the work was begun")
        with claimed(path.with_name("other")):  # the control: only that path is held
            pass
    with new_folder(path, overwrite=True) as temporary:  # a dead process holds nothing
        (temporary / "file").touch()
    assert names(path) == ["file"]
    assert names(path.parent) == ["out"]


def test_a_claim_may_be_made_again_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "out"
    with claimed(path), claimed(path):
        assert names(path.parent) == [".out.lock"]
    assert names(tmp_path) == []


def test_a_claim_clears_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    for name in (".out.abcd_123.tmp", ".out.abcd1234.old", ".other.abcd1234.tmp", ".out.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    (tmp_path / ".out.12345678.tmp").symlink_to(tmp_path / ".out.tmp")
    with claimed(tmp_path / "out"):
        assert names(tmp_path) == [".other.abcd1234.tmp", ".out.lock", ".out.tmp"]
    assert names(tmp_path / ".out.tmp") == ["weights"]


def test_a_cache_loses_only_what_was_left_for_a_day(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    old, new, kept = (tmp_path / "text" / n for n in (".a.abcd1234.tmp", ".b.abcd1234.tmp", "a"))
    for file in (old, new, kept):
        file.touch()
    for file in (old, kept):
        os.utime(file, (0, 0))
    clear_cache(tmp_path)
    assert names(tmp_path / "text") == [new.name, "a"]
    clear_cache(tmp_path / "absent")


@pytest.mark.parametrize("new", [new_file, new_folder])
@pytest.mark.parametrize("there", ["link", "pipe", "other kind"])
def test_links_pipes_and_other_kinds_are_not_replaced(tmp_path: Path, new, there: str) -> None:
    path, target = tmp_path / "out", tmp_path / "target"
    target.touch()
    if there == "link":
        path.symlink_to(target)
    elif there == "pipe":
        os.mkfifo(path)
    elif new is new_file:
        path.mkdir()
    else:
        path.touch()
    before = path.lstat()
    with pytest.raises(ValueError, match="is a (link|folder|file)|neither a file nor a folder"):
        with new(path, overwrite=True):
            pytest.fail("the work was begun")
    assert os.path.samestat(path.lstat(), before)


@pytest.mark.parametrize("new", [new_file, new_folder])
@pytest.mark.parametrize("path", [".", "/", ".."])
def test_an_output_needs_a_name(new, path: str) -> None:
    with pytest.raises(ValueError, match="has no name of its own"), new(Path(path), overwrite=True):
        pytest.fail("the work was begun")


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_what_appears_meanwhile_is_not_replaced_without_leave(tmp_path: Path, new) -> None:
    with pytest.raises(OutputExists), new(tmp_path / "out") as temporary:
        (tmp_path / "out").write_text("of another")
    assert (tmp_path / "out").read_text() == "of another"
    assert not temporary.exists()


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_a_file_for_a_parent_is_refused(tmp_path: Path, new) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"), new(tmp_path / "file" / "out"):
        pytest.fail("the work was begun")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("new", [new_file, new_folder])
def test_a_read_only_parent_is_refused(tmp_path: Path, new) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match="no write access"), new(tmp_path / "out"):
            pytest.fail("the work was begun")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_is_respected(tmp_path: Path, umask, mask: int) -> None:
    umask(mask)
    with new_file(tmp_path / "file"):
        pass
    with new_folder(tmp_path / "folder"):
        pass
    assert mode(tmp_path / "file") == 0o666 & ~mask
    assert mode(tmp_path / "folder") == 0o777 & ~mask
    assert umask(0o022) == mask  # reading the umask did not change it


def test_a_file_that_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    refuse_foreign(path, b"mark", "picture")
    path.touch()
    refuse_foreign(path, b"mark", "picture")  # as mktemp leaves it
    for ours in (b"..mark..", bytes(9 << 20) + b"mark"):
        path.write_bytes(ours)
        refuse_foreign(path, b"mark", "picture")
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="file' is no picture, so it is not replaced"):
        refuse_foreign(path, b"mark", "picture")


def test_a_folder_with_what_is_not_ours_is_not_cleared(tmp_path: Path) -> None:
    for name in ("table.csv", "trials", ".x.abcdefgh.tmp"):
        (tmp_path / name).touch()
    refuse_strangers(tmp_path, ("table.*", "trials"), "a benchmark")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds 'notes.txt', which is not of a benchmark"):
        refuse_strangers(tmp_path, ("table.*", "trials"), "a benchmark")


def test_json_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert read_json(file) == {"a": [1]}
    for text in (b"{", b"[" * 100_000, b"\xff"):
        file.write_bytes(text)
        with pytest.raises(ValueError):
            read_json(file)
    with pytest.raises(ValueError, match="no such file|No such file"):
        read_json(tmp_path / "none")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="pipe or a device"):
            read_json(tmp_path / "pipe")
