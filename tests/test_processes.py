"""Processes that share a job: a failure in one stops all, and is told once.

The exchange itself is simulated here; `test_cli_embed.py` starts real processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nullspace_unlearn.processes import Processes, WorkerLost, launched


def fail() -> int:
    raise ValueError("it failed here")


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, dict[int, bool]], None]:
    """Say how the others fared: rank -> whether it failed."""

    def say(rank: int, failed: dict[int, bool]) -> None:
        def all_gather(told: list[Tensor], own: Tensor) -> None:
            told[rank].copy_(own)
            for other, value in failed.items():
                told[other].fill_(int(value))

        monkeypatch.setattr(dist, "all_gather", all_gather)

    return say


def test_one_process_needs_no_others() -> None:
    assert Processes().step(lambda: 3) == 3 and Processes().leads
    with pytest.raises(ValueError, match="it failed here"):
        Processes().step(fail)
    values = torch.tensor([1, 0])
    assert torch.equal(Processes().from_lead(values), values)


def test_a_failure_is_told_by_the_first_that_failed(
    others: Callable[[int, dict[int, bool]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_for: list[int] = []

    def closed(_: object, rank: int) -> None:
        waited_for.append(rank)
        raise RuntimeError("Connection closed by peer")  # as when that process has gone

    monkeypatch.setattr(dist, "broadcast", closed)
    others(1, {0: False, 2: False})
    assert Processes(1, 3).step(lambda: 3) == 3
    with pytest.raises(ValueError, match="it failed here"):
        Processes(1, 3).step(fail)
    for failed in ({0: True, 2: False}, {0: True, 2: True}):
        others(1, failed)
        for work in (fail, lambda: 3):
            with pytest.raises(SystemExit) as stop:  # quietly
                Processes(1, 3).step(work)
            assert stop.value.code == 1
    # The others wait for the one that says why: torchrun ends all when the first has gone.
    assert waited_for == [0] * 4
    others(1, {0: False, 2: True})
    with pytest.raises(ValueError, match="it failed here"):
        Processes(1, 3).step(fail)


def test_a_process_that_died_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:550] Connection closed by peer\n")

    monkeypatch.setattr(dist, "all_gather", closed)
    monkeypatch.setattr(dist, "broadcast", closed)
    for work in (fail, lambda: 3):
        with pytest.raises(WorkerLost, match="the same command goes on from there"):
            Processes(0, 2).step(work)
    with pytest.raises(WorkerLost):
        Processes(0, 2).from_lead(torch.tensor([1]))


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for environment in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "8"}):
        for name in ("WORLD_SIZE", "RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with launched() as found:
            assert found == Processes()
            assert signal.getsignal(signal.SIGTERM) is before


def test_being_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(WorkerLost, match="died or was stopped"), launched() as found:
        assert found == Processes(1, 2, 1) and not found.leads
        found.step(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == before
