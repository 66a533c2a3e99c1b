"""What a launch did: instructions, bytes and sectors."""

from collections import Counter
from dataclasses import dataclass, field, fields

SECTOR_BYTES = 32


@dataclass
class Counts:
    """Totals of a launch.

    `instructions` by class, as `ld.global` or `mma`, one for each warp that executes it. `load_bytes` and
    `store_bytes` are what lanes ask of global memory; `load_sectors` and `store_sectors` are the sectors, of
    32 bytes, that each warp's access touches; `cta_load_sectors` and `cta_store_sectors` count one once a
    CTA, as a cache that forgets nothing would move it. `matrix_flops` are 2 m n k for every mma and wgmma.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    load_bytes: int = 0
    store_bytes: int = 0
    load_sectors: int = 0
    store_sectors: int = 0
    cta_load_sectors: int = 0
    cta_store_sectors: int = 0
    matrix_flops: int = 0

    @property
    def matrix(self) -> int:
        """Return the number of matrix instructions: a warp's mma, or a warpgroup's wgmma."""
        return self.instructions["mma"] + self.instructions["wgmma.mma_async"] // 4

    @property
    def moved_bytes(self) -> int:
        """Return the bytes of the sectors that each CTA loads and stores."""
        return SECTOR_BYTES * (self.cta_load_sectors + self.cta_store_sectors)

    @property
    def load_efficiency(self) -> float:
        """Return the share of loaded sectors that lanes asked for; above 1 where lanes ask for the same."""
        return self.load_bytes / (SECTOR_BYTES * self.load_sectors) if self.load_sectors else 1.0

    def add(self, other: "Counts") -> None:
        """Add another launch, or other CTAs of this one."""
        self.instructions += other.instructions
        for each in fields(self):
            if each.name != "instructions":
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
