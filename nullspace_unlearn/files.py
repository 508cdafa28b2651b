"""Writing so that nothing is lost: one process at a time, to a sibling that is renamed when whole.

A process that dies leaves the old content or the new, and beside it at most hidden siblings:
`.NAME.????????.tmp`, `.NAME.????????.old` and `.NAME.lock`. The next that claims the name clears
them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# What `tempfile` makes of a prefix and a suffix of ours.
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.(?P<kind>tmp|old)", re.DOTALL)
# How `renameat2` on Linux and `renamex_np` on macOS are told to swap two paths.
_HERE, _EXCHANGE = -100, 2
_A_DAY = 24 * 3600.0
_LONGEST = 64 << 20  # bytes of a text
_START = 1 << 22  # bytes of a file that are looked at for what it is

_claims: set[Path] = set()


class OutputExists(ValueError):
    """The output is already there and overwriting was not asked for."""


class OutputInUse(ValueError):
    """Another process is writing the output."""


def default_cache() -> Path:
    """Where pictures and prompts' features are kept unless the user says otherwise."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nullspace-unlearn" / "prototypes"


def read_text(path: str | Path, stdin: bool = False) -> str:
    """Read a file that a person wrote: UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        stdin: Whether it may be `/dev/stdin`.

    Returns:
        Its text.

    Raises:
        ValueError: If it is no regular file (a pipe or a device may never end), cannot be read, is
            no UTF-8, or longer than 64 MiB.
    """
    path = Path(path)
    try:
        if not (stdin and str(path) == "/dev/stdin"):
            check_regular(path)
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise ValueError(f"it is longer than {_LONGEST >> 20} MiB")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r} cannot be read: it is no UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # also a name that no file can have
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file, trusting nothing.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        ValueError: As `read_text`, or if it is no JSON, or nested deeper than can be read.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{str(path)!r} cannot be read: it is nested too deep") from None


def check_regular(path: Path) -> None:
    """Refuse to read what is there but no regular file: a pipe or a device may never end.

    Args:
        path: The file.

    Raises:
        ValueError: Saying what it is.
        OSError: If it is not there.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"it is {kind}, and no file")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, before any work is spent on it.

    Args:
        path: Where the output is to go.
        overwrite: Whether the user allowed it to be replaced.

    Raises:
        OutputExists: If `path` exists and `overwrite` is false.
        ValueError: If it is neither a file nor a folder, or its parent is not a folder that can be
            written to.
    """
    if path.name in ("", ".."):
        raise ValueError(f"output {str(path)!r} has no name of its own: name a file or folder")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise OutputExists(f"output {str(path)!r} exists; name another or pass --overwrite")
    if path.is_symlink():
        raise ValueError(f"output {str(path)!r} is a link, which is not replaced: name its target")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"output {str(path)!r} is neither a file nor a folder")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"output {str(path)!r} cannot be written: no write access to {parent}")


def refuse_foreign(path: Path, mark: bytes, what: str) -> None:
    """Refuse to replace a file that is no such file as is to be written.

    Args:
        path: Where it is to go; absent or empty, anything may.
        mark: What every such file holds, near its beginning or its end.
        what: What it is, for the message.

    Raises:
        ValueError: If the file lacks the mark.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        start = file.read(_START)
        file.seek(max(path.stat().st_size - _START, 0))
        if mark not in start and mark not in file.read():
            raise ValueError(f"output {str(path)!r} is no {what}, so it is not replaced")


def refuse_replacing(path: Path, overwrite: bool, mark: bytes, what: str) -> None:
    """Refuse to write over anything but an older file of the kind, and that unless it is allowed.

    Args:
        path: The file to write.
        overwrite: Whether an older one may be replaced.
        mark: As for `refuse_foreign`, and so `what`.
        what: What it is.

    Raises:
        OutputExists: If it exists and `overwrite` is false.
        ValueError: If it is another file, or as `refuse_existing`.
    """
    refuse_existing(path, overwrite)
    refuse_foreign(path, mark, what)


def refuse_strangers(folder: Path, ours: Collection[str], what: str) -> None:
    """Refuse to clear a folder that holds what the command that clears it does not write.

    Args:
        folder: The folder; it need not exist.
        ours: What such a folder holds: names, or patterns of them.
        what: What it is, for the message.

    Raises:
        ValueError: Naming the first stranger.
    """
    for found in sorted(_children(folder)):
        if not any(found.match(one) for one in ours) and not _LEFTOVER.fullmatch(found.name):
            raise ValueError(
                f"output {str(folder)!r} holds {found.name!r}, which is not of {what}, so it is "
                "not replaced"
            )


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from an output, and clear what dead ones left beside it.

    The claim ends with the process, whatever ends it; within the process it can be made again.

    Args:
        path: The file or folder that is to be written; it need not exist.

    Raises:
        OutputInUse: If another process has claimed it, which is named.
    """
    name, path = str(path), path.absolute().parent.resolve() / path.name
    if path in _claims:
        yield
        return
    made = _make_parents(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with _locked(lock, name):
            _claims.add(path)
            try:
                _put_back(path)
                clear_leftovers(path.parent, path.name)
                yield
            finally:
                _claims.discard(path)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def clear_leftovers(folder: Path, name: str | None = None, idle: float = 0.0) -> None:
    """Remove what dead processes were writing in a folder.

    Args:
        folder: The folder.
        name: What they were writing there; absent: anything. Nobody else must be writing it now,
            unless `idle` tells.
        idle: Seconds for which a leftover was not touched.
    """
    with contextlib.suppress(OSError):
        for left in list(folder.iterdir()):
            match = _LEFTOVER.fullmatch(left.name)
            if match and (name is None or match["name"] == name):
                with contextlib.suppress(OSError):
                    if not idle or time.time() - left.lstat().st_mtime > idle:
                        _remove(left)


def remove_folder(folder: Path) -> None:
    """Remove a folder in one step: a process that dies meanwhile leaves it whole, or a leftover.

    Args:
        folder: The folder, claimed; the next that claims it clears the leftover.
    """
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    folder.replace(aside / folder.name)
    shutil.rmtree(aside)


def clear_cache(folder: Path) -> None:
    """Remove what dead processes left in a cache, which others may be writing to.

    Args:
        folder: The cache; what nobody has touched for a day goes.
    """
    for one in (folder, *(child for child in _children(folder) if child.is_dir())):
        clear_leftovers(one, idle=_A_DAY)


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
        ValueError: If `path` is a folder, or cannot be written.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    if path.is_dir():
        raise ValueError(f"output {str(path)!r} is a folder, and a file is to be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        refuse_existing(path, overwrite)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` when the block ends without an error.

    An existing folder changes places with the new one in one step where the system can do that.
    Where it cannot, the old one is moved aside first, and put back if the new one cannot take its
    place; after a kill in between, by the next who claims the path.

    Args:
        path: The folder to write; it is claimed meanwhile.
        overwrite: Whether an existing folder may be replaced.

    Yields:
        The folder to fill; it is removed with all it holds if the block raises.

    Raises:
        OutputExists: If `path` exists and `overwrite` is false.
        OutputInUse: If another process is writing it.
        ValueError: If `path` is a file, or cannot be written.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    if path.is_file():
        raise ValueError(f"output {str(path)!r} is a file, and a folder is to be written")
    with claimed(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            temporary.chmod(0o777 & ~_umask())
            refuse_existing(path, overwrite)
            if not path.exists():
                temporary.replace(path)
            elif not _exchange(temporary, path):
                _replace_in_two_steps(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_in_two_steps(new: Path, path: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        path.replace(aside / path.name)
        new.replace(path)
    except BaseException:
        _put_back(path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _put_back(path: Path) -> None:
    """Bring back a folder that was moved aside, where nothing has taken its place."""
    for aside in () if path.exists() or path.is_symlink() else _children(path.parent):
        match = _LEFTOVER.fullmatch(aside.name)
        if match and (match["name"], match["kind"]) == (path.name, "old"):
            with contextlib.suppress(OSError):
                (aside / path.name).replace(path)
                aside.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places, so that at no time one is missing; False: it cannot be done."""
    paths = os.fsencode(one), os.fsencode(other)
    try:
        system = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(system.renamex_np(*paths, _EXCHANGE) == 0)
        return bool(system.renameat2(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)
    except (AttributeError, OSError, TypeError):
        return False


@contextlib.contextmanager
def _locked(file: Path, name: str) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process ends."""
    holder = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        holder = file.read_text(encoding="utf-8")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputInUse(
            f"output {name!r} is being written by {holder or 'another process'}; wait for it, "
            "or name another"
        ) from None
    except (OSError, NotImplementedError) as error:
        warnings.warn(f"{name!r} is not kept from other processes: {error}", stacklevel=4)
        yield
        return
    try:
        with contextlib.suppress(OSError):
            file.write_text(
                f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}",
                encoding="utf-8",
            )
        yield
    finally:
        # Held still, so whoever opened it meanwhile notices that it has gone and begins anew.
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()


def _make_parents(path: Path) -> list[Path]:
    """Make the folders above a path; those that were not there, innermost first."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _children(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
