"""Processes that die by SIGKILL at a chosen step of what they do to files."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nullspace_unlearn.files import claimed

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")

EVERYTHING = ("os.", "shutil.", "ctypes.", "open", "tempfile.")
CHANGES = ("os.rename", "os.remove", "os.rmdir", "shutil.", "ctypes.dlsym")


def forked(work: Callable[[], None]) -> int:
    """Run in a child process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(
    step: int, work: Callable[[], None], events: tuple[str, ...] = EVERYTHING
) -> Callable[[], None]:
    """The same work, ended before the step-th thing that it asks the system for (from 1).

    Python tells of these in audit events; those whose names begin with one of `events` count.
    """

    def dies() -> None:
        count = itertools.count(1)

        def hook(event: str, _: object) -> None:
            if event.startswith(events) and next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return dies


@contextlib.contextmanager
def held(path: Path) -> Iterator[int]:
    """The number of a process that claims a path until it is killed at the end."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        with claimed(path):
            os.write(writes, b"!")
            signal.pause()
    try:
        assert os.read(reads, 1) == b"!"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reads)
        os.close(writes)
