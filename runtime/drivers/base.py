"""What a driver of a GPU is: memory, copies, kernels, graphs and events of one device.

Every call that fails raises TokcError with what the vendor's library said. Work is queued on a stream and
runs in the order in which it was queued; `synchronize` waits for it. Addresses are of the device, in bytes.
A handle is whatever the driver gave; nothing looks into it.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tokc.runtime.drivers.abi import KernelAbi

Handle = object
Bytes = npt.NDArray[np.uint8]
Extent = tuple[int, int, int]

# Entries of a launch's `extra`, of both vendors; their ends of the list differ.
BUFFER_POINTER, BUFFER_SIZE = 1, 2


def host_bytes(address: int, size: int) -> Bytes:
    """Return a view of memory of the host that a driver owns."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))


class DeviceProperties(NamedTuple):
    """Describe a device; `arch` is the compilers' word for what it runs, such as `sm_90` or `gfx942`."""

    name: str
    arch: str
    memory_bytes: int


class Parameters:
    """The parameters of a launch, packed: 8 bytes a pointer, in order, as the kernel reads them.

    `extra` is the list that a launch takes: where the buffer lies and how large it is.
    """

    def __init__(self, pointers: Sequence[int], *, end: int) -> None:
        """Pack addresses; `end` is the vendor's mark of the end of `extra`."""
        self.buffer = np.array(pointers, np.uint64)
        self._size = np.array([self.buffer.nbytes], np.uint64)
        self._extra = np.array(
            [BUFFER_POINTER, self.buffer.ctypes.data, BUFFER_SIZE, self._size.ctypes.data, end], np.uint64
        )
        self.extra: int = self._extra.ctypes.data


class Driver(Protocol):
    """One device, and a context on it; used by one thread at a time."""

    properties: DeviceProperties
    backend: str
    parameters_end: int

    def activate(self) -> None:
        """Make the device that of the calling thread; needed before other calls from a new thread."""
        ...

    def free_bytes(self) -> int:
        """Return how much memory of the device is free."""
        ...

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of the device's memory, aligned to 256."""
        ...

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        ...

    def allocate_host(self, size: int) -> Bytes:
        """Return memory of the host that never moves, so that the device copies from and to it directly."""
        ...

    def free_host(self, memory: Bytes) -> None:
        """Give back what `allocate_host` returned."""
        ...

    def copy_to_device(self, address: int, source: Bytes, stream: Handle) -> None:
        """Queue a copy from memory of `allocate_host`, which must not change before it is done."""
        ...

    def copy_to_host(self, target: Bytes, address: int, stream: Handle) -> None:
        """Queue a copy to memory of `allocate_host`."""
        ...

    def clear(self, address: int, size: int, stream: Handle) -> None:
        """Queue zeroing of `size` bytes."""
        ...

    def load_module(self, image: bytes) -> Handle:
        """Load code: what the device runs, or the text that the driver compiles for it."""
        ...

    def unload_module(self, module: Handle) -> None:
        """Let go of code."""
        ...

    def function(self, module: Handle, kernel: KernelAbi) -> Handle:
        """Return a module's function, allowed as much shared memory as it takes."""
        ...

    def launch(
        self, function: Handle, grid: Extent, kernel: KernelAbi, parameters: Parameters, stream: Handle
    ) -> None:
        """Queue a kernel over a grid; `parameters` must live as long as a graph that holds the launch."""
        ...

    def create_stream(self) -> Handle:
        """Return a queue that does not wait for the default one."""
        ...

    def destroy_stream(self, stream: Handle) -> None:
        """Let go of a queue."""
        ...

    def synchronize(self, stream: Handle) -> None:
        """Wait for all that was queued.

        Raises: TokcError if any of it failed.
        """
        ...

    def create_event(self) -> Handle:
        """Return an event that can be timed."""
        ...

    def destroy_event(self, event: Handle) -> None:
        """Let go of an event."""
        ...

    def record(self, event: Handle, stream: Handle) -> None:
        """Queue the event: it happens when what was queued before it is done."""
        ...

    def wait(self, event: Handle) -> None:
        """Wait until the event happened."""
        ...

    def elapsed_s(self, start: Handle, end: Handle) -> float:
        """Return the seconds between two events that happened."""
        ...

    def begin_capture(self, stream: Handle) -> None:
        """Record what is queued from here on instead of running it."""
        ...

    def end_capture(self, stream: Handle) -> Handle:
        """Return what was recorded as a graph that can be launched."""
        ...

    def abandon_capture(self, stream: Handle) -> None:
        """Throw away what was recorded; raises nothing, for something else failed already."""
        ...

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        """Queue all that a graph holds."""
        ...

    def destroy_graph(self, graph: Handle) -> None:
        """Let go of a graph."""
        ...

    def close(self) -> None:
        """Let go of the context; calling it again is allowed."""
        ...
