"""Times one linear kernel at a time, called through the driver that artifacts run.

A step calls the kernel over as many copies of its weight as no cache holds, so that weights come from memory
as in a model.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.cpu import LAUNCH, load_library
from tokc.runtime.memory import anonymous
from tokc.targets.cpu.codegen import compile_kernels
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.quant_linear import GROUP, QuantLinear
from tokc.targets.cpu.link import link
from tokc.targets.cpu.packing import packed_bytes

PAGE_BYTES = 4096
MOST_COPIES = 2000
# Every byte of a weight is one of these: as a code, a scale or a unit it is then a plain number.
BYTES = range(0x30, 0x38)
PATTERN_BYTES = 1 << 20
OPS_A_S = 2e11  # no pass is to take longer than PASS_S at this many operations a second
PASS_S = 0.15


class KernelTimer:
    """Kernels, `threads` threads and memory for weights; used as a context, or closed by hand."""

    def __init__(self, kernels: Sequence[QuantLinear], isa: Isa, threads: int, weight_bytes: int) -> None:
        """Compile the kernels and fill the memory.

        Raises: TargetRefused if the compiler or linker fails.
        """
        self.kernels, self.threads = tuple(kernels), threads
        self.objects = compile_kernels(self.kernels, isa)
        with TemporaryDirectory(prefix="tokc-timing-") as folder:
            path = Path(folder, "step.so")
            path.write_bytes(link(self.kernels, self.objects, isa))
            self.library = load_library(path)
        self.pool = self.library.tokc_open(threads)
        self.memory = np.frombuffer(anonymous(weight_bytes, huge=True), np.uint8)
        pattern = np.random.default_rng(1).choice(np.array(BYTES, np.uint8), PATTERN_BYTES)
        for start in range(0, weight_bytes, PATTERN_BYTES):
            part = self.memory[start : start + PATTERN_BYTES]
            part[:] = pattern[: len(part)]
        self._activations: dict[tuple[int, int, int], list[npt.NDArray[Any]]] = {}

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads."""
        self.close()

    def close(self) -> None:
        """Stop the threads."""
        self.library.tokc_close(self.pool)

    def seconds(self, kernel: QuantLinear, rows: int) -> float:
        """Return the seconds of one call, the mean of a pass over all copies of the weight."""
        size = -(-packed_bytes(kernel) // PAGE_BYTES) * PAGE_BYTES
        most = int(OPS_A_S * PASS_S / (2 * rows * kernel.n * kernel.k))
        copies = max(1, min(len(self.memory) // size, most, MOST_COPIES))
        return self._run(kernel, rows, size, copies)

    def result(self, kernel: QuantLinear, rows: int) -> npt.NDArray[np.float32]:
        """Return what the kernel computes of the first copy of its weight, f32[rows, n]."""
        y = self._inputs(kernel, rows)[-1]
        y[...] = np.nan
        self._run(kernel, rows, 0, 1)
        return np.array(y[:, : kernel.n], np.float32)

    def _run(self, kernel: QuantLinear, rows: int, size: int, copies: int) -> float:
        index, inputs = self.kernels.index(kernel), [each.ctypes.data for each in self._inputs(kernel, rows)]
        first = self.memory.ctypes.data
        table = np.array([[first + copy * size, *inputs] for copy in range(copies)], np.uint64)
        width = len(kernel.args)
        launches = np.array([(index, 0, copy * width, 0, 0, 0) for copy in range(copies)], LAUNCH)
        counts = np.array([rows, rows, 0], np.int32)
        pointers = launches.ctypes.data, copies, table.ctypes.data, counts.ctypes.data
        start = perf_counter()
        self.library.tokc_step(self.pool, *pointers, None)
        return (perf_counter() - start) / copies

    def _inputs(self, kernel: QuantLinear, rows: int) -> list[npt.NDArray[Any]]:
        """Return xq, xs, xsum and room for y, page aligned."""
        key = rows, kernel.k, kernel.y_stride
        if key not in self._activations:
            rng = np.random.default_rng(1)
            xq = rng.integers(-127, 128, (rows, kernel.k)).astype(np.int8)
            scales = rng.random((rows, kernel.k // GROUP)).astype(np.float32)
            sums = xq.reshape(rows, -1, GROUP).sum(-1, dtype=np.int32)
            results = np.zeros((rows, kernel.y_stride), np.float32)
            self._activations[key] = [_placed(each) for each in (xq, scales, sums, results)]
        return self._activations[key]


def _placed(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy at the begin of a page."""
    room = np.frombuffer(anonymous(value.nbytes), np.uint8).view(value.dtype).reshape(value.shape)
    room[...] = value
    return room
