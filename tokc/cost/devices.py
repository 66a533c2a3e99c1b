"""The machine that is measured: what it is, how fast it reads memory and how fast it multiplies."""

import os
import platform
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np

from tokc.cost.launch_work import F32, INT8

PROBE_BYTES = 1 << 28
PROBE_REPEATS = 5
MATMUL_SIZE = 1024
MATMUL_HOW = f"f32 matmul of {MATMUL_SIZE} by numpy"
# Multiply-adds of 8-bit integers for one of f32, by instruction set; the first that the CPU has.
INT8_SPEEDUP: Mapping[str, float] = {
    "amx_int8": 32.0,  # tdpbusd
    "i8mm": 8.0,  # smmla, usmmla
    "avx512_vnni": 4.0,  # vpdpbusd
    "avx_vnni": 4.0,
    "asimddp": 4.0,  # sdot
    "avx2": 4.0 / 3.0,  # vpmaddubsw, vpmaddwd and vpaddd for what one vpdpbusd does
}


@dataclass(frozen=True)
class Host:
    """A machine; rates are per second over the threads that were measured, by default one a core.

    All are as `how` says; `measured` is False for one that is not here, where each kernel is taken to need
    `launch_s` beside its work. `int8_flops_per_s` is predicted from the f32 rate and the CPU's instructions
    where no artifact's kernels could measure it. `link_bytes_per_s` leave its devices for each other, 0 where
    that is not known.
    """

    cpu: str
    arch: str
    cores: int
    memory_bytes: int
    instructions: tuple[str, ...]
    read_bytes_per_s: float
    f32_flops_per_s: float
    int8_flops_per_s: float
    how: str
    measured: bool = True
    launch_s: float = 0.0
    link_bytes_per_s: float = 0.0


@runtime_checkable
class ReadsMemory(Protocol):
    """An executor that can measure its own read bandwidth, with the threads that run the model."""

    def read_bandwidth(self, size_bytes: int) -> float:
        """Return bytes a second over a buffer of that size."""
        ...


def probe(
    executor: object = None,
    uses: Collection[str] | None = None,
    size_bytes: int = PROBE_BYTES,
    peaks: Mapping[str, float] = MappingProxyType({}),
) -> Host:
    """Measure this machine for about a second; an executor that can, reads memory with its own threads.

    `uses` names the instruction sets of the kernels whose arithmetic is predicted, None for all of them;
    `size_bytes` is what is read, best as much as the weights, since what a cache holds is read faster;
    `peaks` is what `measure_peaks` found; without it numpy's matmul stands in, a lower bound.
    """
    if isinstance(executor, ReadsMemory):
        bandwidth = executor.read_bandwidth(size_bytes)
        how = f"{size_bytes / 1e6:.0f} MB read by the artifact's own threads"
    else:
        bandwidth, how = _numpy_bandwidth(), "read by numpy, a lower bound"
    measured = "multiply-adds of {} in the artifact's own threads' registers"
    f32, int8 = peaks.get(F32), peaks.get(INT8)
    flops, f32_how = (_matmul_flops(), MATMUL_HOW) if f32 is None else (f32, measured.format(F32))
    features = cpu_features()
    used = features if uses is None else features & set(uses)
    speedup = next((factor for name, factor in INT8_SPEEDUP.items() if name in used), 1.0)
    int8_how = f"int8 taken as {speedup:.3g} times that" if int8 is None else "int8 likewise"
    return Host(
        cpu=cpu_name(),
        arch=platform.machine(),
        cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        instructions=tuple(name for name in (*INT8_SPEEDUP, "avx512f", "fma", "f16c") if name in features),
        read_bytes_per_s=bandwidth,
        f32_flops_per_s=flops,
        int8_flops_per_s=flops * speedup if int8 is None else int8,
        how=f"{how}; {f32_how}; {int8_how}",
    )


def cpu_name() -> str:
    """Return the processor's name as the kernel tells it, the architecture where it does not."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.processor() or platform.machine()


def cpu_features() -> frozenset[str]:
    """Return the instruction sets in the kernel's spelling, none where it does not tell."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class CpuWatch:
    """Tells which share of the cores others took while it was watched; 0 where the kernel does not tell."""

    def __init__(self) -> None:
        self._start = self._times()
        self._start_s = time.perf_counter()

    def foreign_share(self) -> float:
        """Return the share since the start."""
        busy, own = (now - then for now, then in zip(self._times(), self._start, strict=True))
        elapsed = (time.perf_counter() - self._start_s) * (os.cpu_count() or 1)
        return max(0.0, min(1.0, (busy - own) / elapsed))

    def _times(self) -> tuple[float, float]:
        own = sum(os.times()[:4])
        path = Path("/proc/stat")
        if not path.exists():
            return own, own
        ticks = [int(word) for word in path.read_text().split()[1:9]]
        idle = ticks[3] + ticks[4]  # idle, and idle while something is read
        return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), own


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _numpy_bandwidth() -> float:
    """Return the best rate at which numpy, on every core, finds the largest word of a buffer."""
    cores = usable_cores()
    parts = np.array_split(np.ones(PROBE_BYTES // 8, np.uint64), cores)
    with ThreadPoolExecutor(cores) as pool:
        return max(
            PROBE_BYTES / _seconds(lambda: list(pool.map(np.max, parts))) for _ in range(PROBE_REPEATS)
        )


def _matmul_flops() -> float:
    left = np.ones((MATMUL_SIZE, MATMUL_SIZE), np.float32)
    right, out = left.copy(), np.empty_like(left)
    return max(
        2.0 * MATMUL_SIZE**3 / _seconds(lambda: np.matmul(left, right, out=out)) for _ in range(PROBE_REPEATS)
    )


def _seconds(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s
