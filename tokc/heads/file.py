"""The file of heads: safetensors with the names of published checkpoints, and what it says of itself.

The same heads give the same bytes. Source of the format: github.com/huggingface/safetensors, "Format".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.artifact.writer import file_written_aside

DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
ALIGNMENT = 8

Arrays = Mapping[str, npt.NDArray[Any]]


def write_heads(path: Path, tensors: Arrays, metadata: Mapping[str, str]) -> None:
    """Write heads, aside first; wide integers lie before floats, as the format wants them aligned.

    Raises: TokcError if the place cannot be written.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name in names:
        array = tensors[name]
        end = position + array.nbytes
        offsets = [position, end]
        header[name] = {
            "dtype": DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    parts = [len(text).to_bytes(8, "little"), text, *(tensors[name].tobytes() for name in names)]
    write_aside(path, b"".join(parts))


def write_aside(path: Path, data: bytes) -> None:
    """Write a file beside its place and move it there.

    Raises: TokcError if that cannot be done; nothing half-written is left.
    """
    with file_written_aside(path, "cannot write the heads", str(path)) as aside:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
