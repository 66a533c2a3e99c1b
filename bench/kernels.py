"""Measures the linear kernels against this machine: bytes read a second and integer operations a second.

    python -m bench.kernels [--isa NAME ...] [--rows 1 16 512] [--threads 1 2] [--bits 4 8]

Each line calls one kernel through the driver that artifacts run, over as many copies of its weight as do
not fit in a cache, and takes the best of several passes. `of roof` compares with the read bandwidth
measured beside it.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.cpu import LAUNCH, load_library, read_bandwidth
from tokc.runtime.executors.cpu import _anonymous as anonymous
from tokc.targets.cpu.codegen import compile_kernels
from tokc.targets.cpu.isa import ISAS, host_isa
from tokc.targets.cpu.kernels.quant_linear import GROUP, QuantLinear
from tokc.targets.cpu.link import link
from tokc.targets.cpu.packing import packed_bytes

SHAPES = {
    "SmolLM2-135M": ((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)),
    "Llama-3.2-1B": ((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)),
}
WORKING_SET_BYTES = 768 << 20
ROOF_REPEATS = 3
SECONDS = 0.6


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", nargs="+", choices=list(ISAS), default=[host_isa().name])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16, 512])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--bits", nargs="+", type=int, choices=[2, 3, 4, 8], default=[4])
    parser.add_argument("--group", type=int, default=GROUP)
    parser.add_argument("--scale-bits", nargs="+", type=int, choices=[8, 16], default=[16])
    parser.add_argument(
        "--shape", nargs="+", default=[f"{n}x{k}" for shapes in SHAPES.values() for n, k in shapes]
    )
    parser.add_argument("--asymmetric", action="store_true")
    options = parser.parse_args()
    shapes = [(int(n), int(k)) for n, _, k in (text.partition("x") for text in options.shape)]
    for name in options.isa:
        kernels = [
            QuantLinear(
                ISAS[name],
                n,
                k,
                bits,
                bits == 8 or not options.asymmetric,
                bias=False,
                y_stride=n,
                block=options.group,
                scale_bits=scale_bits,
            )
            for n, k in shapes
            for bits in options.bits
            for scale_bits in options.scale_bits
        ]
        started = perf_counter()
        code = compile_kernels(kernels, ISAS[name])
        size = sum(map(len, code)) / 1024
        print(f"{name}: {len(kernels)} kernels, {size:.0f} KiB, {perf_counter() - started:.1f} s")
        with TemporaryDirectory() as folder:
            path = Path(folder, "step.so")
            path.write_bytes(link(kernels, code, ISAS[name]))
            for threads in options.threads:
                measure(load_library(path), kernels, options.rows, threads)


def measure(library: Any, kernels: list[QuantLinear], row_counts: list[int], threads: int) -> None:
    """Print one line a kernel and row count."""
    pool = library.tokc_open(threads)
    memory = anonymous(2 * WORKING_SET_BYTES, huge=True)
    memory.view(np.uint32)[:] = 0x31323334
    roof = read_bandwidth(library, pool, memory.ctypes.data, WORKING_SET_BYTES, ROOF_REPEATS)
    print(f"  {threads} threads, read bandwidth {roof / 1e9:.1f} GB/s")
    for index, kernel in enumerate(kernels):
        for rows in row_counts:
            seconds = best(library, pool, index, kernel, rows, memory)
            rate, ops = packed_bytes(kernel) / seconds, 2 * rows * kernel.n * kernel.k / seconds
            print(
                f"    {kernel.n:>6}x{kernel.k:<5} int{kernel.bits} scales {kernel.scale_bits:>2}"
                f" rows {rows:>4}: {seconds * 1e6:9.1f} us"
                f" {rate / 1e9:6.1f} GB/s ({rate / roof:4.0%} of roof) {ops / 1e9:7.0f} GOP/s"
            )
    library.tokc_close(pool)


def best(library: Any, pool: Any, index: int, kernel: QuantLinear, rows: int, memory: Any) -> float:
    """Return the least seconds of one call, over copies of the weight that fill the working set."""
    size = -(-packed_bytes(kernel) // 4096) * 4096
    ops = 2 * rows * kernel.n * kernel.k
    copies = max(1, min(WORKING_SET_BYTES // size, int(2e11 * SECONDS / 4 / ops), 2000))
    inputs = activations(kernel, rows)
    pointers = []
    for copy in range(copies):
        pointers += [memory.ctypes.data + copy * size, *(array.ctypes.data for array in inputs)]
    table = np.array(pointers, np.uint64)
    launches = np.array([(index, 0, copy * len(kernel.args), 0, 0, 0) for copy in range(copies)], LAUNCH)
    counts, least, until = np.array([rows, rows], np.int32), float("inf"), perf_counter() + SECONDS
    while perf_counter() < until:
        start = perf_counter()
        library.tokc_step(pool, launches.ctypes.data, copies, table.ctypes.data, counts.ctypes.data, None)
        least = min(least, (perf_counter() - start) / copies)
    return least


def activations(kernel: QuantLinear, rows: int) -> list[npt.NDArray[Any]]:
    """Return xq, xs, xsum and room for y, page aligned."""
    rng = np.random.default_rng(1)
    xq = rng.integers(-127, 128, (rows, kernel.k)).astype(np.int8)
    values = [
        xq,
        rng.random((rows, kernel.k // GROUP)).astype(np.float32),
        xq.reshape(rows, -1, GROUP).astype(np.int32).sum(-1).astype(np.int32),
        np.zeros((rows, kernel.y_stride), np.float32),
    ]
    placed = []
    for value in values:
        room = anonymous(value.nbytes).view(value.dtype).reshape(value.shape)
        room[...] = value
        placed.append(room)
    return placed


if __name__ == "__main__":
    main()
