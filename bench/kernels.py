"""Measures the linear kernels against this machine: bytes read a second and integer operations a second.

    python -m bench.kernels [--isa NAME ...] [--rows 1 16 512] [--threads 1 2] [--bits 4 8]

Each line calls one kernel through the driver that artifacts run, over as many copies of its weight as do
not fit in a cache, and takes the best of several passes. `of roof` compares with the read bandwidth
measured beside it.
"""

import argparse
from time import perf_counter

from tokc.runtime.executors.cpu import read_bandwidth
from tokc.targets.cpu.isa import ISAS, host_isa
from tokc.targets.cpu.kernels.quant_linear import GROUP, QuantLinear
from tokc.targets.cpu.packing import packed_bytes
from tokc.targets.cpu.timing import KernelTimer

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
        for threads in options.threads:
            started = perf_counter()
            with KernelTimer(kernels, ISAS[name], threads, WORKING_SET_BYTES) as timer:
                took_s, size = perf_counter() - started, sum(map(len, timer.objects)) / 1024
                print(f"{name}: {len(kernels)} kernels, {size:.0f} KiB, {took_s:.1f} s")
                measure(timer, options.rows)


def measure(timer: KernelTimer, row_counts: list[int]) -> None:
    """Print one line a kernel and row count."""
    roof = read_bandwidth(
        timer.library, timer.pool, timer.memory.ctypes.data, WORKING_SET_BYTES, ROOF_REPEATS
    )
    print(f"  {timer.threads} threads, read bandwidth {roof / 1e9:.1f} GB/s")
    for kernel in timer.kernels:
        for rows in row_counts:
            seconds = best(timer, kernel, rows)
            rate, ops = packed_bytes(kernel) / seconds, 2 * rows * kernel.n * kernel.k / seconds
            print(
                f"    {kernel.n:>6}x{kernel.k:<5} int{kernel.bits} scales {kernel.scale_bits:>2}"
                f" rows {rows:>4}: {seconds * 1e6:9.1f} us"
                f" {rate / 1e9:6.1f} GB/s ({rate / roof:4.0%} of roof) {ops / 1e9:7.0f} GOP/s"
            )


def best(timer: KernelTimer, kernel: QuantLinear, rows: int) -> float:
    """Return the least seconds of one call, over copies of the weight that fill the working set."""
    least, until = float("inf"), perf_counter() + SECONDS
    while perf_counter() < until:
        least = min(least, timer.seconds(kernel, rows))
    return least


if __name__ == "__main__":
    main()
