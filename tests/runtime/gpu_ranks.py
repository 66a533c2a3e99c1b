"""A transport between ranks whose devices are this machine's memory.

It stands where NCCL does, moves what NCCL would, and keeps a record of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Barrier, BrokenBarrierError, Lock
from typing import Any

import numpy as np

from tests.runtime.gpu_drivers import HostDriver, InterpreterDriver, Launched
from tokc.runtime.drivers.base import Bytes, Handle

PATIENCE_S = 60.0  # for which a rank waits for others before the test fails
_INTERPRETER = Lock()


class RankInterpreter(InterpreterDriver):
    """An interpreted device beside others: the interpreter itself has one state for all threads."""

    def run(self, launched: Launched) -> None:
        with _INTERPRETER:
            super().run(launched)


@dataclass
class Meetings:
    """What ranks have in common: where each lays what it has for the others."""

    ranks: int
    laid: list[Bytes | None] = field(init=False)
    aborted: bool = False

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.ranks)
        self.laid = [None] * self.ranks


@dataclass
class HostCommunicator:
    """One rank; `moved` lists its collectives in the order in which its device ran them: name and bytes."""

    meetings: Meetings
    rank: int
    driver: HostDriver
    moved: list[tuple[str, int]] = field(default_factory=list)
    closed: bool = False

    @property
    def ranks(self) -> int:
        return self.meetings.ranks

    def all_gather(self, source: int, target: int, size: int, stream: Handle) -> None:
        given = self.driver.memory(source, size)
        taken = self.driver.memory(target, size * self.ranks).reshape(self.ranks, size)
        self._queue(stream, "all_gather", given, lambda laid: self._take(taken, laid))

    def exchange(self, source: int, target: int, size: int, stream: Handle) -> None:
        given = self.driver.memory(source, size * self.ranks)
        taken = self.driver.memory(target, size * self.ranks).reshape(self.ranks, size)
        at = slice(self.rank * size, (self.rank + 1) * size)
        self._queue(stream, "exchange", given, lambda laid: self._take(taken, [each[at] for each in laid]))

    def abort(self) -> None:
        self.meetings.aborted = True
        self.meetings.barrier.abort()

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _take(taken: Any, laid: Sequence[Bytes]) -> None:
        taken[:] = np.stack(laid)

    def _queue(self, stream: Handle, name: str, given: Bytes, take: Callable[[Any], None]) -> None:
        assert not self.closed, "the communicator is closed"
        size = len(given) if name == "all_gather" else len(given) // self.ranks

        def meet() -> None:
            self.meetings.laid[self.rank] = given.copy()
            if not self._together():
                return
            laid = [each for each in self.meetings.laid if each is not None]
            assert {len(each) for each in laid} == {len(given)}, "ranks move different sizes"
            take(laid)
            self._together()
            self.moved.append((name, size))

        self.driver._queue(stream, meet)

    def _together(self) -> bool:
        """Wait for all ranks; what was aborted ends and moves nothing, as on a device."""
        try:
            self.meetings.barrier.wait(PATIENCE_S)
        except BrokenBarrierError:
            assert self.meetings.aborted, "a rank did not come"
            return False
        return True


def host_ranks(drivers: Sequence[HostDriver]) -> tuple[HostCommunicator, ...]:
    """Connect some devices."""
    meetings = Meetings(len(drivers))
    return tuple(HostCommunicator(meetings, rank, driver) for rank, driver in enumerate(drivers))
