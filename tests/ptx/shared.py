"""Shared memory of the CTAs that run together, and who touched each byte since the last barrier.

A tag is `64 * epoch + warp`; barriers count epochs. A byte is written by a warp in an epoch (`_writer`) and
read by one, or by SEVERAL (`_reader`).
"""

import numpy as np
import numpy.typing as npt

from tests.ptx.faults import Misaligned, OutOfBounds, Race, UninitializedRead

SHARED_BASE = 1024
TAGS = 64
SEVERAL = TAGS - 1
WRITTEN, IN_FLIGHT, UNFENCED, HELD = 1, 2, 4, 8
CHUNK = 16
Indices = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class SharedMemory:
    """`size` bytes a CTA, at SHARED_BASE. Lanes name their CTA by number and their warp within it."""

    def __init__(self, ctas: int, size: int) -> None:
        self.size = size
        self.stride = -(-max(size, 1) // CHUNK) * CHUNK
        self._data = np.full(ctas * self.stride, 0xCD, np.uint8)
        self._state = np.zeros(ctas * self.stride, np.uint8)
        self._writer = np.zeros(ctas * self.stride, np.int32)
        self._reader = np.zeros(ctas * self.stride, np.int32)
        self._epoch = TAGS

    def select(self, ctas: Indices) -> "SharedMemory":
        """Return the memory of some of the CTAs alone."""
        found = SharedMemory(0, self.size)
        found._epoch = self._epoch
        for name in ("_data", "_state", "_writer", "_reader"):
            setattr(found, name, getattr(self, name).reshape(-1, self.stride)[ctas].reshape(-1))
        return found

    def barrier(self) -> None:
        """Order what was done before against what follows."""
        self._epoch += TAGS

    def fence(self) -> None:
        """Show the asynchronous proxy what was stored so far."""
        self._state &= ~np.uint8(UNFENCED)

    def locate(self, addresses: Indices, width: int, ctas: Indices, lanes: Indices) -> Indices:
        """Return the rows, of `width` bytes each; raise OutOfBounds or Misaligned."""
        offsets = addresses - SHARED_BASE
        outside = (offsets < 0) | (offsets + width > self.size)
        if outside.any():
            worst = int(np.argmax(outside))
            raise OutOfBounds(
                f"{width} bytes at {int(offsets[worst])} leave {self.size} bytes of shared memory",
                lane=int(lanes[worst]),
                address=int(addresses[worst]),
            )
        wrong = offsets % width != 0
        if wrong.any():
            worst = int(np.argmax(wrong))
            raise Misaligned(
                f"an access of {width} bytes of shared memory must be aligned to as many",
                lane=int(lanes[worst]),
                address=int(addresses[worst]),
            )
        return (ctas * self.stride + offsets) // width

    def read(self, rows: Indices, width: int, warps: Indices, lanes: Indices) -> Bytes:
        """Return [lanes, width] bytes; raise Race or UninitializedRead."""
        self._check_state(rows, width, lanes, WRITTEN)
        tags = (self._epoch + warps).astype(np.int32)[:, None]
        writer = self._writer.reshape(-1, width)[rows]
        self._ordered(rows, width, lanes, (writer >= self._epoch) & (writer != tags), "reads", "wrote")
        readers = self._reader.reshape(-1, width)
        before = readers[rows]
        shared = (before >= self._epoch) & (before != tags)
        mine = np.where(shared, np.int32(self._epoch + SEVERAL), tags)
        readers[rows] = mine
        other = (readers[rows] != mine).any(axis=1)
        if other.any():
            readers[rows[other]] = self._epoch + SEVERAL
        return self._data.reshape(-1, width)[rows]

    def write(self, rows: Indices, value: Bytes, warps: Indices, lanes: Indices) -> None:
        """Store [lanes, width] bytes; raise Race, also where lanes store different bytes in one."""
        width = value.shape[1]
        self._check_state(rows, width, lanes, 0)
        self._mark_written(rows, width, warps, lanes)
        data = self._data.reshape(-1, width)
        data[rows] = value
        self._state.reshape(-1, width)[rows] |= np.uint8(WRITTEN | UNFENCED)
        differs = (data[rows] != value).any(axis=1)
        if differs.any():
            worst = int(np.argmax(differs))
            raise Race(
                "threads store different bytes in one place of shared memory at once",
                lane=int(lanes[worst]),
                address=self._address(rows[worst], width),
            )

    def begin_copy(self, rows: Indices, width: int, warps: Indices, lanes: Indices) -> None:
        """Mark bytes that cp.async will write."""
        self._check_state(rows, width, lanes, 0)
        self._mark_written(rows, width, warps, lanes)
        self._state.reshape(-1, width)[rows] |= np.uint8(IN_FLIGHT)

    def end_copy(self, rows: Indices, value: Bytes, warps: Indices, lanes: Indices) -> None:
        """Let the bytes of cp.async arrive, seen by the lane that waited."""
        width = value.shape[1]
        self._state.reshape(-1, width)[rows] &= ~np.uint8(IN_FLIGHT)
        self.write(rows, value, warps, lanes)

    def hold(self, rows: Indices, lanes: Indices) -> Bytes:
        """Return the CHUNKs that a wgmma reads, which nobody may write before `release`."""
        self._check_state(rows, CHUNK, lanes, WRITTEN)
        unfenced = (self._state.reshape(-1, CHUNK)[rows] & UNFENCED != 0).any(axis=1)
        if unfenced.any():
            worst = int(np.argmax(unfenced))
            raise Race(
                "wgmma reads shared memory that was stored without a 'fence.proxy.async' since",
                lane=int(lanes[worst]),
                address=self._address(rows[worst], CHUNK),
            )
        several = np.full(len(rows), SEVERAL, np.int64)
        found = self.read(rows, CHUNK, several, lanes)
        self.keep_held(rows)
        return found

    def keep_held(self, rows: Indices) -> None:
        """Mark CHUNKs as read by a wgmma that no one waited for."""
        self._state.reshape(-1, CHUNK)[rows] |= np.uint8(HELD)

    def release(self, rows: Indices, *, alone: bool) -> None:
        """Let CHUNKs be written again; unless the warpgroup is `alone` in its CTA, after a barrier.

        A wait is for a warpgroup's own products: another's may still read what this one has done with.
        """
        self._state.reshape(-1, CHUNK)[rows] &= ~np.uint8(HELD)
        if not alone:
            self._reader.reshape(-1, CHUNK)[rows] = self._epoch + SEVERAL

    def _address(self, row: int, width: int) -> int:
        return int(row) * width % self.stride + SHARED_BASE

    def _check_state(self, rows: Indices, width: int, lanes: Indices, wanted: int) -> None:
        state = self._state.reshape(-1, width)[rows]
        forbidden = IN_FLIGHT if wanted else IN_FLIGHT | HELD
        wrong = state & np.uint8(forbidden | wanted) != wanted
        if not wrong.any():
            return
        worst = int(np.argmax(wrong.any(axis=1)))
        where = {"lane": int(lanes[worst]), "address": self._address(rows[worst], width)}
        if (state[worst] & IN_FLIGHT).any():
            raise Race("a thread touches shared memory that a cp.async without a wait still writes", **where)
        if not wanted:
            raise Race("a thread writes shared memory that a wgmma without a wait still reads", **where)
        raise UninitializedRead("a thread reads shared memory that was never written", **where)

    def _mark_written(self, rows: Indices, width: int, warps: Indices, lanes: Indices) -> None:
        tags = (self._epoch + warps).astype(np.int32)[:, None]
        writers, readers = self._writer.reshape(-1, width), self._reader.reshape(-1, width)
        writer, reader = writers[rows], readers[rows]
        self._ordered(rows, width, lanes, (writer >= self._epoch) & (writer != tags), "writes", "wrote")
        self._ordered(rows, width, lanes, (reader >= self._epoch) & (reader != tags), "writes", "read")
        writers[rows] = tags

    def _ordered(
        self, rows: Indices, width: int, lanes: Indices, wrong: npt.NDArray[np.bool_], does: str, did: str
    ) -> None:
        if wrong.any():
            worst = int(np.argmax(wrong.any(axis=1)))
            raise Race(
                f"a thread {does} shared memory that another warp {did}, without a barrier between",
                lane=int(lanes[worst]),
                address=self._address(rows[worst], width),
            )
