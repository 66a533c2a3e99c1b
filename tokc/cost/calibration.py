"""The efficiencies of this machine's kernels, as `tokc doctor --calibrate` fitted and kept them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokc.cost import records
from tokc.cost.devices import Host, cpu_name, usable_cores
from tokc.cost.efficiency import Efficiencies
from tokc.cost.profile import Roofs
from tokc.runtime.manifest import TargetInfo
from tokc.user_cache import cache_folder


@dataclass(frozen=True)
class StepError:
    """A step that was timed for the fit; `error` is predicted / measured - 1 of its launches together."""

    artifact: str
    sequences: int
    tokens: int
    context: int
    measured_s: float
    error: float


@dataclass(frozen=True)
class Calibration:
    """What a fit found for kernels of one device with `threads`, and how far it is from what it fits.

    `host` has the roofs that the efficiencies are shares of; `foreign_cpu` is the share of the cores that
    other programs took meanwhile.
    """

    device: str
    threads: int
    host: Host
    artifacts: tuple[str, ...]
    efficiencies: Efficiencies
    steps: tuple[StepError, ...]
    measured_at: str
    foreign_cpu: float = 0.0
    schema_version: int = 1

    @property
    def roofs(self) -> Roofs:
        """Return the roofs that hold for the efficiencies."""
        return Roofs.of(self.host)

    @property
    def mean_error(self) -> float:
        """Return the mean size of the fit's relative errors."""
        return mean_error([step.error for step in self.steps])

    @property
    def worst_error(self) -> float:
        """Return the largest size of the fit's relative errors."""
        return max(abs(step.error) for step in self.steps)


def mean_error(errors: Sequence[float]) -> float:
    """Return the mean size of relative errors."""
    return sum(map(abs, errors)) / len(errors)


def calibration_path(device: str) -> Path:
    """Return where the calibration for a device's kernels is kept: the user's cache."""
    return cache_folder() / "calibration" / f"{device}.json"


def calibration_of(target: TargetInfo) -> Calibration | None:
    """Return the calibration of this machine for a target's kernels, None where it was not made on this CPU.

    Raises: TokcError if the file is damaged.
    """
    path = calibration_path(target.device)
    if target.kind != "cpu" or not path.exists():
        return None
    found = records.read(Calibration, path)
    same = (found.host.cpu, found.host.cores) == (cpu_name(), usable_cores())
    return found if same else None
