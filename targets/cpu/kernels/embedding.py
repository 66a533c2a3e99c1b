"""Gather rows of an embedding table, also from the layouts of a projection that shares it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.quant_linear import GROUP, QuantLinear


@dataclass(frozen=True)
class Embedding:
    """y f32[rows, width] from a plain f32 table."""

    isa: Isa
    width: int
    args = ("w", "ids", "y")

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"embedding_{self.width}"

    def build(self) -> Any:
        """Return the PrimFunc."""
        return _gather(self.symbol, self.width, _plain(self.width))


@dataclass(frozen=True)
class LinearEmbedding:
    """y f32[rows, k] from the packed f32 projection `linear`."""

    linear: Linear
    args = ("w", "ids", "y")

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"embedding_of_{self.linear.symbol}"

    def build(self) -> Any:
        """Return the PrimFunc."""
        return _gather(self.symbol, self.linear.k, _panel(self.linear))


@dataclass(frozen=True)
class QuantEmbedding:
    """y f32[rows, k], dequantized from the packed quantized projection `linear`."""

    linear: QuantLinear
    args = ("w", "ids", "y")

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"embedding_of_{self.linear.symbol}"

    def build(self) -> Any:
        """Return the PrimFunc."""
        return _tile(self.linear)


def _gather(symbol: str, width: int, read: Any) -> Any:
    from tvm.tirx.script.builder import ir as T

    from tokc.targets.cpu.kernels.tir import Arguments, function

    def body(arguments: Arguments) -> None:
        ids, y = arguments.buffer("ids", "int32"), arguments.buffer("y", "float32")
        value = read(arguments)
        with arguments.share(arguments.rows) as row:
            token = T.Bind(ids[row])
            with T.serial(0, width) as column:
                T.buffer_store(y, value(token, column), [row * width + column])

    return function(symbol, Embedding.args, body)


def _plain(width: int) -> Any:
    from tvm.tirx.script.builder import ir as T

    def read(arguments: Any) -> Any:
        w = arguments.buffer("w", "float32")
        return lambda token, column: w[T.Cast("int64", token) * width + column]

    return read


def _panel(spec: Linear) -> Any:
    from tvm.tirx.script.builder import ir as T

    def read(arguments: Any) -> Any:
        w = arguments.buffer("w", "float32")

        def value(token: Any, column: Any) -> Any:
            place = T.Cast("int64", token // spec.panel) * (spec.k * spec.panel)
            return w[place + column * spec.panel + token % spec.panel]

        return value

    return read


def _tile(spec: QuantLinear) -> Any:
    """Build the gather from a packed projection: a token is one lane of a tile, decoded a group at a time."""
    from tvm.tirx.script.builder import ir as T

    from tokc.targets.cpu.kernels.quant_linear_codes import decoded
    from tokc.targets.cpu.kernels.quant_linear_tile import scale_of
    from tokc.targets.cpu.kernels.tir import Arguments, function

    lanes = spec.isa.lanes

    def body(arguments: Arguments) -> None:
        ids, y = arguments.buffer("ids", "int32"), arguments.buffer("y", "float32")
        w, half = arguments.buffer("w", "uint8"), arguments.buffer("w", "float16")
        narrow, units = arguments.buffer("w", "int8"), arguments.buffer("w", "float32")
        with arguments.share(arguments.rows) as row:
            token = T.Bind(ids[row])
            tile, lane = T.Bind(T.Cast("int64", token // lanes)), T.Bind(token % lanes)
            with T.serial(0, spec.groups) as group:
                at = T.Bind(tile * (spec.tile_bytes // 2) + scale_of(group, spec) * lanes + lane)
                if spec.narrow_scales:
                    unit = units[tile * (spec.tile_bytes // 4) + lane]
                    place = tile * spec.tile_bytes + spec.scales_at + scale_of(group, spec) * lanes + lane
                    scale = T.Bind(T.Cast("float32", narrow[place]) * unit)
                else:
                    scale = T.Bind(T.Cast("float32", half[at]))
                offset = None
                if not spec.symmetric:
                    offset = T.Bind(T.Cast("float32", half[at + spec.scale_bytes // 2]))
                first = T.Bind(tile * spec.tile_bytes + spec.quants_at + group * spec.vectors * 4 * lanes)
                with T.serial(0, 4) as inner:
                    byte = T.Bind(first + lane * 4 + inner)
                    load = partial(_byte, w, byte, 4 * lanes)
                    for quad, code in enumerate(decoded(load, spec.bits, T.uint8)):
                        signed = spec.bits == 8 and not spec.stored_zero
                        quant = T.Cast("int32", T.reinterpret("int8", code) if signed else code)
                        value = T.Cast("float32", quant - spec.stored_zero) * scale
                        value = value if offset is None else value + offset
                        T.buffer_store(y, value, [row * spec.k + group * GROUP + 4 * quad + inner])

    return function(f"embedding_of_{spec.symbol}", QuantEmbedding.args, body)


def _byte(w: Any, first: Any, stride: int, vector: int) -> Any:
    from tvm.tirx.script.builder import ir as T

    return T.Bind(w[first + vector * stride])
