"""Compiles kernels for one instruction set, links them alone and calls them as the driver would."""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tokc.targets.cpu.codegen import Kernel
from tokc.targets.cpu.isa import ISAS, Isa, runnable_isas
from tokc.targets.cpu.kernel_cache import KernelCache
from tokc.targets.cpu.link import write_objects, zig_environment

Array = npt.NDArray[Any]


class Kernels:
    """A shared library of kernels and nothing else."""

    def __init__(self, path: Path) -> None:
        """Load the library."""
        self._library = ctypes.CDLL(str(path))

    def run(
        self, kernel: Kernel, *arrays: Array, rows: int, threads: int = 1, together: bool = False
    ) -> None:
        """Call the kernel once for every thread, one after the other or `together`."""
        assert len(arrays) == len(kernel.args), f"{kernel.symbol} takes {kernel.args}"
        function = getattr(self._library, kernel.symbol)
        function.restype = None
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]

        def call(tid: int) -> None:
            function(*pointers, ctypes.c_int32(rows), ctypes.c_int32(tid), ctypes.c_int32(threads))

        if together:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(call, range(threads)))
        else:
            for tid in range(threads):
                call(tid)


Loader = Callable[[Sequence[Kernel], Isa], Kernels]


@pytest.fixture(scope="session")
def load_kernels(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Return what compiles and loads kernels, each set once a session."""
    cache: dict[tuple[str, ...], Kernels] = {}

    def load(kernels: Sequence[Kernel], isa: Isa) -> Kernels:
        key = (isa.name, *(kernel.symbol for kernel in kernels))
        if key not in cache:
            folder = tmp_path_factory.mktemp("kernels")
            objects = write_objects(folder, KernelCache().compile(kernels, isa))
            command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-o", "kernels.so", *objects]
            subprocess.run(command, cwd=folder, check=True, env=zig_environment())
            cache[key] = Kernels(folder / "kernels.so")
        return cache[key]

    return load


@pytest.fixture(params=[isa.name for isa in runnable_isas()])
def isa(request: pytest.FixtureRequest) -> Isa:
    """Return each instruction set that this machine runs."""
    return ISAS[request.param]


def aligned(array: Array) -> Array:
    """Return a copy that begins at a multiple of 64 bytes."""
    memory = np.zeros(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.fixture(scope="session")
def align() -> Callable[[Array], Array]:
    """Return what copies an array to 64-byte aligned memory."""
    return aligned
