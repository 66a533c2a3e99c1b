"""Maps a model's files, and lets go of the pages that were read."""

import mmap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_MAPS: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()


def mapped(path: Path) -> npt.NDArray[np.uint8]:
    """Return a file's bytes, u8[size], read when they are touched; the file must not be empty."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _MAPS.add(memory)
    data: npt.NDArray[Any] = np.frombuffer(memory, np.uint8)
    return data


def release_pages() -> None:
    """Take the pages of all mapped files out of this process; they come back from the file when touched.

    So a build's memory does not grow with the part of the model that it has read.
    """
    for memory in _MAPS:
        memory.madvise(mmap.MADV_DONTNEED)
