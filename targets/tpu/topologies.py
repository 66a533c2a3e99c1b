"""The TPU topologies that can be compiled for, and their memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
PCI_DEVICES = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"


@dataclass(frozen=True)
class Generation:
    """One kind of chip. `kind` as JAX names it, `pci` its device id, `hbm_bytes` and `cores` of one chip.

    `shapes` are the topologies of one host, by number of chips: the runtime is one process.
    Source: cloud.google.com/tpu/docs, system architecture of each generation; libtpu for `kind` and cores.
    """

    name: str
    kind: str
    pci: str
    hbm_bytes: int
    cores: int
    shapes: Mapping[int, tuple[int, ...]]


PLANE = {1: (1, 1), 4: (2, 2), 8: (2, 4)}
GENERATIONS: Mapping[str, Generation] = {
    each.name: each
    for each in (
        Generation("v5e", "TPU v5 lite", "0x0063", 16 * GIB, 1, PLANE),
        Generation("v5p", "TPU v5", "0x0062", 95 * GIB, 2, {4: (2, 2, 1)}),
        Generation("v6e", "TPU v6 lite", "0x006f", 32 * GIB, 1, PLANE),
    )
}


@dataclass(frozen=True)
class Topology:
    """So many chips of one generation."""

    generation: Generation
    chips: int

    @property
    def name(self) -> str:
        """Return its name as its makers have it, which counts cores: `v5e-4` has 4 chips, `v5p-8` too."""
        return f"{self.generation.name}-{self.chips * self.generation.cores}"

    @property
    def hbm_bytes(self) -> int:
        """Return the memory of all chips together."""
        return self.chips * self.generation.hbm_bytes

    @property
    def libtpu_name(self) -> str:
        """Return its name as libtpu has it, `v5e:2x2`."""
        return f"{self.generation.name}:{'x'.join(map(str, self.generation.shapes[self.chips]))}"

    @property
    def host_bounds(self) -> tuple[int, ...]:
        """Return the chips of a host along three axes: all of them."""
        return (*self.generation.shapes[self.chips], 1)[:3]


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
        chips = found.get(generation.pci, 0)
        if chips in generation.shapes:
            return Topology(generation, chips)
    return None
