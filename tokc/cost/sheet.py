"""Machines that are not here, as their makers' data sheets describe them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tokc.cost.devices import Host
from tokc.errors import UnknownOption


@dataclass(frozen=True)
class Sheet:
    """One device: dense rates a second, memory in bytes, `units` multiprocessors or cores of a chip.

    Without `targets` tokc makes no code for it: costs there are predictions of the work alone.

    `launch_s` is what an empty kernel takes in a graph, `watts` the board's power limit; None where unknown.
    """

    name: str
    summary: str
    targets: tuple[str, ...]
    units: int
    memory_bytes: float
    read_bytes_per_s: float
    f16_flops_per_s: float
    source: str
    launch_s: float | None = None
    watts: float | None = None

    def host(self) -> Host:
        """Return the device as a machine to predict for; what is not measured says so in `how`."""
        empty = self.launch_s
        launches = f"{empty * 1e6:.2g} µs a launch" if empty else "the time of launches left out"
        return Host(
            cpu=self.summary,
            arch=self.targets[0] if self.targets else "no target of tokc",
            cores=self.units,
            memory_bytes=int(self.memory_bytes),
            instructions=(),
            read_bytes_per_s=self.read_bytes_per_s,
            f32_flops_per_s=self.f16_flops_per_s,
            int8_flops_per_s=self.f16_flops_per_s,
            how=f"data sheet ({self.source}); every product in 16 bits at the dense peak; {launches}; "
            "nothing measured",
            measured=False,
            launch_s=self.launch_s or 0.0,
        )


@cache
def device_sheet() -> Mapping[str, Sheet]:
    """Return the sheet that comes with tokc, by name."""
    rows = tomllib.loads(files("tokc.cost").joinpath("devices.toml").read_text())["device"]
    return {row["name"]: Sheet(**{**row, "targets": tuple(row["targets"])}) for row in rows}


def named_device(name: str) -> Sheet:
    """Return a row of the sheet.

    Raises: UnknownOption listing the rows.
    """
    if name not in device_sheet():
        raise UnknownOption(f"unknown device '{name}'; choose from {', '.join(device_sheet())}")
    return device_sheet()[name]


def sheet_for(target: str, device: str | None = None) -> Sheet | None:
    """Return the named device, or the first that runs `target` (`cuda:sm_90`); None for a CPU's target.

    Raises: UnknownOption if the device is unknown or runs another target.
    """
    fitting = {name: one for name, one in device_sheet().items() if target in one.targets}
    if device is None:
        return next(iter(fitting.values()), None)
    named = named_device(device)
    if device not in fitting:
        raise UnknownOption(
            f"device '{device}' runs {', '.join(named.targets)}, the artifact is for {target}",
            hint=f"choose from {', '.join(fitting)}" if fitting else "leave out --device",
        )
    return named
