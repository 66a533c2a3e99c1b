"""Machines that are not here, as their makers' data sheets describe them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from tokc.cost.devices import Host
from tokc.errors import UnknownOption


@dataclass(frozen=True)
class Sheet:
    """One device: dense rates a second, memory in bytes, `units` multiprocessors or cores of a chip.

    Without `targets` tokc makes no code for it: costs there are predictions of the work alone.

    `launch_s` is what an empty kernel takes in a graph, `watts` the board's power limit, and
    `link_bytes_per_s` what leaves the device for others of its kind; None where unknown. `count` of them work
    together, whose rates and memory the fields then state together.
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
    link_bytes_per_s: float | None = None
    count: int = 1

    @property
    def title(self) -> str:
        """Return its name, with how many they are."""
        return self.name if self.count == 1 else f"{self.count} x {self.name}"

    def several(self, count: int) -> "Sheet":
        """Return so many of it together."""
        link = self.link_bytes_per_s
        return replace(
            self,
            summary=f"{count} x {self.summary}",
            units=count * self.units,
            memory_bytes=count * self.memory_bytes,
            read_bytes_per_s=count * self.read_bytes_per_s,
            f16_flops_per_s=count * self.f16_flops_per_s,
            watts=None if self.watts is None else count * self.watts,
            link_bytes_per_s=None if link is None else count * link,
            count=count,
        )

    def host(self) -> Host:
        """Return the device as a machine to predict for; what is not measured says so in `how`."""
        empty = self.launch_s
        launches = f"{empty * 1e6:.2g} µs a launch" if empty else "the time of launches left out"
        if self.count > 1:
            launches += f"; {self._links()}"
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
            link_bytes_per_s=self.link_bytes_per_s or 0.0,
        )

    def _links(self) -> str:
        if self.link_bytes_per_s is None:
            return "the time that devices take to meet left out"
        rate = self.link_bytes_per_s / self.count
        return f"{rate / 1e9:.4g} GB/s leave each device for others, whose latency is left out"


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


def devices_of(target: str) -> tuple[str, int]:
    """Return the target of one device, and how many of it a target has: of `cuda:sm_90-2`, 2."""
    alone, _, count = target.rpartition("-")
    known = any(alone in one.targets for one in device_sheet().values())
    return (alone, int(count)) if known and count.isdigit() else (target, 1)


def sheet_for(target: str, device: str | None = None) -> Sheet | None:
    """Return the named device, or the first that runs `target` (`cuda:sm_90`); None for a CPU's target.

    For a target of several (`cuda:sm_90-2`) so many of it.

    Raises: UnknownOption if the device is unknown or runs another target.
    """
    alone, count = devices_of(target)
    fitting = {
        name: one.several(count) if count > 1 else one
        for name, one in device_sheet().items()
        if alone in one.targets
    }
    if device is None:
        return next(iter(fitting.values()), None)
    named = named_device(device)
    if device not in fitting:
        raise UnknownOption(
            f"device '{device}' runs {', '.join(named.targets)}, the artifact is for {target}",
            hint=f"choose from {', '.join(fitting)}" if fitting else "leave out --device",
        )
    return fitting[device]
