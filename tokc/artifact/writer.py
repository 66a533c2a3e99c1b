"""Writes an artifact: aside first, then renamed, so that nothing half-written is left."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.errors import TokcError
from tokc.runtime.manifest import FileInfo

SAFETENSORS_DTYPES = {"u8": "U8", "i8": "I8", "f16": "F16", "f32": "F32", "i32": "I32", "bf16": "BF16"}
ALIGNMENT = 64


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written; `load` makes it when its turn comes, so that one at a time is in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    load: Callable[[], npt.NDArray[Any]]


def canonical_json(value: object) -> bytes:
    """Return JSON that is the same for the same value, and readable."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def compact_json(value: object) -> bytes:
    """Return JSON that is the same for the same value, for machines to read."""
    return (json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False) + "\n").encode()


def safetensors_header(tensors: Iterable[Tensor]) -> tuple[bytes, dict[str, int]]:
    """Return the header and each tensor's offset from the start of the file, a multiple of 64 bytes.

    Source: github.com/huggingface/safetensors, "Format"; gaps are not allowed there, so sizes must be
    multiples of 64 or the next tensor follows at once; padding tensors fill the rest.
    """
    entries: dict[str, object] = {}
    position, places = 0, {}
    for index, tensor in enumerate(tensors):
        gap = -position % ALIGNMENT
        if gap:
            entries[f"padding.{index}"] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": [position, position + gap],
            }
            position += gap
        places[tensor.name] = position
        end = position + tensor.nbytes
        entries[tensor.name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + place for name, place in places.items()}


def write_safetensors(
    path: Path, tensors: Iterable[Tensor], progress: Callable[[str], None] | None = None
) -> str:
    """Write tensors in the given order, each at a multiple of 64 bytes; returns the file's sha256."""
    ordered = list(tensors)
    header, places = safetensors_header(ordered)
    digest = hashlib.sha256(header)
    with path.open("wb") as file:
        file.write(header)
        position = len(header)
        for tensor in ordered:
            if progress is not None:
                progress(tensor.name)
            gap = bytes(places[tensor.name] - position)
            data: memoryview = np.ascontiguousarray(tensor.load()).reshape(-1).view(np.uint8).data
            if data.nbytes != tensor.nbytes:
                raise AssertionError(f"{tensor.name}: {data.nbytes} bytes made, {tensor.nbytes} announced")
            for part in (gap, data):
                file.write(part)
                digest.update(part)
            position = places[tensor.name] + tensor.nbytes
    return digest.hexdigest()


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that takes its place on success and vanishes on failure.

    Raises: TokcError if the disk is full or the place cannot be written.
    """
    aside = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        if target.exists():
            if not (target / "manifest.json").exists():
                raise TokcError(
                    f"'{target}' exists and is not an artifact",
                    hint="give another --out, or move it away; nothing was overwritten",
                )
            shutil.rmtree(target)
        aside.rename(target)
    except OSError as error:
        raise TokcError(
            f"cannot write the artifact: {error.strerror or error}",
            where=str(error.filename or target),
            hint="free space or give another --out; nothing half-written was left",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def file_written_aside(target: Path, problem: str, where: str | None = None) -> Iterator[Path]:
    """Yield a file beside `target` that takes its place on success and vanishes on failure.

    Raises: TokcError that begins with `problem` if it cannot be written.
    """
    aside = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        yield aside
        aside.replace(target)
    except OSError as error:
        raise TokcError(
            f"{problem}: {error.strerror or error}",
            where=where,
            hint="free space or give another --out; nothing half-written was left",
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def write_files(folder: Path, files: Mapping[str, bytes]) -> dict[str, FileInfo]:
    """Write each file and return the manifest's `files` entries, sorted by path."""
    entries: dict[str, FileInfo] = {}
    for name in sorted(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
        entries[name] = FileInfo(sha256=hashlib.sha256(files[name]).hexdigest(), bytes=len(files[name]))
    return entries
