"""Runs one measurement in a process of its own, and says how busy the rest of the machine was meanwhile."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# /proc/stat counts, in order: user nice system idle iowait irq softirq steal.
BUSY = (0, 1, 2, 5, 6)
STEAL = 7
TAIL_CHARACTERS = 2000


@dataclass(frozen=True)
class Measurement:
    """What the process printed, and the share of the machine's CPU time that others took while it ran."""

    result: dict[str, Any]
    foreign_cpu_s: float
    wall_s: float

    @property
    def foreign_share(self) -> float:
        """Return the share of all cores that others, the hypervisor included, used."""
        return max(0.0, self.foreign_cpu_s) / (self.wall_s * (os.cpu_count() or 1))


def run(command: list[str], environment: dict[str, str] | None = None) -> Measurement:
    """Run `command`; its last line is JSON, or nothing. BENCH_START tells it when it was started.

    Raises: RuntimeError with the end of its errors if it fails.
    """
    before, start = _machine_cpu_s() - _children_cpu_s(), time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {}), "BENCH_START": str(time.monotonic())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, errors = process.communicate()
    wall_s = time.perf_counter() - start
    foreign_cpu_s = _machine_cpu_s() - _children_cpu_s() - before
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors[-TAIL_CHARACTERS:]}")
    lines = [line for line in out.splitlines() if line.startswith("{")]
    result = json.loads(lines[-1]) if lines else {}
    return Measurement(result, foreign_cpu_s, wall_s)


def _machine_cpu_s() -> float:
    counts = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(counts[i] for i in (*BUSY, STEAL)) / os.sysconf("SC_CLK_TCK")


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system
