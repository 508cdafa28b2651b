"""Processes that share a job under `torchrun`: they go on together or stop together.

What they exchange is whether each is well, and which parts are to be done: a few numbers on the
CPU, over gloo, which notices at once when a process dies. Features go through files.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

# torch is imported where there is more than one process: a job of one may do without.
if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

T = TypeVar("T")

_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others, who may have a large step or a slow disk."""


class WorkerLost(RuntimeError):
    """Another process died, or this one was told to stop because of it."""

    def __init__(self) -> None:
        super().__init__(
            "a worker process died or was stopped; what is done is kept, and the same command goes "
            "on from there"
        )


@dataclass(frozen=True)
class Processes:
    """The processes of a job, seen from one of them.

    Attributes:
        rank: Which one this is.
        count: How many there are, on all machines.
        local_rank: Which one this is on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the one that prints and puts the result together."""
        return self.rank == 0

    def step(self, work: Callable[[], T]) -> T:
        """Do something in every process, and wait for all.

        Args:
            work: What this process does.

        Returns:
            Its result, once all have succeeded.

        Raises:
            SystemExit: If it failed in another process, which says why.
            WorkerLost: If another process died.
        """
        if self.count == 1:
            return work()
        try:
            result = work()
        except WorkerLost:
            raise
        except Exception:
            if (first := self._failed(True)[0]) == self.rank:
                raise
            self._leave_after(first)
        if failed := self._failed(False):
            self._leave_after(failed[0])
        return result

    @contextlib.contextmanager
    def led(self, enter: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """A context that the leading process enters; where it cannot, all stop.

        Args:
            enter: What makes the context.

        Raises:
            SystemExit: If it failed in the leading process, which says why.
            WorkerLost: If another process died.
        """
        with contextlib.ExitStack() as held:
            self.step(lambda: held.enter_context(enter()) if self.leads else None)
            yield

    def from_lead(self, values: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """What the leading process holds, in every process.

        Args:
            values: `[n]`, of one length everywhere; read from the leading process.

        Raises:
            WorkerLost: If another process died.
        """
        if self.count > 1:
            import torch.distributed as dist

            with _noticing():
                dist.broadcast(values, 0)
        return values

    def _leave_after(self, rank: int) -> NoReturn:
        """Go once the process that says why has gone: torchrun ends all when the first goes."""
        import torch
        import torch.distributed as dist

        with contextlib.suppress(WorkerLost), _noticing():
            dist.broadcast(torch.zeros(1), rank)  # which it never sends
        raise SystemExit(1)

    def _failed(self, here: bool) -> list[int]:
        """The ranks in which the step failed."""
        import torch
        import torch.distributed as dist

        told = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with _noticing():
            dist.all_gather(told, torch.tensor([int(here)]))
        return [rank for rank, failed in enumerate(told) if failed]


@contextlib.contextmanager
def launched() -> Iterator[Processes]:
    """The processes that `torchrun` started, or this one alone.

    Yields:
        The processes. While they last, being told to stop raises `WorkerLost`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield Processes()
        return
    import torch
    import torch.distributed as dist

    before = signal.signal(signal.SIGTERM, _stop)
    # nccl is there for tensors on a GPU; those exchanged here are on the CPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _noticing():
        dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Processes(
            dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0))
        )
        dist.destroy_process_group()
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except WorkerLost:
        raise
    except RuntimeError:
        raise WorkerLost() from None


def _stop(*_: object) -> NoReturn:
    raise WorkerLost()
