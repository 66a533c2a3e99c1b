"""The body of the quantized linear kernel: a register tile of some rows by one tile of weights.

Few rows read the packed weights and unpack them on the way. Many rows unpack a tile of weights once, to the
thread's own stack, and every tile of rows reads it from there. The last tile of rows then overlaps the one
before it: it computes some rows a second time, to the same bits.
"""

from collections.abc import Callable, Iterator
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.quant_linear import GROUP, L2_BYTES, QuantLinear
from tokc.targets.cpu.kernels.tir import (
    Arguments,
    Buffer,
    Expr,
    dot_u8,
    function,
    intrinsic,
    prefetch,
    ramp,
    registers,
    splat,
    stack,
    zeros,
)

QUADS = GROUP // 4
UNPACK_FROM_TILES = 3
MATRIX_ROWS = 16
PREFETCH_BYTES, LINE_BYTES = 16384, 64
Quads = Iterator[tuple[Expr, int]]


def build(spec: QuantLinear) -> Any:
    """Return the PrimFunc of a specialization."""
    return function(spec.symbol, spec.args, lambda arguments: Body(spec, arguments).emit())


class Body:
    """Builds the kernel's statements."""

    def __init__(self, spec: QuantLinear, arguments: Arguments) -> None:
        """Declare buffers and registers."""
        lanes = spec.isa.lanes
        self.spec, self.arguments, self.lanes = spec, arguments, lanes
        self.rows_at_once = spec.isa.accumulators
        self.many_at_once = self.rows_at_once * 3 // 2 if lanes == 16 else self.rows_at_once
        self.w, self.half = arguments.buffer("w", "uint8"), arguments.buffer("w", "float16")
        self.xq, self.xs = arguments.buffer("xq", "int32"), arguments.buffer("xs", "float32")
        self.xsum, self.y = arguments.buffer("xsum", "int32"), arguments.buffer("y", "float32")
        self.bias = arguments.buffer("bias", "float32") if spec.bias else None
        self.total = registers(self.many_at_once, lanes, "float32")
        self.sums = registers(self.many_at_once, lanes, "int32")
        self.pairs = registers(self.many_at_once, 2 * lanes, "int16") if spec.isa.dot == "pmaddubsw" else None
        self.unpacked: Buffer = stack(spec.k * lanes, "uint8") if spec.unpacks else None
        self.products_of_tile: Buffer = stack(8 * MATRIX_ROWS * lanes, "int32") if spec.isa.amx else None

    def emit(self) -> None:
        """Walk this thread's share of (block of rows that fits in L2, weight tile)."""
        rows, tiles = self.arguments.rows, self.spec.tiles
        block = max(64, min(512, L2_BYTES // self.spec.k) // 16 * 16)
        items = T.Bind((rows + block - 1) // block * tiles)
        end = T.Select(items == tiles, items * (self.arguments.tid + 1) // self.arguments.threads, tiles)
        self.last = T.Bind(end * self.spec.tile_bytes - LINE_BYTES)
        with self.arguments.share(items) as item:
            tile, first = T.Bind(item % tiles), T.Bind(item // tiles * block)
            count = T.Bind(T.min(rows - first, block))
            if self.spec.isa.amx:
                self.choose(
                    count >= MATRIX_ROWS, lambda: self.matrix_rows(tile, first, count), tile, first, count
                )
            elif self.spec.unpacks:
                least = UNPACK_FROM_TILES * self.many_at_once
                self.choose(count >= least, lambda: self.many_rows(tile, first, count), tile, first, count)
            else:
                self.few_rows(tile, first, count)

    def choose(self, many: Expr, then: Callable[[], None], tile: Expr, first: Expr, count: Expr) -> None:
        """Take the way for many rows or the one for few."""
        with T.If(many):
            with T.Then():
                then()
            with T.Else():
                self.few_rows(tile, first, count)

    def few_rows(self, tile: Expr, first: Expr, count: Expr) -> None:
        """Compute a block in tiles of rows that halve at its end."""
        whole, half = self.rows_at_once, self.rows_at_once // 2
        full = T.Bind(count // whole)
        with T.serial(0, full) as at:
            self.tile(self.packed_quads, tile, first + at * whole, whole)
        done = T.Bind(full * whole)
        halves = T.Bind((count - done) // half)
        with T.serial(0, halves):
            self.tile(self.packed_quads, tile, first + done, half)
        with T.serial(done + halves * half, count) as row:
            self.tile(self.packed_quads, tile, first + row, 1)

    def many_rows(self, tile: Expr, first: Expr, count: Expr) -> None:
        """Unpack the weights, then compute a block in equal tiles of rows, the last one overlapping."""
        whole = self.many_at_once
        self.unpack(tile, 0)
        with T.serial(0, (count + whole - 1) // whole) as at:
            self.tile(self.unpacked_quads, tile, first + T.min(at * whole, count - whole), whole)

    def matrix_rows(self, tile: Expr, first: Expr, count: Expr) -> None:
        """Do the same through the matrix unit, which takes signed weights."""
        from tokc.targets.cpu.kernels.quant_linear_amx import matrix_tile, with_matrix_unit

        self.unpack(tile, self.spec.stored_zero)
        with with_matrix_unit(), T.serial(0, (count + MATRIX_ROWS - 1) // MATRIX_ROWS) as at:
            matrix_tile(self, tile, first + T.min(at * MATRIX_ROWS, count - MATRIX_ROWS))

    def unpack(self, tile: Expr, zero: int) -> None:
        """Write the tile's quants less `zero` to the stack, one a byte, in the order of the int8 layout."""
        width = 4 * self.lanes
        with T.serial(0, self.spec.groups) as group:
            self.prefetch(tile, group)
            for quants, quad in self.packed_quads(tile, group):
                value = quants - splat(T.uint8(zero), width) if zero else quants
                place = (group * QUADS + quad) * width
                T.buffer_store(self.unpacked, value, [ramp(place, width)])

    def prefetch(self, tile: Expr, group: Expr) -> None:
        """Ask for the packed weights that this thread reads `PREFETCH_BYTES` later, in equal parts a group.

        The CPU's own prefetchers stop at the end of a 4 KiB page; one stream alone then leaves half of the
        memory's bandwidth unused. To L2, for L1 would lose the lines again before they are read.
        """
        spec = self.spec
        part = spec.tile_bytes // spec.groups
        for line in range(0, part, LINE_BYTES):
            place = tile * spec.tile_bytes + group * part + (PREFETCH_BYTES + line)
            prefetch(self.w[T.min(place, self.last)])

    def packed_quads(self, tile: Expr, group: Expr) -> Quads:
        """Yield vectors of four columns by `lanes` rows of the packed weights."""
        spec, width = self.spec, 4 * self.lanes
        for vector in range(spec.vectors):
            place = tile * spec.tile_bytes + spec.quants_at + (group * spec.vectors + vector) * width
            quants = T.Bind(self.w[ramp(place, width)])
            if spec.bits == 4:
                yield T.Bind(quants & splat(T.uint8(15), width)), 2 * vector
                yield T.Bind(quants >> splat(T.uint8(4), width)), 2 * vector + 1
            else:
                yield quants, vector

    def unpacked_quads(self, _: Expr, group: Expr) -> Quads:
        """Yield the same vectors from the stack."""
        for quad in range(QUADS):
            place = (group * QUADS + quad) * 4 * self.lanes
            yield T.Bind(self.unpacked[ramp(place, 4 * self.lanes)]), quad

    def tile(self, quads: Callable[[Expr, Expr], Quads], tile: Expr, row: Expr, count: int) -> None:
        """Compute `count` rows of one weight tile."""
        for i in range(count):
            self.total[i] = zeros(self.lanes)
        with T.serial(0, self.spec.groups) as group:
            if quads == self.packed_quads:
                self.prefetch(tile, group)
            self.integer_sums(quads(tile, group), row, count, group)
            scale, offset = self.scale_and_offset(tile, group)
            for i in range(count):
                self.total[i] = self.accumulate(self.total[i], self.sums[i], scale, offset, row + i, group)
        for i in range(count):
            self.store(self.total[i], tile, row + i)

    def scale_and_offset(self, tile: Expr, group: Expr) -> tuple[Expr, Expr | None]:
        """Return a group's scales and offsets, one a lane, in f32."""
        spec, kind = self.spec, f"float32x{self.lanes}"
        start = tile * (spec.tile_bytes // 2) + group * self.lanes
        scale = T.Bind(T.Cast(kind, self.half[ramp(start, self.lanes)]))
        if spec.symmetric:
            return scale, None
        return scale, T.Bind(T.Cast(kind, self.half[ramp(start + spec.scale_bytes // 2, self.lanes)]))

    def accumulate(
        self, total: Expr, sums: Expr, scale: Expr, offset: Expr | None, row: Expr, group: Expr
    ) -> Expr:
        """Add a group's part to a row's total; the one place that rounds."""
        at = row * self.spec.groups + group
        total = total + T.Cast(f"float32x{self.lanes}", sums) * (scale * splat(self.xs[at], self.lanes))
        if offset is None:
            return total
        return total + offset * splat(self.xs[at] * T.Cast("float32", self.xsum[at]), self.lanes)

    def store(self, result: Expr, tile: Expr, row: Expr) -> None:
        """Write a row's results, with the bias."""
        lanes = self.lanes
        if self.bias is not None:
            result = result + self.bias[ramp(tile * lanes, lanes)]
        T.buffer_store(self.y, result, [ramp(row * self.spec.y_stride + tile * lanes, lanes)])

    def integer_sums(self, quads: Quads, row: Expr, count: int, group: Expr) -> None:
        """Leave the group's exact integer sums in `self.sums`."""
        spec = self.spec
        for i in range(count):
            self.sums[i] = self.correction((row + i) * spec.groups + group)
            if self.pairs is not None:
                self.pairs[i] = zeros(2 * self.lanes, "int16")
        for quants, quad in quads:
            for i in range(count):
                at = (row + i) * (spec.k // 4) + group * QUADS + quad
                self.multiply(i, quants, splat(self.xq[at], self.lanes))
        if self.pairs is not None and spec.bits == 4:
            for i in range(count):
                self.sums[i] = self.sums[i] + self.widened(self.pairs[i])

    def correction(self, at: Expr) -> Expr:
        """Return what the stored zero adds to the sums, negated: -zero * xsum.

        On x86 by a product of 16-bit pairs, exact as |xsum| <= 32 * 127: one instruction on a broadcast load.
        """
        spec, lanes = self.spec, self.lanes
        if not spec.stored_zero:
            return zeros(lanes, "int32")
        if spec.isa.dot not in {"vpdpbusd", "pmaddubsw"}:
            return splat(self.xsum[at] * (-spec.stored_zero), lanes)
        halves, integers = f"int16x{2 * lanes}", f"int32x{lanes}"
        sums = T.reinterpret(halves, splat(self.xsum[at], lanes))
        zero = T.reinterpret(halves, splat(T.int32(-spec.stored_zero & 0xFFFF), lanes))
        if spec.isa.dot == "vpdpbusd":
            return intrinsic(
                integers, f"llvm.x86.avx512.vpdpwssd.{32 * lanes}", zeros(lanes, "int32"), sums, zero
            )
        return intrinsic(integers, "llvm.x86.avx2.pmadd.wd", sums, zero)

    def multiply(self, i: int, quants: Expr, activations: Expr) -> None:
        """Add the products of four columns to the sums of row `i`."""
        if self.pairs is None:
            self.sums[i] = dot_u8(self.spec.isa, self.sums[i], quants, activations)
        elif self.spec.bits == 4:
            self.pairs[i] = self.pairs[i] + self.products(quants, activations)
        else:
            self.sums[i] = self.sums[i] + self.widened(self.signed_products(quants, activations))

    def products(self, unsigned: Expr, activations: Expr) -> Expr:
        """Return i16 sums of two products; |2 * 15 * 127| stays far from saturation."""
        signed = T.reinterpret(f"int8x{4 * self.lanes}", activations)
        return intrinsic(f"int16x{2 * self.lanes}", "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed)

    def signed_products(self, quants: Expr, activations: Expr) -> Expr:
        """Return i16 sums of two products of signed bytes: |x| times the weight with x's sign.

        Exact for weights in [-127, 127]: 2 * 127 * 127 < 2**15.
        """
        signed = f"int8x{4 * self.lanes}"
        x = T.reinterpret(signed, activations)
        magnitude = intrinsic(signed, "llvm.x86.avx2.psign.b", x, x)
        turned = intrinsic(signed, "llvm.x86.avx2.psign.b", T.reinterpret(signed, quants), x)
        unsigned = T.reinterpret(f"uint8x{4 * self.lanes}", magnitude)
        return intrinsic(f"int16x{2 * self.lanes}", "llvm.x86.avx2.pmadd.ub.sw", unsigned, turned)

    def widened(self, pairs: Expr) -> Expr:
        """Add neighbouring i16 into i32."""
        ones = splat(T.int16(1), 2 * self.lanes)
        return intrinsic(f"int32x{self.lanes}", "llvm.x86.avx2.pmadd.wd", pairs, ones)
