"""The quantized linear kernel's tile for Intel's matrix unit (AMX): 16 rows by 16 outputs.

A group of 32 columns is one product of a 16 x 32 tile of activations and a 32 x 16 tile of weights, to
exact integer sums; the groups are then added in f32 by the same statement as in every other tile, so the
bits are the same.

The process must have asked the kernel for the tile registers (`arch_prctl(ARCH_REQ_XCOMP_PERM, 18)`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.quant_linear import GROUP, L2_BYTES
from tokc.targets.cpu.kernels.quant_linear_codes import QUADS
from tokc.targets.cpu.kernels.tir import Expr, ramp, registers, splat, stack, zeros

if TYPE_CHECKING:
    from tokc.targets.cpu.kernels.quant_linear_stream import Stream
    from tokc.targets.cpu.kernels.quant_linear_tile import Body

ROWS = 16
ROW_BYTES = 64
SUMS, ACTIVATIONS, WEIGHTS = 0, 4, 6
SHAPES = {SUMS: (ROWS, ROW_BYTES), ACTIVATIONS: (ROWS, GROUP), WEIGHTS: (QUADS, ROW_BYTES)}


def instruction(name: str, *operands: Any) -> None:
    """Issue an AMX instruction; Python integers name tile registers."""
    values = [T.int8(value) if isinstance(value, int) else value for value in operands]
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *values))


@contextmanager
def with_matrix_unit() -> Iterator[None]:
    """Shape the tile registers before the body and give them back after it."""
    shapes = T.alloc_buffer((ROW_BYTES,), "uint8", scope="global")
    T.buffer_store(shapes, zeros(ROW_BYTES, "uint8"), [T.Ramp(0, 1, ROW_BYTES)])
    T.buffer_store(shapes, T.uint8(1), [0])
    for register, (rows, row_bytes) in SHAPES.items():
        T.buffer_store(shapes, T.uint8(row_bytes), [16 + 2 * register])
        T.buffer_store(shapes, T.uint8(rows), [48 + register])
    instruction("ldtilecfg", T.address_of(shapes[0]))
    yield
    instruction("tilerelease")


class Matrix:
    """Builds the statements for many rows; a whole weight tile lies unpacked and signed on the stack."""

    least_rows = ROWS

    def __init__(self, body: "Body", stream: "Stream") -> None:
        """Make room on the stack."""
        self.body, self.spec, self.stream, self.lanes = body, body.spec, stream, body.lanes
        self.unpacked = stack(self.spec.k * self.lanes, "uint8")
        self.products = stack(8 * ROWS * self.lanes, "int32")

    def emit(self) -> None:
        """Walk this thread's share of (block of rows that fits in L2, weight tile)."""
        rows, tiles = self.body.arguments.rows, self.spec.tiles
        block = max(64, min(512, L2_BYTES // self.spec.k) // ROWS * ROWS)
        items = T.Bind((rows + block - 1) // block * tiles)
        with self.body.arguments.share(items) as item:
            tile, first = T.Bind(item % tiles), T.Bind(item // tiles * block)
            count = T.Bind(T.min(rows - first, block))
            with T.If(count >= ROWS):
                with T.Then():
                    self.rows_of(tile, first, count)
                with T.Else():
                    self.stream.rows_of([tile], first, count)

    def rows_of(self, tile: Expr, first: Expr, count: Expr) -> None:
        """Compute a block of rows; the last tile of rows overlaps the one before it."""
        self.unpack(tile)
        with with_matrix_unit(), T.serial(0, (count + ROWS - 1) // ROWS) as at:
            self.tile(tile, T.Bind(first + T.min(at * ROWS, count - ROWS)))

    def unpack(self, tile: Expr) -> None:
        """Write the tile's quants less their zero to the stack, in the order of the int8 layout."""
        width = 4 * self.lanes
        zero = splat(T.uint8(self.spec.stored_zero), width)
        with T.serial(0, self.spec.groups) as group:
            self.stream.fetch(tile, group, once=False)
            for quants, quad in self.body.packed_quads(tile, group):
                place = (group * QUADS + quad) * width
                T.buffer_store(self.unpacked, quants - zero, [ramp(place, width)])

    def tile(self, tile: Expr, row: Expr) -> None:
        """Compute 16 rows of one weight tile.

        The sums of a group go through memory, which they leave one group later: a load waits for a tile's
        store.
        """
        body, spec, lanes = self.body, self.spec, self.lanes
        total = registers(ROWS, lanes, "float32")
        sums = self.products

        def multiply(group: Expr) -> None:
            activations = body.xq[row * (spec.k // 4) + group * QUADS]
            weights = self.unpacked[group * (GROUP * lanes)]
            result = sums[group % 2 * (ROWS * lanes)]
            instruction("tileloadd64", WEIGHTS, T.address_of(weights), T.int64(ROW_BYTES))
            instruction("tileloadd64", ACTIVATIONS, T.address_of(activations), T.int64(spec.k))
            instruction("tilezero", SUMS)
            instruction("tdpbssd", SUMS, ACTIVATIONS, WEIGHTS)
            instruction("tilestored64", SUMS, T.address_of(result), T.int64(ROW_BYTES))

        def accumulate(group: Expr) -> None:
            scale, offset = body.scale_and_offset(tile, group)
            for i in range(ROWS):
                part = sums[T.Ramp(group % 2 * (ROWS * lanes) + i * lanes, 1, lanes)]
                total[i] = body.accumulate(total[i], part, scale, offset, row + i, group)

        for i in range(ROWS):
            total[i] = zeros(lanes)
        multiply(T.int32(0))
        with T.serial(0, spec.groups - 1) as group:
            multiply(group + 1)
            accumulate(group)
        accumulate(T.int32(spec.groups - 1))
        for i in range(ROWS):
            body.store(total[i], tile, row + i)
