"""Outputs are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nullspace_unlearn.files import OutputExists, new_file, new_folder

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


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
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
