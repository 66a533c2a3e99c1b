"""Opens an artifact: checks every byte against the manifest and brings the weights into memory.

Importing this takes little time, so that reading and checking begin before numpy is there.
"""

import hashlib
import mmap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tokc.errors import ArtifactRefused
from tokc.knobs import weights_residence
from tokc.runtime.background import Background
from tokc.runtime.manifest import FileInfo, Manifest
from tokc.runtime.reading import Reading

if TYPE_CHECKING:
    from tokc.runtime.safetensors import Tensors

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
RANK_WEIGHTS = "rank-{}.safetensors"  # what one of several devices has of the weights that are cut
SIGNATURE = "model.sig"
KERNELS = "kernels/"
# What is at most so large is checked at once; a thread would take longer to start.
SMALL_BYTES = 1 << 18
_DAMAGED = "the artifact is damaged; copy or build it again"


class Artifact:
    """A folder and its manifest; `path` is where it lies."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Take a folder as it is: nothing is checked or read yet."""
        self.path = path
        self.manifest = manifest
        self._checks: list[Callable[[], None]] = []
        self._reading: Reading | None = None

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Self:
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

    def begin(self, *, verify: bool = True) -> Self:
        """Read the weights, and check them, while the caller does other work; return itself.

        Small files, the kernels among them, are checked before that. No answer may leave before `finish`.
        Raises: ArtifactRefused naming the file that is missing, added or changed.
        """
        if verify:
            self._check_names()
        here = self.manifest.target.kind == "cpu"  # others bring their weights to a device, piece by piece
        if here and weights_residence() == "huge-pages" and WEIGHTS in self.manifest.files:
            self._begin_reading(hashed=verify)
        if verify:
            self._begin_checking()
        return self

    def finish(self) -> None:
        """Wait until all that was begun is read and found unchanged.

        Raises: ArtifactRefused naming the file that was changed.
        """
        while self._checks:
            self._checks[-1]()
            self._checks.pop()
        if self._reading is not None:
            self._reading.wait()

    def verify(self) -> None:
        """Check that the folder holds the files of the manifest and no others, each unchanged.

        Raises: ArtifactRefused naming the file that is missing, added or changed.
        """
        self._check_names()
        self._begin_checking()
        self.finish()

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

    def tensors(self) -> "Tensors":
        """Map the weights and return read-only views by name; nothing is read until it is touched.

        Raises: ArtifactRefused if the file's header does not describe its bytes.
        """
        from tokc.runtime.safetensors import map_file

        return map_file(self.path / WEIGHTS)

    def resident_tensors(self, name: str = WEIGHTS) -> "Tensors":
        """Return the weights on huge pages; of an artifact that was begun, they are complete after `finish`.

        `name` is the file that holds them.
        TOKC_WEIGHTS=mmap keeps the file's own pages, shared between processes.
        Raises: ArtifactRefused if the file cannot be read or its header does not describe its bytes.
        """
        from tokc.runtime.safetensors import LENGTH_BYTES, header_bytes, map_file, views

        if weights_residence() == "mmap":
            return map_file(self.path / name)
        reading = self._reading if name == WEIGHTS else None
        if reading is None:
            path = self.path / name
            reading = Reading(path, path.stat().st_size, hashed=False)
            reading.wait()
        reading.wait(LENGTH_BYTES)
        reading.wait(header_bytes(reading.memory))
        return views(reading.memory, where=reading.path)

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

    def _begin_reading(self, *, hashed: bool) -> None:
        size = self._checked_size(WEIGHTS)
        reading = self._reading = Reading(self.path / WEIGHTS, size, hashed=hashed)
        if hashed:
            self._checks.append(lambda: self._check_hash(WEIGHTS, reading.sha256()))

    def _begin_checking(self) -> None:
        """Check the small files and the kernels, and begin to check the others."""
        names = set(self.manifest.files) - ({WEIGHTS} if self._checks else set())
        later = {name for name in names if self.manifest.files[name].bytes > SMALL_BYTES}
        later -= {name for name in later if name.startswith(KERNELS)}
        if later:
            self._checks.append(Background(partial(self._check_files, sorted(later))).result)
        self._check_files(sorted(names - later))

    def _check_files(self, names: list[str]) -> None:
        for name in names:
            self._check_file(name)

    def _check_file(self, name: str) -> None:
        self._check_hash(name, _sha256(self.path / name, self._checked_size(name)))

    def _checked_size(self, name: str) -> int:
        path, expected = self.path / name, self.manifest.files[name].bytes
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ArtifactRefused(
                f"'{name}' cannot be read: {error.strerror}", where=str(path), hint=_DAMAGED
            ) from error
        if size != expected:
            raise ArtifactRefused(
                f"'{name}' has {size} bytes, the manifest says {expected}", where=str(path), hint=_DAMAGED
            )
        return size

    def _check_hash(self, name: str, found: str) -> None:
        if found != self.manifest.files[name].sha256:
            raise ArtifactRefused(
                f"'{name}' was changed: its sha256 differs", where=str(self.path / name), hint=_DAMAGED
            )


def verify(path: str | Path) -> dict[str, FileInfo]:
    """Check a whole artifact and return the files that were checked.

    Raises: ArtifactRefused naming the first file that is wrong.
    """
    return dict(Artifact.open(path).manifest.files)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files of an artifact, the manifest included."""
    return sum(path.stat().st_size for path in _files_in(folder))


def _files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


def _sha256(path: Path, size: int) -> str:
    if size <= SMALL_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        # hashlib gives the interpreter's lock back while it works.
        return hashlib.sha256(memory).hexdigest()


def _listed(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
