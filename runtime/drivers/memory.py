"""The memory that a model holds on a device: counted before it is asked for, given back together."""

import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokc.errors import ArtifactRefused, TokcError
from tokc.runtime.drivers.base import Bytes, Driver, Handle
from tokc.runtime.safetensors import views

ITEM_BYTES = {"f32": 4, "f16": 2, "i32": 4, "i8": 1, "u8": 1}
# Where buffers begin: what the widest load of a kernel and a device's transactions want.
ALIGNMENT = 256
# Weights pass through two pinned pieces of so many bytes: while one is copied, the other is read.
CHUNK_BYTES = 1 << 24
GIB = 1 << 30


class Layout(NamedTuple):
    """Buffers one after the other: each one's offset in bytes by name, and how much they take together."""

    offsets: Mapping[str, int]
    size: int


class DeviceMemory:
    """What one model allocated, on the device and pinned on the host."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._blocks: list[int] = []
        self._pinned: list[Bytes] = []

    def allocate(self, size: int, what: str) -> int:
        """Return the address of at least `size` bytes.

        Raises: ArtifactRefused naming what is needed and what is free.
        """
        free = self._driver.free_bytes()
        if size > free:
            raise ArtifactRefused(
                f"{what} takes {size} bytes of the device's memory, {free} are free",
                where=f"{self._driver.properties.name}, {self._driver.properties.memory_bytes / GIB:.1f} GiB",
                hint="fewer bits a weight, a smaller cache or context, or a device with more memory",
            )
        self._blocks.append(self._driver.allocate(max(size, ALIGNMENT)))
        return self._blocks[-1]

    def allocate_host(self, size: int) -> Bytes:
        """Return pinned memory of the host."""
        self._pinned.append(self._driver.allocate_host(max(size, ALIGNMENT)))
        return self._pinned[-1]

    def free_host(self, memory: Bytes) -> None:
        """Give back one piece of pinned memory early."""
        self._pinned = [piece for piece in self._pinned if piece is not memory]
        self._driver.free_host(memory)

    def close(self) -> None:
        """Give everything back; after a failed step the driver may refuse, and has freed it already."""
        for address in self._blocks:
            with suppress(TokcError):
                self._driver.free(address)
        for memory in self._pinned:
            with suppress(TokcError):
                self._driver.free_host(memory)
        self._blocks, self._pinned = [], []


def buffer_bytes(buffer: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Return the size of a plan's buffer with every symbol at its size."""
    count = 1
    for extent in buffer["shape"]:
        count *= sizes[extent] if isinstance(extent, str) else extent
    return int(count) * ITEM_BYTES[buffer["dtype"]]


def laid_out(
    buffers: Sequence[Mapping[str, Any]], sizes: Mapping[str, int], *, alignment: int = ALIGNMENT
) -> Layout:
    """Return where buffers lie within one block."""
    offsets, end = {}, 0
    for buffer in buffers:
        end += -end % alignment
        offsets[buffer["name"]] = end
        end += buffer_bytes(buffer, sizes)
    return Layout(offsets, end)


def upload_weights(driver: Driver, memory: DeviceMemory, stream: Handle, path: Path) -> dict[str, int]:
    """Copy a .safetensors file to the device; returns each tensor's address.

    The file is read once, in order; the host holds two pieces of it at any time. Tensors keep their place
    within the file, so that they are aligned as they are there, to 64 bytes.
    Raises: ArtifactRefused if the file is damaged or larger than the memory that is free.
    """
    with path.open("rb", buffering=0) as file:
        offsets, size = _places(file.fileno(), path)
        address = memory.allocate(size, "the model's weights")
        pieces = [(memory.allocate_host(CHUNK_BYTES), driver.create_event()) for _ in range(2)]
        try:
            for number, start in enumerate(range(0, size, CHUNK_BYTES)):
                staging, copied = pieces[number % 2]
                if number >= 2:
                    driver.wait(copied)
                piece = staging[: min(CHUNK_BYTES, size - start)]
                _fill(piece, file, path)
                driver.copy_to_device(address + start, piece, stream)
                driver.record(copied, stream)
            driver.synchronize(stream)
        finally:
            for staging, copied in pieces:
                driver.destroy_event(copied)
                memory.free_host(staging)
    return {name: address + offset for name, offset in offsets.items()}


def _places(descriptor: int, path: Path) -> tuple[dict[str, int], int]:
    """Return each tensor's offset in the file, and the file's size; only its header is touched."""
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise ArtifactRefused("the weights file is empty", where=str(path)) from error
    base = np.frombuffer(mapped, np.uint8).ctypes.data
    tensors = views(memoryview(mapped), where=path)
    return {name: tensor.ctypes.data - base for name, tensor in tensors.items()}, len(mapped)


def _fill(piece: Bytes, file: Any, path: Path) -> None:
    """Read the next bytes of a file."""
    target, done = piece.data, 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            raise ArtifactRefused(f"'{path.name}' became shorter while it was read", where=str(path))
        done += count
