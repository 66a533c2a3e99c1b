"""What a process holds: memory and file descriptors, from /proc."""

import os
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Held(NamedTuple):
    """Resident memory in MiB and open file descriptors at a time in seconds."""

    time_s: float
    rss_mib: float
    fds: int


def held_by(process_id: int, time_s: float) -> Held:
    """Return what a process holds now."""
    folder = Path(f"/proc/{process_id}")
    pages = int((folder / "statm").read_text().split()[1])
    return Held(time_s, pages * PAGE_BYTES / MIB, len(list((folder / "fd").iterdir())))


def rss_slope(samples: list[Held]) -> float:
    """Return the growth of memory in MiB a minute over the second half, by least squares."""
    late = samples[len(samples) // 2 :]
    mean_s = sum(one.time_s for one in late) / len(late)
    mean_mib = sum(one.rss_mib for one in late) / len(late)
    spread = sum((one.time_s - mean_s) ** 2 for one in late)
    return 60 * sum((one.time_s - mean_s) * (one.rss_mib - mean_mib) for one in late) / max(spread, 1e-9)
