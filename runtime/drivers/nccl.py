"""Ranks connected by NCCL, through the package nccl4py.

Source: NCCL user guide 2.30, docs.nvidia.com/deeplearning/nccl/user-guide: group calls, CUDA graphs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsInt, cast

from tokc.errors import ArtifactRefused, TokcError
from tokc.runtime.drivers.base import Handle

BYTES = 0  # ncclInt8: what is moved is not looked at


class NcclCommunicator:
    """One rank of a communicator within this process."""

    def __init__(self, api: Any, communicator: Any, rank: int, ranks: int) -> None:
        """Take a communicator that NCCL made."""
        self.rank, self.ranks = rank, ranks
        self._api = api
        self._communicator: Any = communicator

    def all_gather(self, source: int, target: int, size: int, stream: Handle) -> None:
        """Queue: `size` bytes of each rank, one after the other, come to `target` of every rank."""
        with _said(self._api, "all_gather"):
            self._api.all_gather(source, target, size, BYTES, self._communicator, _address(stream))

    def exchange(self, source: int, target: int, size: int, stream: Handle) -> None:
        """Queue: piece j at `source`, of `size` bytes, becomes this rank's piece at `target` of rank j."""
        api, queue = self._api, _address(stream)
        with _said(api, "exchange"):
            api.group_start()
            try:
                for peer in range(self.ranks):
                    api.send(source + peer * size, size, BYTES, peer, self._communicator, queue)
                    api.recv(target + peer * size, size, BYTES, peer, self._communicator, queue)
            finally:
                api.group_end()

    def abort(self) -> None:
        """End what is queued, also if another rank never joins it; from any thread."""
        if self._communicator is not None:
            communicator, self._communicator = self._communicator, None
            with _said(self._api, "abort"):
                self._api.comm_abort(communicator)

    def close(self) -> None:
        """Let go of the communicator; every rank does, each from its own thread."""
        if self._communicator is not None:
            communicator, self._communicator = self._communicator, None
            with _said(self._api, "close"):
                self._api.comm_destroy(communicator)


def connected(ranks: int) -> tuple[NcclCommunicator, ...]:
    """Connect this process' first CUDA devices, one a rank.

    Raises: ArtifactRefused if the package or the library is missing, or the devices cannot be connected.
    """
    try:
        from nccl.bindings import nccl as api
    except ImportError as error:
        raise ArtifactRefused(
            "an artifact for several GPUs is run through the package nccl4py, which is missing",
            hint="install the extra `nccl` too: pip install 'WHEEL[cuda,nccl]', or '.[cuda,nccl]' in a clone",
        ) from error
    try:
        made = api.comm_init_all(ranks, list(range(ranks)))
    except (RuntimeError, api.NCCLError) as error:
        raise ArtifactRefused(
            f"{ranks} CUDA devices cannot be connected by NCCL: {error}",
            hint="the artifact needs as many devices; `nvidia-smi` lists them, NCCL_DEBUG=INFO says more",
        ) from error
    return tuple(NcclCommunicator(api, each, rank, ranks) for rank, each in enumerate(made))


@contextmanager
def _said(api: Any, what: str) -> Iterator[None]:
    try:
        yield
    except api.NCCLError as error:
        raise TokcError(f"NCCL: {what} failed: {error}", hint="NCCL_DEBUG=INFO says more") from error


def _address(stream: Handle) -> int:
    return int(cast(SupportsInt, stream))
