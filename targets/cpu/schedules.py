"""Schedules that `tokc tune-kernels` found, in the user's cache: one for instruction set, CPU and threads."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tokc.artifact.build_cache import schedules_folder
from tokc.artifact.writer import canonical_json, file_written_aside
from tokc.cost.devices import cpu_name
from tokc.errors import TokcError
from tokc.runtime.executors.cpu import usable_cores
from tokc.targets.cpu.codegen import Kernel
from tokc.targets.cpu.kernels.moe_linear import MoeLinear
from tokc.targets.cpu.kernels.quant_linear import DEFAULT_SCHEDULE, QuantLinear, Schedule

VERSION = 1
# What each choice may be; a file that says otherwise is damaged.
BOUNDS = {"ahead_bytes": (64, 1 << 20), "tiles_at_once": (1, 2), "block_rows": (1, 1 << 20)}


@dataclass(frozen=True)
class Tuned:
    """A schedule and what it was measured on."""

    isa: str
    cpu: str
    threads: int
    schedule: Schedule = DEFAULT_SCHEDULE

    @classmethod
    def here(cls, isa: str, threads: int | None = None) -> "Tuned":
        """Return the default schedule for this machine; `threads` None for as many as it has cores."""
        return cls(isa, cpu_name(), threads or usable_cores())

    @property
    def path(self) -> Path:
        """Return the file that holds it."""
        digest = hashlib.sha256(f"{self.isa}\0{self.cpu}\0{self.threads}".encode()).hexdigest()[:12]
        return schedules_folder() / f"{self.isa}-{digest}.json"

    def write(self) -> None:
        """Keep it for builds. Raises: TokcError if the cache cannot be written."""
        problem = "cannot keep the schedule"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TokcError(f"{problem}: {error.strerror}", where=str(self.path.parent)) from error
        with file_written_aside(self.path, problem, str(self.path)) as file:
            file.write_bytes(canonical_json({"schema_version": VERSION, **asdict(self)}))


def kept_schedule(isa: str, threads: int | None = None) -> Schedule:
    """Return what was found for this machine, or the default.

    Raises: TokcError if the file that holds it is damaged.
    """
    path = Tuned.here(isa, threads).path
    try:
        text = path.read_text()
    except OSError:
        return DEFAULT_SCHEDULE
    try:
        return _parsed(text)
    except (ValueError, KeyError, TypeError) as error:
        raise TokcError(
            "the kernels' schedule in the user's cache is damaged",
            where=str(path),
            hint="make it again: tokc tune-kernels; or delete the file",
        ) from error


def _parsed(text: str) -> Schedule:
    """Read a kept schedule; what is raised says that it is none."""
    stated = json.loads(text)
    values = {each.name: int(stated["schedule"][each.name]) for each in fields(Schedule)}
    whole = all(low <= values[name] <= high for name, (low, high) in BOUNDS.items())
    if stated["schema_version"] != VERSION or not whole:
        raise ValueError(f"no schedule of version {VERSION}")
    return Schedule(**values)


def scheduled(kernel: Kernel, schedule: Schedule) -> Kernel:
    """Return a kernel that goes about its work by a schedule, itself if it has none."""
    match kernel:
        case QuantLinear():
            return replace(kernel, schedule=schedule)
        case MoeLinear(linear=QuantLinear() as linear):
            return replace(kernel, linear=replace(linear, schedule=schedule))
        case _:
            return kernel
