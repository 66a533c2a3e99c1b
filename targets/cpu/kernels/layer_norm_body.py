"""The body of LayerNorm: three walks over a row, for the mean, the variance and the result."""

from collections.abc import Callable
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.layer_norm import LayerNorm
from tokc.targets.cpu.kernels.quantize import GROUP
from tokc.targets.cpu.kernels.row_bodies import HALVES, GroupWriter
from tokc.targets.cpu.kernels.tir import Arguments, Expr, function, splat, zeros
from tokc.targets.cpu.kernels.vector_math import LANES, fma, keep, load, multiply, total, vectors


def build(spec: LayerNorm) -> Any:
    """Return the PrimFunc of a specialization."""

    def body(arguments: Arguments) -> None:
        x, weight = arguments.buffer("x", "float32"), arguments.buffer("weight", "float32")
        bias = arguments.buffer("bias", "float32") if spec.bias else None
        writer = GroupWriter(arguments, spec.width, keep_float=spec.keep_float, quantize=spec.quantize)
        with arguments.share(arguments.rows) as row:
            start = T.Bind(row * spec.x_stride)

            def mean_of(term: Callable[[Expr, Expr], Expr]) -> Expr:
                """Return the mean over the row of what `term` adds to a sum for an element."""
                sums = vectors(len(HALVES))
                for i in range(len(HALVES)):
                    sums[i] = zeros(LANES)
                with T.serial(0, spec.width // GROUP) as group:
                    for i, offset in enumerate(HALVES):
                        sums[i] = term(sums[i], load(x, start + group * GROUP + offset))
                return keep(total(keep(sums[0] + sums[1])) / T.float32(spec.width))

            mean = keep(splat(mean_of(lambda total_so_far, value: keep(total_so_far + value)), LANES))

            def squared(total_so_far: Expr, value: Expr) -> Expr:
                centred = keep(value - mean)
                return fma(centred, centred, total_so_far)

            variance = mean_of(squared)
            inverse = keep(splat(T.float32(1) / T.sqrt(variance + T.float32(spec.epsilon)), LANES))
            with T.serial(0, spec.width // GROUP) as group:
                column = T.Bind(group * GROUP)
                halves = []
                for offset in HALVES:
                    normed = multiply(keep(load(x, start + column + offset) - mean), inverse)
                    factor = load(weight, column + offset)
                    halves.append(
                        multiply(normed, factor)
                        if bias is None
                        else fma(normed, factor, load(bias, column + offset))
                    )
                writer.write(row, column, halves)

    return function(spec.symbol, spec.args, body)
