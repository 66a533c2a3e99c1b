"""Global memory: allocations apart from each other, every access checked against their bounds."""

import numpy as np
import numpy.typing as npt

from tests.ptx.faults import Misaligned, OutOfBounds, Race
from tests.ptx.types import Array

BASE = 0x7F_0000_0000
RED_ZONE_BYTES = 4096
POISON = 0xCB
# Rows of so many bytes are gathered at once, which is what makes wide accesses fast.
WIDEST = 32
Indices = npt.NDArray[np.int64]


class Memory:
    """Device memory. Pointers are addresses as a kernel sees them; a red zone follows every allocation."""

    def __init__(self) -> None:
        self._bytes = np.full(1 << 16, POISON, np.uint8)
        self._owner = np.zeros(0, np.int32)
        self._end = RED_ZONE_BYTES
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._bounds = np.zeros((2, 0), np.int64)

    def allocate(self, size: int, align: int = 256) -> int:
        """Return a pointer to `size` bytes of no particular value, at a multiple of `align` bytes."""
        start = -(-self._end // align) * align
        self._end = start + size + RED_ZONE_BYTES
        if self._end + WIDEST > len(self._bytes):
            grown = np.full(-(-(2 * self._end) // WIDEST) * WIDEST, POISON, np.uint8)
            grown[: len(self._bytes)] = self._bytes
            self._bytes = grown
        self._starts.append(start)
        self._ends.append(start + size)
        self._bounds = np.array([self._starts, self._ends], np.int64)
        return BASE + start

    def put(self, array: Array, align: int = 256) -> int:
        """Return a pointer to a copy of an array."""
        raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        pointer = self.allocate(len(raw), align)
        self._bytes[pointer - BASE : pointer - BASE + len(raw)] = raw
        return pointer

    def get(self, pointer: int, like: Array) -> Array:
        """Return what lies at a pointer, in the shape and dtype of an array."""
        start = pointer - BASE
        raw = self._bytes[start : start + like.nbytes].tobytes()
        return np.frombuffer(raw, like.dtype).reshape(like.shape).copy()

    def begin_launch(self) -> None:
        """Forget which CTA wrote what."""
        self._owner = np.zeros(len(self._bytes), np.int32)

    def check(self, addresses: Indices, width: int, lanes: Indices) -> Indices:
        """Return the offsets of an access of `width` bytes a lane, or raise OutOfBounds or Misaligned."""
        offsets = addresses - BASE
        found = np.searchsorted(self._bounds[0], offsets, side="right") - 1
        inside = found >= 0
        if len(self._starts):
            inside &= offsets + width <= self._bounds[1][np.maximum(found, 0)]
        if not inside.all():
            worst = int(np.argmin(inside))
            raise OutOfBounds(
                f"{width} bytes of global memory lie in no allocation{self._nearest(int(offsets[worst]))}",
                lane=int(lanes[worst]),
                address=int(addresses[worst]),
            )
        wrong = addresses % width != 0
        if wrong.any():
            worst = int(np.argmax(wrong))
            raise Misaligned(
                f"an access of {width} bytes must be aligned to as many",
                lane=int(lanes[worst]),
                address=int(addresses[worst]),
            )
        return offsets

    def read(self, addresses: Indices, width: int, lanes: Indices) -> npt.NDArray[np.uint8]:
        """Return [lanes, width] bytes."""
        rows = self.check(addresses, width, lanes) // width
        return self._bytes[: len(self._bytes) // width * width].reshape(-1, width)[rows]

    def write(
        self, addresses: Indices, value: npt.NDArray[np.uint8], lanes: Indices, ctas: Indices | None
    ) -> None:
        """Store [lanes, width] bytes from CTAs by number; None for an atomic operation.

        Raises: Race where two CTAs of a launch, or two threads at once, store different bytes in one place.
        """
        width = value.shape[1]
        rows = self.check(addresses, width, lanes) // width
        data = self._bytes[: len(self._bytes) // width * width].reshape(-1, width)
        if ctas is not None:
            owner = self._owner[: len(self._bytes) // width * width].reshape(-1, width)
            mine = (ctas + 1).astype(np.int32)[:, None]
            other = (owner[rows] != 0) & (owner[rows] != mine) & (data[rows] != value)
            self._refuse(other, addresses, lanes, "another CTA of the launch stored")
            owner[rows] = mine
        data[rows] = value
        self._refuse(data[rows] != value, addresses, lanes, "another thread stores at once")

    def _refuse(self, wrong: npt.NDArray[np.bool_], addresses: Indices, lanes: Indices, who: str) -> None:
        if wrong.any():
            worst = int(np.argmax(wrong.any(axis=1)))
            raise Race(
                f"a thread stores other bytes of global memory than {who} in their place",
                lane=int(lanes[worst]),
                address=int(addresses[worst]),
            )

    def _nearest(self, offset: int) -> str:
        if not self._starts:
            return ""
        distance = {
            max(start - offset, offset - end): (start, end)
            for start, end in zip(self._starts, self._ends, strict=True)
        }
        start, end = distance[min(distance)]
        return f"; the nearest is [{BASE + start:#x}, {BASE + end:#x})"
