"""Drivers whose device is this machine's memory: one records launches, one runs them in Triton's interpreter.

Queued work runs when it is waited for, not before, so that a host that changes what the device has yet to
read gets wrong answers here too. Memory begins as NaNs, lies between guards, and must be given back.
"""

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.errors import TokcError
from tokc.runtime.drivers.abi import KernelAbi
from tokc.runtime.drivers.base import Bytes, DeviceProperties, Extent, Handle, Parameters

GUARD, GUARD_BYTE, FRESH_BYTE = 256, 0xA5, 0xFF
POINTER_ALIGNMENT = 16
PARAMETERS_END = {"cuda": 0, "hip": 3}


@dataclass(frozen=True)
class Launched:
    """A launch as the device sees it: `buffer` holds its parameters, byte for byte."""

    symbol: str
    grid: Extent
    threads: int
    shared_bytes: int
    buffer: bytes

    @property
    def pointers(self) -> list[int]:
        return np.frombuffer(self.buffer, np.uint64).tolist()


class Thing:
    """A handle that is alive until it is destroyed."""

    def __init__(self, kind: str, content: Any = None) -> None:
        self.kind, self.content = kind, content


@dataclass
class HostDriver:
    """A device of `memory_bytes`; `fail_at` is the number of the launch that is refused."""

    arch: str = "sm_90"
    backend: str = "cuda"
    memory_bytes: int = 1 << 28
    fail_at: int | None = None
    copies: list[tuple[str, int, bytes]] = field(default_factory=list)
    launches: list[Launched] = field(default_factory=list)
    replays: int = 0
    images: list[bytes] = field(default_factory=list)
    allocated: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.properties = DeviceProperties("host", self.arch, self.memory_bytes)
        self.parameters_end = PARAMETERS_END[self.backend]
        self._blocks: dict[int, Bytes] = {}
        self._pinned: dict[int, Bytes] = {}
        self._live: set[Thing] = set()
        self._captured: list[Callable[[], None]] | None = None

    def run(self, launched: Launched) -> None:
        """Do what a kernel does; here nothing."""

    def alive(self) -> dict[str, int]:
        """Return how many of each kind of thing were not given back."""
        kinds = ["memory"] * len(self._blocks) + ["pinned"] * len(self._pinned)
        kinds += [thing.kind for thing in self._live]
        return {kind: kinds.count(kind) for kind in set(kinds)}

    def memory(self, address: int, size: int) -> Bytes:
        """Return the bytes of one allocation."""
        for start, block in self._blocks.items():
            if start <= address and address + size <= start + len(block) - 2 * GUARD:
                return block[GUARD + address - start :][:size]
        raise AssertionError(f"{size} bytes at {address:#x} lie in no allocation")

    def activate(self) -> None:
        assert not self.closed, "the driver is closed"

    def free_bytes(self) -> int:
        return self.memory_bytes - sum(len(block) - 2 * GUARD for block in self._blocks.values())

    def allocate(self, size: int) -> int:
        if size > self.free_bytes():
            raise TokcError("out of memory")
        room = np.full(size + 3 * GUARD, GUARD_BYTE, np.uint8)
        skip = -room.ctypes.data % GUARD
        block = room[skip : skip + size + 2 * GUARD]
        block[GUARD:-GUARD] = FRESH_BYTE
        address = block.ctypes.data + GUARD
        self._blocks[address] = block
        self.allocated.append((address, size))
        return address

    def free(self, address: int) -> None:
        block = self._blocks.pop(address)
        for guard in (block[:GUARD], block[-GUARD:]):
            assert (guard == GUARD_BYTE).all(), "a kernel wrote past its memory"

    def allocate_host(self, size: int) -> Bytes:
        memory = np.full(size, FRESH_BYTE, np.uint8)
        self._pinned[memory.ctypes.data] = memory
        return memory

    def free_host(self, memory: Bytes) -> None:
        del self._pinned[memory.ctypes.data]

    def copy_to_device(self, address: int, source: Bytes, stream: Handle) -> None:
        self._require_pinned(source)
        target = self.memory(address, len(source))

        def copy() -> None:
            target[:] = source
            self.copies.append(("to device", address, source.tobytes()))

        self._queue(stream, copy)

    def copy_to_host(self, target: Bytes, address: int, stream: Handle) -> None:
        self._require_pinned(target)
        source = self.memory(address, len(target))

        def copy() -> None:
            target[:] = source
            self.copies.append(("to host", address, source.tobytes()))

        self._queue(stream, copy)

    def clear(self, address: int, size: int, stream: Handle) -> None:
        target = self.memory(address, size)
        self._queue(stream, lambda: target.fill(0))

    def load_module(self, image: bytes) -> Handle:
        self.images.append(image)
        return self._new("module", image)

    def unload_module(self, module: Handle) -> None:
        self._drop(module, "module")

    def function(self, module: Handle, kernel: KernelAbi) -> Handle:
        assert module in self._live, "the module is not loaded"
        return kernel.symbol

    def launch(
        self, function: Handle, grid: Extent, kernel: KernelAbi, parameters: Parameters, stream: Handle
    ) -> None:
        assert function == kernel.symbol, "a function of another kernel"
        assert all(0 < extent < 1 << (16 if axis else 31) for axis, extent in enumerate(grid)), grid
        if self.fail_at is not None and len(self.launches) >= self.fail_at:
            raise TokcError(f"launch of '{kernel.symbol}' failed")
        launched = Launched(
            kernel.symbol, grid, kernel.threads, kernel.shared_bytes, self._packed(parameters)
        )
        pointers, scratch = (
            launched.pointers[: len(kernel.parameters)],
            launched.pointers[len(kernel.parameters) :],
        )
        assert scratch == [0] * kernel.scratch_pointers, "scratch pointers are null"
        for pointer in pointers:
            assert pointer % POINTER_ALIGNMENT == 0, "a pointer is not aligned"
            self.memory(pointer, 1)
        self.launches.append(launched)
        self._queue(stream, lambda: self.run(launched))

    def create_stream(self) -> Handle:
        return self._new("stream", [])

    def destroy_stream(self, stream: Handle) -> None:
        assert stream.content == [], "work is still queued"
        self._drop(stream, "stream")

    def synchronize(self, stream: Handle) -> None:
        assert self._captured is None, "waiting ends a capture"
        while stream.content:
            stream.content.pop(0)()

    def create_event(self) -> Handle:
        return self._new("event")

    def destroy_event(self, event: Handle) -> None:
        self._drop(event, "event")

    def record(self, event: Handle, stream: Handle) -> None:
        def happen() -> None:
            event.content = (time.perf_counter(), stream)

        event.content = (None, stream)
        self._queue(stream, happen)

    def wait(self, event: Handle) -> None:
        if event.content[0] is None:
            self.synchronize(event.content[1])

    def elapsed_s(self, start: Handle, end: Handle) -> float:
        return float(end.content[0] - start.content[0])

    def begin_capture(self, stream: Handle) -> None:
        assert self._captured is None, "a capture has begun already"
        self._captured = []

    def end_capture(self, stream: Handle) -> Handle:
        captured, self._captured = self._captured, None
        return self._new("graph", captured)

    def abandon_capture(self, stream: Handle) -> None:
        self._captured = None

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        assert graph in self._live, "the graph is destroyed"
        self.replays += 1
        for work in graph.content:
            self._queue(stream, work)

    def destroy_graph(self, graph: Handle) -> None:
        self._drop(graph, "graph")

    def close(self) -> None:
        self.closed = True

    def _packed(self, parameters: Parameters) -> bytes:
        """Read what a launch's `extra` points to, as a driver does."""
        entries = (ctypes.c_uint64 * 5).from_address(parameters.extra)
        pointer_mark, buffer, size_mark, size_at, end = entries
        assert (pointer_mark, size_mark, end) == (1, 2, self.parameters_end), "the marks of `extra`"
        return ctypes.string_at(buffer, ctypes.c_uint64.from_address(size_at).value)

    def _queue(self, stream: Handle, work: Callable[[], None]) -> None:
        assert stream in self._live, "the stream is destroyed"
        (stream.content if self._captured is None else self._captured).append(work)

    def _require_pinned(self, memory: Bytes) -> None:
        first, last = memory.ctypes.data, memory.ctypes.data + memory.nbytes
        assert any(
            start <= first and last <= start + piece.nbytes for start, piece in self._pinned.items()
        ), "the memory is not pinned"

    def _new(self, kind: str, content: Any = None) -> Thing:
        thing = Thing(kind, content)
        self._live.add(thing)
        return thing

    def _drop(self, thing: Handle, kind: str) -> None:
        assert thing.kind == kind, f"a {thing.kind} is no {kind}"
        self._live.remove(thing)


class RecordingDriver(HostDriver):
    """Runs nothing; `ran` lists the launches in the order in which a device runs them, also by replays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ran: list[Launched] = []

    def run(self, launched: Launched) -> None:
        self.ran.append(launched)


class InterpreterDriver(HostDriver):
    """Runs each kernel's Triton function in the interpreter; `kernels` are their specifications by symbol.

    The code in the artifact is not looked at. Triton must have been imported with TRITON_INTERPRET=1.
    """

    def __init__(self, kernels: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.kernels = kernels
        self.ran = 0

    def run(self, launched: Launched) -> None:
        kernel = self.kernels[launched.symbol]
        pointers = launched.pointers[: len(kernel.args)]
        # By name: a pointer that the kernel's form does not take is one of the constants.
        tensors = {name: _tensor(at, dtype) for at, (name, dtype) in zip(pointers, kernel.args, strict=True)}
        kernel.function()[launched.grid](**tensors, **kernel.constants)
        self.ran += 1


def _tensor(address: int, dtype: str) -> Any:
    """Return a tensor of one element at an address: the interpreter takes its address and dtype alone."""
    import torch

    types = {
        "f32": torch.float32,
        "f16": torch.float16,
        "i32": torch.int32,
        "i8": torch.int8,
        "u8": torch.uint8,
        "fp8": torch.float8_e4m3fn,
    }
    element: npt.NDArray[np.uint8] = np.frombuffer(
        (ctypes.c_uint8 * types[dtype].itemsize).from_address(address), np.uint8
    )
    return torch.from_numpy(element).view(types[dtype])
