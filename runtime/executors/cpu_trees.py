"""Moves entries of the cache on a CPU, so that an accepted path of a tree lies as if it had been a chain."""

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.base import Int32s

# cache_t of the driver: an entry is `pieces` pieces of `piece_bytes`, a page's slots of a piece side by side.
CACHE = np.dtype([("data", "u8"), ("pieces", "i8"), ("piece_bytes", "i8")])


class CpuTrees:
    """The cache of all layers as the driver's `tokc_move` takes it."""

    def __init__(
        self,
        library: ctypes.CDLL,
        pool: int,
        buffers: Sequence[Mapping[str, Any]],
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Describe the plan's buffers of the cache, [pages, kv_heads, .., page, ..]; keys have slots last."""
        self._move, self._pool = library.tokc_move, pool
        pointer, count = ctypes.c_void_p, ctypes.c_int32
        self._move.argtypes, self._move.restype = (
            [pointer, pointer, count, count, pointer, pointer, count],
            None,
        )
        caches = [buffer for buffer in buffers if buffer["space"] == "kv"]
        self._caches = np.zeros(len(caches), CACHE)
        for row, buffer in zip(self._caches, caches, strict=True):
            shape, array = buffer["shape"], arrays[buffer["name"]]
            slots = 3 if buffer["name"].endswith(".key") else 2
            pieces, items = math.prod(shape[1:slots]), math.prod(shape[slots + 1 :])
            row["data"], row["pieces"] = array.ctypes.data, pieces
            row["piece_bytes"] = items * array.itemsize
            self._page = shape[slots]

    def move(self, sources: Int32s, targets: Int32s) -> None:
        """Copy entries of the cache of all layers, one after the other: i32[moves].

        Entry e is slot e % page_size of page e // page_size.
        """
        assert len(sources) == len(targets), "every entry that is copied has a target"
        pair = np.ascontiguousarray([sources, targets], np.int32)
        caches = self._caches
        self._move(
            self._pool,
            caches.ctypes.data,
            len(caches),
            self._page,
            *(row.ctypes.data for row in pair),
            len(sources),
        )
