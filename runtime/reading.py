"""Reads a file to huge pages and hashes it on the way, while the caller does other work.

A decode step is bound by reading the weights, and reads of 4 KiB pages miss the TLB: on virtual machines huge
pages double the bandwidth.
"""

import hashlib
import os
import threading
from pathlib import Path

from tokc.errors import ArtifactRefused
from tokc.runtime.background import Background
from tokc.runtime.memory import anonymous

# Few and large pieces: each asks for the interpreter's lock, which an importing thread is slow to give.
CHUNK_BYTES = 1 << 25


class Reading:
    """Fills memory from a file in one thread; another hashes the bytes in memory, which will be used."""

    def __init__(self, path: Path, size: int, *, hashed: bool) -> None:
        """Begin to read the first `size` bytes of `path`."""
        self.path, self.size = path, size
        self.memory = memoryview(anonymous(max(size, 1), huge=True))[:size]
        self._filled = 0
        self._news = threading.Condition()
        self._ended = False
        self._reader = Background(self._read)
        self._hasher = Background(self._hash) if hashed else None

    def wait(self, size: int | None = None) -> None:
        """Return when the first `size` bytes lie in memory, None for every byte.

        Raises: ArtifactRefused if the file cannot be read so far.
        """
        if size is None or self._await_more(size - 1) < size:
            self._reader.result()

    def sha256(self) -> str:
        """Return the hash of what lies in memory, as hexadecimal digits.

        Raises: ArtifactRefused if the file cannot be read to its end.
        """
        assert self._hasher is not None, "the reading was begun without hashing"
        self.wait()
        return self._hasher.result()

    def _read(self) -> None:
        try:
            with self.path.open("rb", buffering=0) as file:
                while self._filled < self.size:
                    end = min(self._filled + CHUNK_BYTES, self.size)
                    count = os.readv(file.fileno(), [self.memory[self._filled : end]])
                    if not count:
                        raise ArtifactRefused(f"'{self.path.name}' became shorter while it was read")
                    with self._news:
                        self._filled += count
                        self._news.notify_all()
        except OSError as error:
            raise ArtifactRefused(
                f"'{self.path.name}' cannot be read: {error.strerror}", where=str(self.path)
            ) from error
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _hash(self) -> str:
        digest, done = hashlib.sha256(), 0
        while (end := self._await_more(done)) > done:
            digest.update(self.memory[done:end])
            done = end
        return digest.hexdigest()

    def _await_more(self, than: int) -> int:
        """Return how many bytes have been read, when those are more than `than` or all."""
        with self._news:
            self._news.wait_for(lambda: self._filled > than or self._ended)
            return self._filled
