"""The body of the quantized linear kernel: a register tile of some rows by one tile of weights."""

from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.quant_linear import GROUP, L2_BYTES, QuantLinear
from tokc.targets.cpu.kernels.tir import (
    Arguments,
    Expr,
    dot_u8,
    function,
    intrinsic,
    ramp,
    registers,
    splat,
    zeros,
)

QUADS = GROUP // 4


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
        self.w, self.half = arguments.buffer("w", "uint8"), arguments.buffer("w", "float16")
        self.xq, self.xs = arguments.buffer("xq", "int32"), arguments.buffer("xs", "float32")
        self.xsum, self.y = arguments.buffer("xsum", "int32"), arguments.buffer("y", "float32")
        self.bias = arguments.buffer("bias", "float32") if spec.bias else None
        self.total = registers(self.rows_at_once, lanes, "float32")
        self.sums = registers(self.rows_at_once, lanes, "int32")
        self.pairs = registers(self.rows_at_once, 2 * lanes, "int16") if spec.isa.dot == "pmaddubsw" else None

    def emit(self) -> None:
        """Walk blocks of rows that fit in L2, then this thread's weight tiles, then the block's rows."""
        rows = self.arguments.rows
        block = max(self.rows_at_once, min(512, L2_BYTES // self.spec.k) // self.rows_at_once * self.rows_at_once)
        with T.serial(0, (rows + block - 1) // block) as index:
            first = T.Bind(index * block)
            count = T.Bind(T.min(rows - first, block))
            full = T.Bind(count // self.rows_at_once)
            with self.arguments.share(self.spec.tiles) as tile:
                with T.serial(0, full) as at:
                    self.tile(tile, first + at * self.rows_at_once, self.rows_at_once)
                done = T.Bind(full * self.rows_at_once)
                half = self.rows_at_once // 2
                with T.serial(0, (count - done) // half):
                    self.tile(tile, first + done, half)
                with T.serial(done + (count - done) // half * half, count) as row:
                    self.tile(tile, first + row, 1)

    def tile(self, tile: Expr, row: Expr, count: int) -> None:
        """Compute `count` rows of one weight tile."""
        lanes, spec = self.lanes, self.spec
        for i in range(count):
            self.total[i] = zeros(lanes)
        with T.serial(0, spec.groups) as group:
            self.integer_sums(tile, row, count, group)
            scale = T.Bind(T.Cast(f"float32x{lanes}", self.half[self.scale_index(tile, group, 0)]))
            if not spec.symmetric:
                offset = T.Bind(T.Cast(f"float32x{lanes}", self.half[self.scale_index(tile, group, 1)]))
            for i in range(count):
                at = (row + i) * spec.groups + group
                product = T.Cast(f"float32x{lanes}", self.sums[i]) * (scale * splat(self.xs[at], lanes))
                total = self.total[i] + product
                if not spec.symmetric:
                    total = total + offset * splat(self.xs[at] * T.Cast("float32", self.xsum[at]), lanes)
                self.total[i] = total
        for i in range(count):
            result = self.total[i]
            if self.bias is not None:
                result = result + self.bias[ramp(tile * lanes, lanes)]
            T.buffer_store(self.y, result, [ramp((row + i) * spec.y_stride + tile * lanes, lanes)])

    def scale_index(self, tile: Expr, group: Expr, part: int) -> Expr:
        """Return where the group's scales (part 0) or offsets (part 1) lie, in halves."""
        spec = self.spec
        start = tile * (spec.tile_bytes // 2) + part * (spec.scale_bytes // 2)
        return ramp(start + group * self.lanes, self.lanes)

    def integer_sums(self, tile: Expr, row: Expr, count: int, group: Expr) -> None:
        """Leave the group's exact integer sums in `self.sums`."""
        spec = self.spec
        for i in range(count):
            correction = self.xsum[(row + i) * spec.groups + group] * (-spec.stored_zero)
            self.sums[i] = splat(correction, self.lanes) if spec.stored_zero else zeros(self.lanes, "int32")
            if self.pairs is not None:
                self.pairs[i] = zeros(2 * self.lanes, "int16")
        for vector in range(spec.vectors):
            width = 4 * self.lanes
            place = tile * spec.tile_bytes + spec.quants_at + (group * spec.vectors + vector) * width
            quants = T.Bind(self.w[ramp(place, width)])
            if spec.bits == 4:  # noqa: PLR2004 - two quads of columns a vector
                low = T.Bind(quants & splat(T.uint8(15), width))
                high = T.Bind(quants >> splat(T.uint8(4), width))
                self.multiply(((low, 2 * vector), (high, 2 * vector + 1)), row, count, group)
            else:
                self.multiply(((quants, vector),), row, count, group)
        if self.pairs is not None and spec.bits == 4:  # noqa: PLR2004 - eight sums of two nibbles fit in 16 bits
            for i in range(count):
                self.sums[i] = self.sums[i] + self.widened(self.pairs[i])

    def multiply(self, quads: tuple[tuple[Expr, int], ...], row: Expr, count: int, group: Expr) -> None:
        """Add the products of quads of columns to the sums of every row."""
        for i in range(count):
            base = (row + i) * (self.spec.k // 4) + group * QUADS
            for quants, quad in quads:
                activations = splat(self.xq[base + quad], self.lanes)
                if self.pairs is None:
                    self.sums[i] = dot_u8(self.spec.isa, self.sums[i], quants, activations)
                elif self.spec.bits == 4:  # noqa: PLR2004
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


