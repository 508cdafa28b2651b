"""Peak memory, each measurement in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_mib() -> float:
    """Peak memory of this process; getrusage would tell its parent's where that was larger."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def in_a_process(work: Callable[..., Any], *given: Any) -> Any:
    """Run in a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1, _quiet, (torch.get_num_threads(),)) as pool:
        return pool.apply(work, given)


def _quiet(threads: int) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(threads)
