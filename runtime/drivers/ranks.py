"""What ranks are: devices that run a step together, a thread each, and how they hand each other memory."""

from typing import Protocol

from tokc.runtime.drivers.base import Handle

ALL_GATHER, EXCHANGE = "all_gather", "exchange"


class Communicator(Protocol):
    """One rank's end of what connects all of them. Each rank makes the same calls in the same order.

    Work is queued on the rank's stream, as kernels are, and may be recorded in a graph. Addresses are of the
    rank's own device; sizes are in bytes.
    """

    rank: int
    ranks: int

    def all_gather(self, source: int, target: int, size: int, stream: Handle) -> None:
        """Queue: `size` bytes of each rank, one after the other, come to `target` of every rank."""
        ...

    def exchange(self, source: int, target: int, size: int, stream: Handle) -> None:
        """Queue: piece j at `source`, of `size` bytes, becomes this rank's piece at `target` of rank j."""
        ...

    def abort(self) -> None:
        """End what is queued, also if another rank never joins it, and all use; from any thread."""
        ...

    def close(self) -> None:
        """Let go of the connection; calling it again is allowed."""
        ...
