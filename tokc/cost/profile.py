"""Where the time of a step goes, kernel by kernel, and how far each kernel is from its roof.

Seconds are measured; FLOPs and bytes are counted (`LaunchWork`); a rate is one over the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.cost.devices import Host
from tokc.cost.launch_work import INT8, LaunchWork
from tokc.cost.spread import Spread
from tokc.errors import TokcError
from tokc.runtime.executors.base import Batch

MEMORY, COMPUTE, CACHES = "memory", "compute", "caches"
DECODE, PREFILL = "decode", "prefill"


@dataclass(frozen=True)
class Roofs:
    """What the threads of the profile can do at most, as `Host` states it."""

    read_bytes_per_s: float
    f32_flops_per_s: float
    int8_flops_per_s: float
    link_bytes_per_s: float = 0.0

    @classmethod
    def of(cls, host: Host) -> "Roofs":
        """Return the roofs of a host that was probed with the same threads."""
        return cls(host.read_bytes_per_s, host.f32_flops_per_s, host.int8_flops_per_s, host.link_bytes_per_s)

    def peak(self, arithmetic: str) -> float:
        """Return the FLOPs a second that int8 or f32 arithmetic reaches at most."""
        return self.int8_flops_per_s if arithmetic == INT8 else self.f32_flops_per_s

    def bound(self, work: "Work") -> tuple[float, str]:
        """Return the least seconds of some work, and what bounds it.

        Weights and caches of sequences come from memory. `caches` bound a kernel that mostly moves the step's
        own activations, which the CPU's caches hold: no roof is known for them.
        """
        memory_s, compute_s = (
            work.memory_bytes / self.read_bytes_per_s,
            work.flops / self.peak(work.arithmetic),
        )
        if work.bytes / self.read_bytes_per_s <= compute_s:
            return compute_s, COMPUTE
        return max(memory_s, compute_s), MEMORY if 2 * work.memory_bytes >= work.bytes else CACHES


@dataclass(frozen=True)
class Work:
    """What one or more launches compute and move in a step, counted; `memory_bytes` are among `bytes`."""

    arithmetic: str
    flops: float
    bytes: float
    memory_bytes: float


@dataclass(frozen=True)
class KernelTime:
    """All launches of one kernel in a step.

    `kernel_s` and `barrier_s` are measured: in the kernel and waiting for the other threads after it, means
    over threads, medians over repetitions. The work is counted, `least_s` and `roof` (what bounds it: memory,
    compute or caches) are predicted from it.
    """

    op: str
    kernel: str
    launches: int
    kernel_s: float
    barrier_s: float
    share: float
    work: Work
    least_s: float
    roof: str

    @property
    def bytes_per_s(self) -> float:
        """Return the achieved bandwidth."""
        return self.work.bytes / self.kernel_s if self.kernel_s else 0.0

    @property
    def flops_per_s(self) -> float:
        """Return the achieved arithmetic."""
        return self.work.flops / self.kernel_s if self.kernel_s else 0.0

    @property
    def intensity(self) -> float:
        """Return the FLOPs a byte."""
        return self.work.flops / self.work.bytes if self.work.bytes else 0.0

    @property
    def of_roof(self) -> float | None:
        """Return the share of its roof that the kernel reaches, None where no roof is known."""
        return self.least_s / self.kernel_s if self.kernel_s and self.roof != CACHES else None


@dataclass(frozen=True)
class StepProfile:
    """One step: a token of each of `sequences` with `context` tokens, or a prefill chunk of one sequence.

    `edges_s` is what starting and ending the profiled step takes, beside its kernels and barriers. `step_s`
    is the executor's own wall time, `profiled_s` the same with every kernel timed. `engine_s` is the engine's
    time per token of each sequence (the step, scheduling, sampling and text), None for a chunk.
    """

    step: str
    sequences: int
    tokens: int
    context: int
    kernels: tuple[KernelTime, ...]
    kernels_s: float
    barriers_s: float
    edges_s: float
    step_s: Spread
    profiled_s: Spread
    engine_s: Spread | None = None

    @property
    def least_s(self) -> float:
        """Return the least time that the roofs allow, predicted."""
        return sum(kernel.least_s for kernel in self.kernels)

    @property
    def profiler_s(self) -> float:
        """Return what timing every kernel adds to the step."""
        return self.profiled_s.median - self.step_s.median

    @property
    def outside_s(self) -> float | None:
        """Return the engine's time outside the step, None where it was not measured."""
        return None if self.engine_s is None else self.engine_s.median - self.step_s.median


@dataclass(frozen=True)
class Profile:
    """The profiled steps of an artifact with `threads`."""

    threads: int
    roofs: Roofs
    steps: tuple[StepProfile, ...]


@dataclass(frozen=True)
class StepSize:
    """What decides on a step's work: `attended` sums what its tokens see, `cached` what sequences have."""

    rows: Mapping[str, int]
    attended: int
    cached: int

    @classmethod
    def of(cls, batch: Batch, window: int = 0) -> "StepSize":
        """Return the size of a step; `window` bounds what a token sees, 0 does not."""
        seen = batch.positions.astype(np.int64) + 1
        cached = 0
        for sequence in np.unique(batch.sequences):
            own = seen[batch.sequences == sequence]
            first = max(0, int(own.min()) - window) if window else 0
            cached += int(own.max()) - first
        rows = {"tokens": len(batch.input_ids), "rows": len(batch.logit_rows)}
        return cls(rows, int((np.minimum(seen, window) if window else seen).sum()), cached)


def summarize(
    plan: Mapping[str, Any], batch: Batch, seconds: npt.NDArray[np.float64], roofs: Roofs
) -> tuple[KernelTime, ...]:
    """Return the times of each kernel, by its first launch; `seconds` is f64[repetitions, launches, 2].

    Raises: TokcError if the plan does not state the work of its launches.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for at, launch in enumerate(plan["launches"]):
        kernel = launch.get("collective") or plan["kernels"][launch["kernel"]]
        groups.setdefault((launch["op"], kernel), []).append(at)
    total_s = float(np.median(seconds.sum(axis=(1, 2))))
    kernels = []
    for (op, kernel), members in groups.items():
        kernel_s, barrier_s = np.median(seconds[:, members].sum(axis=1), axis=0)
        work = _work([plan["launches"][at] for at in members], batch)
        least_s, roof = roofs.bound(work)
        kernels.append(
            KernelTime(
                op=op,
                kernel=kernel,
                launches=len(members),
                kernel_s=float(kernel_s),
                barrier_s=float(barrier_s),
                share=float(kernel_s + barrier_s) / total_s if total_s else 0.0,
                work=work,
                least_s=least_s,
                roof=roof,
            )
        )
    return tuple(kernels)


def _work(launches: Sequence[Mapping[str, Any]], batch: Batch) -> Work:
    """Return the work of launches of one kernel."""
    flops, moved, memory, arithmetic = 0.0, 0.0, 0.0, ""
    sizes: dict[int, StepSize] = {}
    for launch in launches:
        if "work" not in launch:
            raise TokcError(
                "the artifact's plan does not state the work of its kernels",
                hint="it was built by an earlier tokc: build it again",
            )
        each = LaunchWork.from_json(launch["work"])
        if each.window not in sizes:
            sizes[each.window] = StepSize.of(batch, each.window)
        size = sizes[each.window]
        rows, arithmetic = size.rows[launch["rows"]], each.arithmetic
        flops += each.flops(rows, size.attended)
        moved += each.bytes(rows, size.cached)
        memory += each.memory_bytes(rows, size.cached)
    return Work(arithmetic, flops, moved, memory)
