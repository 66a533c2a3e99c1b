"""Quantized linear: y = xhat @ ((q - zero) * scale + offset).T + bias, with int8 activations.

Per group of 32 columns the products are summed in integers, exactly; the groups are added in f32 in
ascending order. So an element's bits do not depend on how many rows there are, on its place in a tile, or
on the thread.

The weight is cut into tiles of `lanes` output rows. A tile holds, each part at a multiple of 64 bytes:
    units   f32[lanes]   (scales of 8 bits only)
    scales  f16[blocks, lanes], a block being the columns that share a scale; or i8, in units of their row
    offsets f16[blocks, lanes]   (asymmetric grids only)
    quants  u8[groups, bits, lanes, 4], codes of up to 4 bits as in quant_linear_codes.py;
            int8 is stored + 128 where the ISA multiplies unsigned by signed bytes
"""

from dataclasses import dataclass
from typing import Any

from tokc.passes.quantization.grid import NARROW_SCALE
from tokc.targets.cpu.isa import Isa

GROUP = 32
L2_BYTES = 1 << 20
TILES_AT_ONCE = 2


@dataclass(frozen=True)
class Schedule:
    """How a kernel goes about its work; no choice changes a bit of what it computes.

    `ahead_bytes` is how far ahead a thread asks for weights that it reads once. Where rows are more than fit
    in registers beside two weight tiles, `tiles_at_once` (1 or 2) are taken by some rows at a time, and from
    `block_rows` rows on weights are unpacked to the cache first (the matrix unit has its own way).
    """

    ahead_bytes: int = 12288
    tiles_at_once: int = 1
    block_rows: int = 32


DEFAULT_SCHEDULE = Schedule()


@dataclass(frozen=True)
class QuantLinear:
    """y f32[rows, n] of xq i8[rows, k]; `bits` 2, 3, 4 or 8; int8 is symmetric.

    `block` columns, a multiple of 32, share a weight scale of `scale_bits` 16, or 8 on symmetric grids; the
    last block of a row may be short.
    """

    isa: Isa
    n: int
    k: int
    bits: int
    symmetric: bool
    bias: bool
    y_stride: int
    block: int = GROUP
    scale_bits: int = 16
    schedule: Schedule = DEFAULT_SCHEDULE

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        grid = "s" if self.symmetric else "a"
        block = f"g{self.block}" if self.block != GROUP else ""
        scales = "n" if self.narrow_scales else ""
        bias = "_bias" if self.bias else ""
        return f"quant_linear_{self.n}x{self.k}_q{self.bits}{grid}{block}{scales}{bias}_{self.y_stride}"

    @property
    def narrow_scales(self) -> bool:
        """Return whether scales are i8, in units of their row."""
        return self.scale_bits == NARROW_SCALE

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("w", "xq", "xs", "xsum", *(("bias",) if self.bias else ()), "y")

    @property
    def groups(self) -> int:
        """Return how many groups a row has."""
        return self.k // GROUP

    @property
    def groups_per_scale(self) -> int:
        """Return how many groups share a weight scale."""
        return self.block // GROUP

    @property
    def blocks(self) -> int:
        """Return how many weight scales a row has."""
        return -(-self.k // self.block)

    @property
    def tiles(self) -> int:
        """Return how many tiles of output rows there are, an even number; the last may be all padding."""
        return -(-self.n // (TILES_AT_ONCE * self.isa.lanes)) * TILES_AT_ONCE

    @property
    def scale_bytes(self) -> int:
        """Return the size of a tile's scales."""
        return _lines(self.blocks * self.isa.lanes * self.scale_bits // 8)

    @property
    def scales_at(self) -> int:
        """Return where a tile's scales begin, behind its units."""
        return _lines(self.isa.lanes * 4) if self.narrow_scales else 0

    @property
    def quants_at(self) -> int:
        """Return where a tile's quants begin."""
        return self.scales_at + self.scale_bytes * (1 if self.symmetric else 2)

    @property
    def vectors(self) -> int:
        """Return how many vectors of quants a group has."""
        return self.bits

    @property
    def tile_bytes(self) -> int:
        """Return the size of a tile."""
        return _lines(self.quants_at + self.groups * self.vectors * 4 * self.isa.lanes)

    @property
    def stored_zero(self) -> int:
        """Return what a stored quant of value 0 reads as, where it is not kept in the offset."""
        if self.bits <= 4:
            return 1 << (self.bits - 1) if self.symmetric else 0
        return 128 if self.isa.dot in {"vpdpbusd", "usdot"} else 0

    @property
    def pairwise(self) -> bool:
        """Return whether products are added in 16-bit pairs first, which take registers of their own."""
        return self.isa.dot == "pmaddubsw"

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.quant_linear_tile import build

        return build(self)


def _lines(size: int) -> int:
    """Return `size` bytes rounded up to cache lines."""
    return -(-size // 64) * 64
