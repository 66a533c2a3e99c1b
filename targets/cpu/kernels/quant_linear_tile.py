"""The quantized linear kernel: which way a step's rows take, and the arithmetic that all ways share.

Few rows stream the packed weights (quant_linear_stream.py), many rows unpack them first
(quant_linear_block.py), or take them through the matrix unit (quant_linear_amx.py).
"""

from collections.abc import Iterator
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.quant_linear import QuantLinear
from tokc.targets.cpu.kernels.quant_linear_block import Block
from tokc.targets.cpu.kernels.quant_linear_codes import decoded
from tokc.targets.cpu.kernels.quant_linear_stream import Stream
from tokc.targets.cpu.kernels.tir import (
    Arguments,
    Expr,
    function,
    intrinsic,
    ramp,
    splat,
    zeros,
)


def scale_of(group: Expr, spec: QuantLinear) -> Expr:
    """Return the index of a group's scale."""
    return group if spec.groups_per_scale == 1 else group // spec.groups_per_scale


Quads = Iterator[tuple[Expr, int]]


def build(spec: QuantLinear) -> Any:
    """Return the PrimFunc of a specialization."""
    return function(spec.symbol, spec.args, lambda arguments: Body(spec, arguments).emit())


class Body:
    """Builds the kernel's statements."""

    def __init__(self, spec: QuantLinear, arguments: Arguments) -> None:
        """Declare buffers."""
        self.spec, self.arguments, self.lanes = spec, arguments, spec.isa.lanes
        self.w, self.half = arguments.buffer("w", "uint8"), arguments.buffer("w", "float16")
        if spec.narrow_scales:
            self.narrow, self.units = arguments.buffer("w", "int8"), arguments.buffer("w", "float32")
        self.xq, self.xs = arguments.buffer("xq", "int32"), arguments.buffer("xs", "float32")
        self.xsum, self.y = arguments.buffer("xsum", "int32"), arguments.buffer("y", "float32")
        self.bias = arguments.buffer("bias", "float32") if spec.bias else None

    def emit(self) -> None:
        """Take the way for few rows or the one for many."""
        from tokc.targets.cpu.kernels.quant_linear_amx import Matrix

        stream = Stream(self)
        many = Matrix(self, stream) if self.spec.isa.amx else Block(self)
        with T.If(self.arguments.rows < many.least_rows):
            with T.Then():
                stream.emit()
            with T.Else():
                many.emit()

    def packed_quads(self, tile: Expr, group: Expr) -> Quads:
        """Yield vectors of four columns by `lanes` rows of the packed weights."""
        spec, width = self.spec, 4 * self.lanes

        def load(vector: int) -> Expr:
            place = tile * spec.tile_bytes + spec.quants_at + (group * spec.vectors + vector) * width
            return T.Bind(self.w[ramp(place, width)])

        for quad, codes in enumerate(decoded(load, spec.bits, lambda n: splat(T.uint8(n), width))):
            yield codes if spec.bits == 8 else T.Bind(codes), quad

    def scale_and_offset(self, tile: Expr, group: Expr) -> tuple[Expr, Expr | None]:
        """Return a group's scales and offsets, one a lane, in f32; a narrow scale times its unit is exact."""
        spec, kind = self.spec, f"float32x{self.lanes}"
        if spec.narrow_scales:
            start = tile * spec.tile_bytes + spec.scales_at + scale_of(group, spec) * self.lanes
            units = self.units[ramp(tile * (spec.tile_bytes // 4), self.lanes)]
            return T.Bind(T.Cast(kind, self.narrow[ramp(start, self.lanes)]) * units), None
        start = tile * (spec.tile_bytes // 2) + scale_of(group, spec) * self.lanes
        scale = T.Bind(T.Cast(kind, self.half[ramp(start, self.lanes)]))
        if spec.symmetric:
            return scale, None
        return scale, T.Bind(T.Cast(kind, self.half[ramp(start + spec.scale_bytes // 2, self.lanes)]))

    def accumulate(
        self, total: Expr, sums: Expr, scale: Expr, offset: Expr | None, row: Expr, group: Expr
    ) -> Expr:
        """Add a group's part to a row's total."""
        at = row * self.spec.groups + group
        shift = None if offset is None else (offset, self.xs[at] * T.Cast("float32", self.xsum[at]))
        return self.scaled(total, sums, (scale, self.xs[at]), shift)

    def scaled(
        self, total: Expr, sums: Expr, scales: tuple[Expr, Expr], offset: tuple[Expr, Expr] | None
    ) -> Expr:
        """Return total + sums * (weight scale * x scale) + offset * shift, if there is an offset.

        All that rounds is here, so that every way gives the same bits.
        """
        scale, x_scale = scales
        total = total + T.Cast(f"float32x{self.lanes}", sums) * (scale * splat(x_scale, self.lanes))
        return total if offset is None else total + offset[0] * splat(offset[1], self.lanes)

    def store(self, result: Expr, tile: Expr, row: Expr) -> None:
        """Write a row's results, with the bias."""
        lanes = self.lanes
        if self.bias is not None:
            result = result + self.bias[ramp(tile * lanes, lanes)]
        T.buffer_store(self.y, result, [ramp(row * self.spec.y_stride + tile * lanes, lanes)])

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
