"""Opens an artifact: checks every byte against the manifest and maps the weights."""

import hashlib
import json
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from tokc.errors import ArtifactRefused
from tokc.runtime.manifest import FileInfo, Manifest

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
HASH_CHUNK_BYTES = 1 << 24
HASH_THREADS = 4
SIGNATURE = "model.sig"

_DTYPES: dict[str, np.dtype[np.generic]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}


class _Entry(TypedDict):
    """One tensor in the header of a .safetensors file; offsets count from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_DAMAGED = "the artifact is damaged; copy or build it again"


@dataclass(frozen=True)
class Artifact:
    """A folder that was found to be whole; `path` is where it lies."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Artifact":
        """Read the manifest and, unless told not to, check the size and hash of every file.

        Raises: ArtifactRefused naming the file that is missing, added or changed.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            raise ArtifactRefused(
                f"'{folder}' is no artifact: it has no {MANIFEST}",
                hint="give the NAME.tokc folder that `tokc build` made",
            )
        manifest = Manifest.parse((folder / MANIFEST).read_bytes(), where=str(folder / MANIFEST))
        artifact = cls(folder, manifest)
        if verify:
            artifact.verify()
        return artifact

    def verify(self) -> None:
        """Check that the folder holds the files of the manifest and no others, each unchanged."""
        self._check_names()
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            for _ in pool.map(self._check_file, sorted(self.manifest.files, key=self._size, reverse=True)):
                pass

    def read_text(self, name: str) -> str | None:
        """Return a file's text, None if the manifest does not name it.

        Raises: ArtifactRefused if it is not there or no text.
        """
        if name not in self.manifest.files:
            return None
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactRefused(
                f"'{name}' cannot be read: {error}", where=str(self.path), hint=_DAMAGED
            ) from error

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Map the weights and return read-only views by name; nothing is read until it is touched.

        Raises: ArtifactRefused if the file's header does not describe its bytes.
        """
        return map_safetensors(self.path / WEIGHTS)

    def _size(self, name: str) -> int:
        return self.manifest.files[name].bytes

    def _check_names(self) -> None:
        found = {str(path.relative_to(self.path).as_posix()) for path in _files_in(self.path)}
        found -= {MANIFEST, SIGNATURE}
        missing = sorted(set(self.manifest.files) - found)
        if missing:
            raise ArtifactRefused(
                f"the artifact lacks {_listed(missing)}", where=str(self.path), hint=_DAMAGED
            )
        added = sorted(found - set(self.manifest.files))
        if added:
            raise ArtifactRefused(
                f"the artifact holds {_listed(added)}, which its manifest does not name",
                where=str(self.path),
                hint="move it out of the folder",
            )

    def _check_file(self, name: str) -> None:
        path, expected = self.path / name, self.manifest.files[name]
        size = path.stat().st_size
        if size != expected.bytes:
            raise ArtifactRefused(
                f"'{name}' has {size} bytes, the manifest says {expected.bytes}",
                where=str(path),
                hint=_DAMAGED,
            )
        if _sha256(path, size) != expected.sha256:
            raise ArtifactRefused(f"'{name}' was changed: its sha256 differs", where=str(path), hint=_DAMAGED)


def verify(path: str | Path) -> dict[str, FileInfo]:
    """Check a whole artifact and return the files that were checked.

    Raises: ArtifactRefused naming the first file that is wrong.
    """
    return dict(Artifact.open(path).manifest.files)


def map_safetensors(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Map a .safetensors file and return read-only views by name.

    Source: github.com/huggingface/safetensors, "Format". Raises: ArtifactRefused.
    """
    with path.open("rb") as file:
        try:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ArtifactRefused("the weights file is empty", where=str(path), hint=_DAMAGED) from error
    try:
        size = int.from_bytes(memory[:8], "little")
        header = json.loads(memory[8 : 8 + size])
        start = 8 + size
        return {name: _view(memory, start, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactRefused(
            f"the weights' header is wrong: {error}", where=str(path), hint=_DAMAGED
        ) from error


def _view(memory: mmap.mmap, start: int, entry: _Entry) -> npt.NDArray[np.generic]:
    begin, end = entry["data_offsets"]
    data = np.frombuffer(memory, np.uint8, end - begin, start + begin)
    return data.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


def _sha256(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    if size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            view = memoryview(memory)
            for start in range(0, size, HASH_CHUNK_BYTES):
                # hashlib gives the interpreter's lock back while it works.
                digest.update(view[start : start + HASH_CHUNK_BYTES])
            view.release()
    return digest.hexdigest()


def _listed(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
