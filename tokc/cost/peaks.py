"""Measures the peak of the instructions that an artifact's kernels multiply with."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokc.cost.devices import Host, probe
from tokc.cost.launch_work import LaunchWork
from tokc.cost.profiling import TimesKernels
from tokc.errors import ArtifactRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import LAUNCH, load_library

ROWS = 1 << 20
REPEATS = 7
STATE_BYTES = 1 << 12  # of a thread; more than it has registers
ALIGNMENT = 64


def probed(artifact: Path, executor: object) -> Host:
    """Return this machine as an artifact's threads see it: reads of as much as its weights, and peaks."""
    manifest = Artifact.open(artifact, verify=False).manifest
    weights = max(file.bytes for file in manifest.files.values())
    return probe(executor, manifest.target.features, weights, peaks_of(artifact, executor))


def peaks_of(artifact: Path, executor: object) -> dict[str, float]:
    """Return the peaks of an artifact with the threads of its executor, none where it has no probes."""
    if not isinstance(executor, TimesKernels):
        return {}
    library = Artifact.open(artifact, verify=False).manifest.target.library
    return measure_peaks(artifact / "kernels" / library, executor.plan, executor.threads)


def measure_peaks(library: Path, plan: Mapping[str, Any], threads: int) -> dict[str, float]:
    """Return the best FLOPs a second of `threads` by arithmetic (f32, int8), as far as the plan has probes.

    Raises: ArtifactRefused if the threads cannot be started.
    """
    if not plan.get("probes"):
        return {}
    kernels = load_library(library)
    pool = kernels.tokc_open(threads)
    if not pool:
        raise ArtifactRefused(f"cannot start {threads} threads", hint="lower --threads")
    try:
        return {
            probe["work"].get("arithmetic", LaunchWork.arithmetic): _peak(kernels, pool, probe, threads)
            for probe in plan["probes"]
        }
    finally:
        kernels.tokc_close(pool)


def _peak(kernels: Any, pool: int, probe: Mapping[str, Any], threads: int) -> float:
    memory = np.zeros(threads * STATE_BYTES + ALIGNMENT, np.uint8)
    state = memory[-memory.ctypes.data % ALIGNMENT :]
    launches = np.zeros(1, LAUNCH)
    launches["kernel"] = probe["kernel"]
    pointers, rows = np.array([state.ctypes.data], np.uint64), np.full(2, ROWS, np.int32)
    arguments = pool, launches.ctypes.data, 1, pointers.ctypes.data, rows.ctypes.data, None
    seconds = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        kernels.tokc_step(*arguments)
        seconds.append(time.perf_counter() - start_s)
    return threads * LaunchWork.from_json(probe["work"]).flops(ROWS, 0) / min(seconds)
