"""Kernels that were compiled before, found by what they were compiled of.

Compiling is most of a build for a CPU, and kernels know no weights: a second build with another rounding, a
tuning's next trial or another model of the same widths compiles only what is new.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tokc.artifact.writer import canonical_json, file_written_aside
from tokc.errors import TokcError
from tokc.targets.cpu.codegen import Kernel, compile_kernels
from tokc.targets.cpu.isa import Isa
from tokc.user_cache import cache_folder

LIMIT_BYTES = 256 << 20
DIGEST_BYTES = 32
HERE = Path(__file__).parent


def default_folder() -> Path:
    """Return the folder of objects in the user's cache."""
    return cache_folder() / "kernels"


@dataclass(frozen=True)
class KernelCache:
    """A folder with an object a key, each behind its sha256; what was not used for longest goes first."""

    folder: Path = field(default_factory=default_folder)
    limit_bytes: int = LIMIT_BYTES

    def compile(self, kernels: Sequence[Kernel], isa: Isa) -> tuple[bytes, ...]:
        """Return what `compile_kernels` does; what is not kept yet is compiled and kept.

        Raises: TargetRefused if the compiler dies.
        """
        keys = [key_of(kernel, isa) for kernel in kernels]
        objects = {key: code for key in keys if (code := self._fetch(key)) is not None}
        new = {key: kernel for key, kernel in zip(keys, kernels, strict=True) if key not in objects}
        if new:
            made = dict(zip(new, compile_kernels(tuple(new.values()), isa), strict=True))
            for key, code in made.items():
                self._keep(key, code)
            self._trim()
            objects |= made
        return tuple(objects[key] for key in keys)

    def _fetch(self, key: str) -> bytes | None:
        path = self.folder / key
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        return code if hashlib.sha256(code).digest() == digest else None

    def _keep(self, key: str, code: bytes) -> None:
        with suppress(TokcError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_written_aside(self.folder / key, "cannot keep a kernel") as aside:
                aside.write_bytes(hashlib.sha256(code).digest() + code)

    def _trim(self) -> None:
        with suppress(OSError):
            found = {path: path.stat() for path in self.folder.iterdir()}
            total = sum(stat.st_size for stat in found.values())
            for path in sorted(found, key=lambda path: found[path].st_mtime):
                if total <= self.limit_bytes:
                    return
                path.unlink(missing_ok=True)
                total -= found[path].st_size


def key_of(kernel: Kernel, isa: Isa) -> str:
    """Return the key of a kernel: 64 hexadecimal digits over its fields, its machine and the compiler."""
    stated = {
        "kernel": f"{type(kernel).__module__}.{kernel!r}",
        "isa": repr(isa),
        "source": _source_hash(),
        "apache-tvm": version("apache-tvm"),
    }
    return hashlib.sha256(canonical_json(stated)).hexdigest()


@cache
def _source_hash() -> str:
    """Return the sha256 over the files that say what a kernel is and how it is compiled."""
    digest = hashlib.sha256()
    for path in (HERE / "codegen.py", HERE / "isa.py", *sorted((HERE / "kernels").glob("*.py"))):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
