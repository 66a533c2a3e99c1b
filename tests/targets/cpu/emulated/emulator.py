"""Runs kernels of another instruction set through the driver, in a process under QEMU's user emulation.

The process is `harness.c`, the driver and the kernels in one program; a file that both processes map is its
memory, so a step costs one message and no copy of a model.
"""

import functools
import mmap
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.cpu import LAUNCH, ROW_COUNTS
from tokc.targets.cpu.codegen import Kernel
from tokc.targets.cpu.isa import ISAS, Isa
from tokc.targets.cpu.kernel_cache import KernelCache
from tokc.targets.cpu.link import DRIVER, kernel_table, write_objects, zig_environment

Array = npt.NDArray[Any]
HARNESS = Path(__file__).with_name("harness.c")
# -cpu of each instruction set that QEMU runs. V1 has SVE of 256 bits; QEMU 7.2 does not know it by name.
CPUS = {"neoverse-n1": "neoverse-n1", "neoverse-v1": "max,sve-max-vq=2", "x86-64-v3": "Haswell"}
EMULATED = tuple(ISAS[name] for name in CPUS)
STACK_BYTES = 8 << 20
MEMORY_BYTES = 1 << 28
LINE_BYTES = 64
UNTOUCHED = 0xA5


def architecture(isa: Isa) -> str:
    """Return the first part of the triple."""
    return isa.triple.split("-")[0]


def qemu(isa: Isa) -> str | None:
    """Return the emulator's path, None if it is not installed."""
    return shutil.which(f"qemu-{architecture(isa)}")


def why_not(isa: Isa) -> str:
    """Return what a test that needs the emulator says when it is skipped."""
    return f"qemu-{architecture(isa)} is not installed: `make test-cross`, or the Debian package qemu-user"


@functools.cache
def qemu_version(isa: Isa) -> str:
    """Return the emulator's first line about itself."""
    command = [str(qemu(isa)), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def compile_program(folder: Path, sources: Sequence[str], target: str, *flags: str) -> Path:
    """Compile C sources and objects in `folder` to the program `run`."""
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        target,
        "-O2",
        "-fno-sanitize=all",
        "-pthread",
    ]
    subprocess.run([*command, *flags, "-o", "run", *sources], cwd=folder, check=True, env=zig_environment())
    return folder / "run"


def static_program(kernels: Sequence[Kernel], isa: Isa, folder: Path) -> Path:
    """Return a program of the harness, the driver and the kernels; its libc is musl, so it needs no other."""
    objects = write_objects(folder, KernelCache().compile(kernels, isa))
    (folder / "table.c").write_text(kernel_table(kernels))
    sources = [str(HARNESS), str(DRIVER), "table.c", *objects]
    target = f"{architecture(isa)}-linux-musl"
    return compile_program(folder, sources, target, "-static", f"-Wl,-z,stack-size={STACK_BYTES}")


@dataclass(frozen=True)
class Memory:
    """A file that both processes map; `array` is all of it."""

    path: Path
    array: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, path: Path, size_bytes: int = MEMORY_BYTES) -> "Memory":
        """Make the file, full of holes."""
        with path.open("w+b") as file:
            file.truncate(size_bytes)
            return cls(path, np.frombuffer(mmap.mmap(file.fileno(), size_bytes), np.uint8))


class Process:
    """The program under QEMU, waiting for steps."""

    def __init__(self, program: Path, memory: Memory, isa: Isa, *flags: str) -> None:
        """Start it."""
        command = [str(qemu(isa)), "-cpu", CPUS[isa.name], *flags, str(program), str(memory.path)]
        # QEMU warns of what it leaves out of a model of a CPU; none of it is in the instruction sets here.
        self._errors = program.with_suffix(".err")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )

    def step(self, launches: Array, places: Array, rows: Sequence[int], threads: int) -> None:
        """Run one step of the driver; `launches` and `places` hold offsets into the memory."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        counts = [*rows, *[0] * (len(ROW_COUNTS) - len(rows))]
        header = np.array([threads, len(launches), len(places), *counts], np.int32)
        for part in (header, launches, places.astype(np.int64)):
            self._process.stdin.write(part.tobytes())
        self._process.stdin.flush()
        if self._process.stdout.read(1) != b".":
            said = self._errors.read_text(errors="replace")[-800:]
            raise AssertionError(f"the emulated program ended with {self._process.wait()}: {said}")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class EmulatedKernels:
    """What `Kernels` of the native tests is, under QEMU: calls go through the driver's pool of threads."""

    def __init__(self, kernels: Sequence[Kernel], isa: Isa, folder: Path) -> None:
        """Compile and start."""
        self._symbols = [kernel.symbol for kernel in kernels]
        self._memory = Memory.of(folder / "memory")
        self._process = Process(static_program(kernels, isa, folder), self._memory, isa)

    def run(
        self, kernel: Kernel, *arrays: Array, rows: int, threads: int = 1, together: bool = False
    ) -> None:
        """Run one step of one launch, all threads together; no byte beside the arrays may change."""
        assert len(arrays) == len(kernel.args), f"{kernel.symbol} takes {kernel.args}"
        memory = self._memory.array
        places, gaps = placed([np.lib.array_utils.byte_bounds(array) for array in arrays])
        views = [
            np.ndarray(array.shape, array.dtype, memory.data, place, array.strides)
            for array, place in zip(arrays, places, strict=True)
        ]
        for gap in gaps:
            memory[gap] = UNTOUCHED
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
        launches = np.zeros(1, LAUNCH)
        launches["kernel"] = self._symbols.index(kernel.symbol)
        self._process.step(launches, np.array(places), (rows, rows), threads)
        for view, array in zip(views, arrays, strict=True):
            array[...] = view
        assert all((memory[gap] == UNTOUCHED).all() for gap in gaps), f"{kernel.symbol} wrote outside"

    def close(self) -> None:
        """End the process."""
        self._process.close()


def placed(bounds: Sequence[tuple[int, int]]) -> tuple[list[int], list[slice]]:
    """Return a place for each range of addresses, and the gaps between them, a cache line or more.

    Ranges that overlap still do, and each keeps its place in a cache line.
    """
    regions: list[list[int]] = []
    for low, high in sorted(bounds):
        if regions and low < regions[-1][1]:
            regions[-1][1] = max(regions[-1][1], high)
        else:
            regions.append([low, high])
    shifts, gaps, end = [], [], 0
    for low, high in regions:
        begin = end + LINE_BYTES + (low - end) % LINE_BYTES
        shifts.append(begin - low)
        gaps.append(slice(end, begin))
        end = begin + high - low
    gaps.append(slice(end, end + LINE_BYTES))
    found = [next(i for i, (low, high) in enumerate(regions) if low <= at < high) for at, _ in bounds]
    return [at + shifts[i] for (at, _), i in zip(bounds, found, strict=True)], gaps
