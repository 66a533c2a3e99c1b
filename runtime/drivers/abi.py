"""The launch ABI of a GPU artifact, `kernels/kernels.json`, and which of its code fits a device.

Sources: CUDA C++ Programming Guide 13, "Binary Compatibility" and "PTX Compatibility".
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokc.errors import ArtifactRefused

ABI = "kernels/kernels.json"
SCHEMA_VERSION = 1
POINTER_BYTES = 8
_REBUILD = "the artifact is damaged; copy or build it again"
_NVIDIA = re.compile(r"sm_(\d+)(\d)([af]?)")
_PTX_TARGET = re.compile(rb"^\s*\.target\s+(sm_\d+[af]?)", re.MULTILINE)


class KernelAbi(NamedTuple):
    """How one kernel is launched: `entry` is its function in `file` and, for newer devices, `ptx`.

    `parameters` are the dtypes that its pointers point to, in order; as many null pointers follow as
    `scratch_pointers` says. `threads` of a block; `shared_bytes` of dynamic shared memory.
    """

    symbol: str
    entry: str
    file: str
    ptx: str | None
    threads: int
    shared_bytes: int
    parameters: tuple[str, ...]
    scratch_pointers: int


class LaunchAbi(NamedTuple):
    """All kernels of an artifact, in the order of the plan's; `ranks` devices run a step together."""

    backend: str
    arch: str
    kernels: tuple[KernelAbi, ...]
    ranks: int = 1

    @classmethod
    def read(cls, folder: Path) -> "LaunchAbi":
        """Read `kernels/kernels.json`.

        Raises: ArtifactRefused if it is missing, no JSON, of another schema or lacks a key.
        """
        where = folder / ABI
        try:
            value = json.loads(where.read_bytes())
            version = value["schema_version"]
            if version != SCHEMA_VERSION:
                raise ArtifactRefused(
                    f"the kernels have schema version {version}, this runtime reads {SCHEMA_VERSION}",
                    where=str(where),
                    hint="rebuild the artifact with this version of tokc",
                )
            kernels = tuple(_kernel(row) for row in value["kernels"])
            return cls(value["backend"], value["arch"], kernels, int(value.get("ranks", 1)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactRefused(
                f"the launch ABI cannot be read: {error!r}", where=str(where), hint=_REBUILD
            ) from error

    def images(self, folder: Path, arch: str) -> Mapping[str, bytes]:
        """Return the code that a device of `arch` runs, by the kernel's `file`.

        Raises: ArtifactRefused if none of it fits, naming what would.
        """
        rows = {kernel.file: kernel for kernel in self.kernels}
        return {file: self._image(folder, kernel, arch) for file, kernel in rows.items()}

    def _image(self, folder: Path, kernel: KernelAbi, arch: str) -> bytes:
        if kernel.ptx is None:
            if arch != self.arch:
                raise self._refused(folder, arch, f"only '{self.arch}' runs it")
            return (folder / kernel.file).read_bytes()
        ptx = (folder / kernel.ptx).read_bytes()
        found = _PTX_TARGET.search(ptx)
        if found is None:
            raise ArtifactRefused(
                f"'{kernel.ptx}' names no target", where=str(folder / kernel.ptx), hint=_REBUILD
            )
        built, device = _capability(found[1].decode()), _capability(arch)
        if _binary_fits(built, device):
            return (folder / kernel.file).read_bytes()
        if not built.special and device.number > built.number:
            return ptx
        raise self._refused(folder, arch, _fitting(built))

    def _refused(self, folder: Path, arch: str, what_fits: str) -> ArtifactRefused:
        return ArtifactRefused(
            f"the artifact is for '{self.arch}', this device is '{arch}'",
            where=str(folder),
            hint=f"{what_fits}; build it for this device with --target "
            f"{'cuda' if self.backend == 'cuda' else 'rocm'}:{arch}",
        )


class _Capability(NamedTuple):
    """A compute capability; `special` is `a` for code of exactly it, `f` for code of its family."""

    major: int
    minor: int
    special: str

    @property
    def number(self) -> tuple[int, int]:
        return self.major, self.minor


def _capability(arch: str) -> _Capability:
    match = _NVIDIA.fullmatch(arch)
    if match is None:
        raise ArtifactRefused(f"'{arch}' is no CUDA architecture; they are spelled sm_80, sm_90, ...")
    return _Capability(int(match[1]), int(match[2]), match[3])


def _binary_fits(built: _Capability, device: _Capability) -> bool:
    if built.special == "a":
        return built.number == device.number
    return built.major == device.major and built.minor <= device.minor


def _fitting(built: _Capability) -> str:
    name = f"sm_{built.major}{built.minor}"
    match built.special:
        case "a":
            return f"its kernels use instructions of '{name}' that no other architecture has"
        case "f":
            return f"devices from '{name}' on within the same family run it"
        case _:
            return f"devices from '{name}' on run it"


def _kernel(row: Mapping[str, Any]) -> KernelAbi:
    symbol = row["symbol"]
    if row.get("cluster", 1) != 1:
        raise ArtifactRefused(
            f"kernel '{symbol}' wants clusters of {row['cluster']} blocks, which this runtime cannot launch",
            hint="use the version of tokc that built the artifact",
        )
    return KernelAbi(
        symbol=symbol,
        entry=row["entry"],
        file=row["file"],
        ptx=row.get("ptx"),
        threads=int(row["threads"]),
        shared_bytes=int(row["shared_bytes"]),
        parameters=tuple(row["parameters"]),
        scratch_pointers=int(row["scratch_pointers"]),
    )
