"""Writing so that nothing is lost: to a temporary sibling first, renamed when whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class OutputExists(ValueError):
    """The output is already there and overwriting was not asked for."""


def default_cache() -> Path:
    """Where pictures and prompts' features are kept unless the user says otherwise."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nullspace-unlearn" / "prototypes"


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, before any work is spent on it.

    Args:
        path: Where the output is to go.
        overwrite: Whether the user allowed it to be replaced.

    Raises:
        OutputExists: If `path` exists and `overwrite` is false.
        ValueError: If its parent is not a folder that can be written to.
    """
    if not overwrite and (path.exists() or path.is_symlink()):
        raise OutputExists(f"output {str(path)!r} exists; name another or pass --overwrite")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"output {str(path)!r} cannot be written: no write access to {parent}")


@contextlib.contextmanager
def new_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `path` when the block ends without an error.

    Args:
        path: The file to write.
        overwrite: Whether an existing file may be replaced.

    Yields:
        The path to write to; it is removed if the block raises.

    Raises:
        OutputExists: If `path` exists and `overwrite` is false.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` when the block ends without an error.

    An existing folder is moved aside first and removed only once the new one is in its place.

    Args:
        path: The folder to write.
        overwrite: Whether an existing folder may be replaced.

    Yields:
        The folder to fill; it is removed with all it holds if the block raises.

    Raises:
        OutputExists: If `path` exists and `overwrite` is false.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o777 & ~_umask())
        if path.exists() or path.is_symlink():
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.replace(aside / path.name)
            temporary.replace(path)
            shutil.rmtree(aside)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
