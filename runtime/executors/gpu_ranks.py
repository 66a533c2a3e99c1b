"""Runs an artifact on several GPUs of this machine together: a rank a device, a thread a rank.

Every rank has its part of the weights and of the cache, and runs the same launches; where the plan says so
they hand each other memory. All of them end a step with the same logits: those of the first are taken.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tokc.errors import ArtifactRefused, RequestRefused, TokcError
from tokc.runtime.artifact import Artifact
from tokc.runtime.drivers.abi import LaunchAbi
from tokc.runtime.drivers.base import Driver
from tokc.runtime.drivers.ranks import Communicator
from tokc.runtime.executors.base import Batch, Executor, Int32s
from tokc.runtime.executors.device_logits import DeviceLogits
from tokc.runtime.executors.gpu import GpuExecutor

_T = TypeVar("_T")


def open_gpu(artifact: Artifact, *, kv_bytes: int | None = None) -> Executor:
    """Return an executor on as many of this machine's devices as the artifact is for, the first ones.

    Raises: ArtifactRefused if a device, a driver or the package nccl4py is missing.
    """
    ranks = LaunchAbi.read(artifact.path).ranks
    if ranks == 1:
        return GpuExecutor.open(artifact, kv_bytes=kv_bytes)
    from tokc.runtime.drivers.cuda import CudaDriver
    from tokc.runtime.drivers.nccl import connected

    drivers: list[Driver] = []
    try:
        drivers += (CudaDriver(ordinal) for ordinal in range(ranks))
        communicators = connected(ranks)
    except TokcError:
        for driver in drivers:
            driver.close()
        raise
    return GpuRanks(artifact, drivers, communicators, kv_bytes=kv_bytes)


class GpuRanks:
    """An executor of executors, one a rank."""

    trees = blocks = None  # the host draws

    def __init__(
        self,
        artifact: Artifact,
        drivers: Sequence[Driver],
        communicators: Sequence[Communicator],
        *,
        kv_bytes: int | None = None,
    ) -> None:
        """Bring each rank's part to its device; drivers and communicators are closed with this.

        `kv_bytes` are of all devices together.
        Raises: ArtifactRefused as one executor does, for any rank.
        """
        count = len(drivers)
        self._communicators = communicators
        self._threads = [ThreadPoolExecutor(1, f"rank-{rank}") for rank in range(count)]
        self._ranks: list[GpuExecutor] = []
        self._broken = False
        self._room = _Least(count)

        def opened(rank: int) -> GpuExecutor:
            return GpuExecutor(
                artifact,
                drivers[rank],
                kv_bytes=None if kv_bytes is None else kv_bytes // count,
                communicator=communicators[rank],
                agreed=self._room.of,
            )

        try:
            self._ranks = self._each(opened)
        except BaseException:
            self.close()
            raise
        first = self._ranks[0]
        self.plan, self.vocab_size, self.page_size = first.plan, first.vocab_size, first.page_size
        self.context_length, self.num_pages = first.context_length, first.num_pages
        self.max_tokens, self.max_seqs = first.max_tokens, first.max_seqs
        self.kv_bytes_per_page = sum(rank.kv_bytes_per_page for rank in self._ranks)

    @property
    def likeliest(self) -> Int32s | None:
        """Return the token of each row's largest logit, as the first rank found it."""
        return self._ranks[0].likeliest

    def step(self, batch: Batch) -> DeviceLogits:
        """Run one step on all ranks; returns the first one's logits.

        Raises: RequestRefused if the batch exceeds the limits; TokcError if a device fails, or failed before.
        """
        return self._each(lambda rank: self._ranks[rank].step(batch))[0]

    def profile(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Run one step; returns the seconds of the first rank's launches, as `GpuExecutor.profile` does.

        A collective's include the time for which it waits for other ranks.
        """
        return self._each(lambda rank: self._ranks[rank].profile(batch))[0]

    def close(self) -> None:
        """Let go of all ranks; calling it again is allowed."""
        if self._ranks and not self._broken:
            with suppress(TokcError):
                self._each(lambda rank: self._ranks[rank].close())
        for rank in self._ranks:  # after a failure, without waiting for each other
            rank.close()
        for thread in self._threads:
            thread.shutdown()

    def _each(self, call: Callable[[int], _T]) -> list[_T]:
        """Let every rank do the same in its own thread.

        Where one fails while others wait for it, they are told to stop. What is refused is refused by all.
        """
        if self._broken:
            raise TokcError("a device failed in an earlier step", hint="open the artifact again")
        futures = [thread.submit(call, rank) for rank, thread in enumerate(self._threads)]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [error for future in done if (error := future.exception()) is not None]
        if failed and not all(isinstance(error, RequestRefused) for error in failed):
            self._stop()
        wait(futures)
        if failed:
            self._keep(futures)
            raise failed[0]
        return [future.result() for future in futures]

    def _stop(self) -> None:
        """Free the ranks that wait for one that will not come."""
        self._broken = True
        self._room.abort()
        for communicator in self._communicators:
            with suppress(TokcError):
                communicator.abort()

    def _keep(self, futures: "Sequence[Future[_T]]") -> None:
        """Keep the executors that were opened although others were not, so that they are closed."""
        made = [future.result() for future in futures if future.exception() is None]
        self._ranks += [each for each in made if isinstance(each, GpuExecutor)]


class _Least:
    """The least of a number that each rank has."""

    def __init__(self, count: int) -> None:
        self._barrier = Barrier(count)
        self._given: list[int] = []

    def of(self, number: int) -> int:
        """Wait for all ranks' numbers; return the least. Raises: ArtifactRefused if another rank failed."""
        self._given.append(number)
        try:
            self._barrier.wait()
        except BrokenBarrierError as error:
            raise ArtifactRefused("another device failed") from error
        return min(self._given)

    def abort(self) -> None:
        """Let nobody wait any longer."""
        self._barrier.abort()
