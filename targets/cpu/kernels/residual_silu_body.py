"""The body of ResidualSilu."""

from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.residual_silu import ResidualSilu
from tokc.targets.cpu.kernels.row_bodies import HALVES, GroupWriter, groups
from tokc.targets.cpu.kernels.tir import Arguments, function
from tokc.targets.cpu.kernels.vector_math import ACTIVATIONS, keep, load


def residual_silu(spec: ResidualSilu) -> Any:
    """Return the PrimFunc of ResidualSilu: heads are columns of one long row, as they are written."""

    def body(arguments: Arguments) -> None:
        x, y = arguments.buffer("x", "float32"), arguments.buffer("gates", "float32")
        joint = spec.width * spec.heads
        writer = GroupWriter(arguments, joint, keep_float=spec.keep_float, quantize=spec.quantize)
        silu = ACTIVATIONS["silu"]
        with groups(arguments, joint) as (row, column):
            start = T.Bind(row * spec.y_stride + column)
            own = T.Bind(row * spec.x_stride + column % spec.width)
            halves = [keep(load(x, own + offset) + silu(load(y, start + offset))) for offset in HALVES]
            writer.write(row, column, halves)

    return function(spec.symbol, spec.args, body)
