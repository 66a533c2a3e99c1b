"""The TPU topologies that can be compiled for, and their memory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
PCI_DEVICES = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"


@dataclass(frozen=True)
class Generation:
    """One kind of chip. `kind` as JAX names it, `pci` its device id, `hbm_bytes` of one chip.

    `shapes` are the topologies by number of chips, as libtpu writes them.
    Source: cloud.google.com/tpu/docs, system architecture of each generation; libtpu for `kind` and shapes.
    """

    name: str
    kind: str
    pci: str
    hbm_bytes: int
    shapes: Mapping[int, str]


PLANE = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4"}
CUBE = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4"}
GENERATIONS: Mapping[str, Generation] = {
    each.name: each
    for each in (
        Generation("v5e", "TPU v5 lite", "0x0063", 16 * GIB, PLANE),
        Generation("v5p", "TPU v5", "0x0062", 95 * GIB, CUBE),
        Generation("v6e", "TPU v6 lite", "0x006f", 32 * GIB, PLANE),
    )
}


@dataclass(frozen=True)
class Topology:
    """So many chips of one generation."""

    generation: Generation
    chips: int

    @property
    def name(self) -> str:
        """Return its name as a device of the target, `v5e-4`."""
        return f"{self.generation.name}-{self.chips}"

    @property
    def libtpu_name(self) -> str:
        """Return its name as libtpu has it, `v5e:2x2`."""
        return f"{self.generation.name}:{self.generation.shapes[self.chips]}"


TOPOLOGIES: Mapping[str, Topology] = {
    topology.name: topology
    for topology in (
        Topology(generation, chips) for generation in GENERATIONS.values() for chips in generation.shapes
    )
}


def topology_here(devices: Path = PCI_DEVICES) -> Topology | None:
    """Return the topology of this machine's chips by their PCI ids, None if it has none that is known."""
    found: dict[str, int] = {}
    for vendor in devices.glob("*/vendor"):
        if vendor.read_text().strip() == GOOGLE:
            device = (vendor.parent / "device").read_text().strip()
            found[device] = found.get(device, 0) + 1
    for generation in GENERATIONS.values():
        name = f"{generation.name}-{found.get(generation.pci, 0)}"
        if name in TOPOLOGIES:
            return TOPOLOGIES[name]
    return None


def natural(name: str) -> tuple[object, ...]:
    """Return a key that sorts v5e-4 before v5e-16."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
