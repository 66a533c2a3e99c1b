"""Views of the tensors in a .safetensors file, mapped or in memory.

Source: github.com/huggingface/safetensors, "Format".
"""

import json
import mmap
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from tokc.errors import ArtifactRefused

Tensors = dict[str, npt.NDArray[np.generic]]
LENGTH_BYTES = 8

_DTYPES: dict[str, np.dtype[np.generic]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),  # the bits; numpy has no such float
    "F32": np.dtype(np.float32),
}


class _Entry(TypedDict):
    """One tensor in the header; offsets count from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def map_file(path: Path) -> Tensors:
    """Map a file and return read-only views by name.

    Raises: ArtifactRefused if it is empty or its header does not describe its bytes.
    """
    with path.open("rb") as file:
        try:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise _refused("the weights file is empty", path) from error
    return views(memoryview(memory), where=path)


def header_bytes(start: memoryview) -> int:
    """Return the size of the length and the header together, by the file's first bytes."""
    return LENGTH_BYTES + int.from_bytes(start[:LENGTH_BYTES], "little")


def views(memory: memoryview, *, where: Path) -> Tensors:
    """Return the tensors of a file that lies in `memory`, of which the header must have been read.

    Raises: ArtifactRefused if the header does not describe the bytes.
    """
    try:
        start = header_bytes(memory)
        header = json.loads(bytes(memory[LENGTH_BYTES:start]))
        return {name: _view(memory, start, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(f"the weights' header is wrong: {error}", where) from error


def _view(memory: memoryview, start: int, entry: _Entry) -> npt.NDArray[np.generic]:
    begin, end = entry["data_offsets"]
    data = np.frombuffer(memory, np.uint8, end - begin, start + begin)
    return data.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _refused(problem: str, where: Path) -> ArtifactRefused:
    return ArtifactRefused(problem, where=str(where), hint="the artifact is damaged; copy or build it again")
