"""The bodies of the kernels that work row by row, or piece by piece of a row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.elementwise import Add, Apply, GatherRows, Multiply, Scale
from tokc.targets.cpu.kernels.gated_activation import GatedActivation
from tokc.targets.cpu.kernels.quantize import GROUP, Quantize
from tokc.targets.cpu.kernels.rms_norm import RmsNorm
from tokc.targets.cpu.kernels.tir import Arguments, Expr, function, splat, zeros
from tokc.targets.cpu.kernels.vector_math import (
    ACTIVATIONS,
    I32,
    LANES,
    constant,
    fma,
    keep,
    largest,
    load,
    magnitude,
    multiply,
    nearest,
    store,
    total,
    vectors,
    whole_total,
)

HALVES = tuple(range(0, GROUP, LANES))
BYTES = f"int8x{LANES}"


class GroupWriter:
    """Writes 32 results of a row as f32, as int8, or both."""

    def __init__(self, arguments: Arguments, width: int, *, keep_float: bool, quantize: bool) -> None:
        """Declare the outputs; `width` is their row length."""
        self._width = width
        self._y = arguments.buffer("y", "float32") if keep_float else None
        self._quants = None
        if quantize:
            self._quants = arguments.buffer("xq", "int8")
            self._scales = arguments.buffer("xs", "float32")
            self._sums = arguments.buffer("xsum", "int32")

    def write(self, row: Expr, column: Expr, halves: list[Expr]) -> None:
        """Write the group that begins at `column`, a multiple of 32."""
        start = T.Bind(row * self._width + column)
        if self._y is not None:
            for offset, half in zip(HALVES, halves, strict=True):
                store(self._y, start + offset, half)
        if self._quants is not None:
            self._quantize(start, T.Bind(start // GROUP), halves)

    def _quantize(self, start: Expr, group: Expr, halves: list[Expr]) -> None:
        peak = largest(keep(T.max(magnitude(halves[0]), magnitude(halves[1]))))
        scale = keep(peak / T.float32(127))
        inverse = keep(T.Select(scale > T.float32(0), T.float32(1) / scale, T.float32(0)))
        quants = [nearest(multiply(half, splat(inverse, LANES))) for half in halves]
        for offset, quant in zip(HALVES, quants, strict=True):
            store(self._quants, start + offset, T.Cast(BYTES, T.Cast(I32, quant)))
        T.buffer_store(self._scales, scale, [group])
        T.buffer_store(self._sums, whole_total(T.Cast(I32, keep(quants[0] + quants[1]))), [group])


def quantize(spec: Quantize) -> Any:
    """Return the PrimFunc of Quantize."""

    def body(arguments: Arguments) -> None:
        x = arguments.buffer("x", "float32")
        writer = GroupWriter(arguments, spec.width, keep_float=False, quantize=True)
        with groups(arguments, spec.width) as (row, column):
            start = T.Bind(row * spec.x_stride + column)
            writer.write(row, column, [load(x, start + offset) for offset in HALVES])

    return function(spec.symbol, spec.args, body)


def gated_activation(spec: GatedActivation) -> Any:
    """Return the PrimFunc of GatedActivation."""

    def body(arguments: Arguments) -> None:
        x = arguments.buffer("gate_up", "float32")
        arguments.rows = T.Bind(arguments.rows * spec.times) if spec.times > 1 else arguments.rows
        writer = GroupWriter(arguments, spec.intermediate, keep_float=spec.keep_float, quantize=spec.quantize)
        activation = ACTIVATIONS[spec.activation]
        with groups(arguments, spec.intermediate) as (row, column):
            start = T.Bind(row * spec.x_stride + column)
            halves = []
            for offset in HALVES:
                gate, up = load(x, start + offset), load(x, start + offset + spec.intermediate)
                halves.append(multiply(activation(gate), up))
            writer.write(row, column, halves)

    return function(spec.symbol, spec.args, body)


def rms_norm(spec: RmsNorm) -> Any:
    """Return the PrimFunc of RmsNorm."""

    def body(arguments: Arguments) -> None:
        x, weight = arguments.buffer("x", "float32"), arguments.buffer("weight", "float32")
        residual = arguments.buffer("residual", "float32") if spec.add else None
        source = arguments.buffer("sum", "float32") if spec.add else x
        writer = GroupWriter(arguments, spec.width, keep_float=spec.keep_float, quantize=spec.quantize)
        squares = vectors(2)
        with arguments.share(arguments.rows) as row:
            start = T.Bind(row * spec.x_stride)
            for i in range(2):
                squares[i] = zeros(LANES)
            with T.serial(0, spec.width // GROUP) as group:
                for i, offset in enumerate(HALVES):
                    place = T.Bind(start + group * GROUP + offset)
                    value = load(x, place)
                    if residual is not None:
                        value = keep(value + load(residual, place))
                        store(source, place, value)
                    squares[i] = fma(value, value, squares[i])
            mean = keep(total(keep(squares[0] + squares[1])) / T.float32(spec.width))
            inverse = keep(splat(T.float32(1) / T.sqrt(mean + T.float32(spec.epsilon)), LANES))
            with T.serial(0, spec.width // GROUP) as group:
                column = T.Bind(group * GROUP)
                halves = [multiply(load(source, start + column + offset), inverse) for offset in HALVES]
                weighted = [
                    multiply(half, load(weight, column + offset))
                    for offset, half in zip(HALVES, halves, strict=True)
                ]
                writer.write(row, column, weighted)

    return function(spec.symbol, spec.args, body)


def binary(spec: Add | Multiply, *, product: bool) -> Any:
    """Return the PrimFunc of Add or Multiply."""

    def body(arguments: Arguments) -> None:
        a, b = arguments.buffer("a", "float32"), arguments.buffer("b", "float32")
        out = arguments.buffer("out", "float32")
        with groups(arguments, spec.width) as (row, column):
            for offset in HALVES:
                left = load(a, row * spec.a_stride + column + offset)
                right = load(b, row * spec.b_stride + column + offset)
                store(out, row * spec.width + column + offset, left * right if product else left + right)

    return function(spec.symbol, spec.args, body)


def scale(spec: Scale) -> Any:
    """Return the PrimFunc of Scale."""
    return mapped(spec, lambda vector: vector * constant(spec.factor))


def apply(spec: Apply) -> Any:
    """Return the PrimFunc of Apply."""
    return mapped(spec, ACTIVATIONS.get(spec.function, lambda vector: vector))


def mapped(spec: Scale | Apply, change: Callable[[Expr], Expr]) -> Any:
    """Return the PrimFunc out = change(x)."""

    def body(arguments: Arguments) -> None:
        x, out = arguments.buffer("x", "float32"), arguments.buffer("out", "float32")
        with groups(arguments, spec.width) as (row, column):
            for offset in HALVES:
                value = load(x, row * spec.x_stride + column + offset)
                store(out, row * spec.width + column + offset, change(value))

    return function(spec.symbol, spec.args, body)


def gather_rows(spec: GatherRows) -> Any:
    """Return the PrimFunc of GatherRows."""

    def body(arguments: Arguments) -> None:
        x, out = arguments.buffer("x", "float32"), arguments.buffer("out", "float32")
        indices = arguments.buffer("indices", "int32")
        with groups(arguments, spec.width) as (row, column):
            source = T.Bind(indices[row] * spec.x_stride + column)
            for offset in HALVES:
                store(out, row * spec.width + column + offset, load(x, source + offset))

    return function(spec.symbol, spec.args, body)


@contextmanager
def groups(arguments: Arguments, width: int) -> Iterator[tuple[Expr, Expr]]:
    """Loop over this thread's share of all groups of all rows, as (row, first column)."""
    count = width // GROUP
    with arguments.share(arguments.rows * count) as index:
        yield T.Bind(index // count), T.Bind(index % count * GROUP)
