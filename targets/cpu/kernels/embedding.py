"""Gather rows of an embedding table, also from the layouts of a projection that shares it."""

from dataclasses import dataclass
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
        return _gather(self.symbol, self.linear.k, _tile(self.linear))


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
    from tvm.tirx.script.builder import ir as T

    lanes = spec.isa.lanes

    def read(arguments: Any) -> Any:
        w, half = arguments.buffer("w", "uint8"), arguments.buffer("w", "float16")

        def value(token: Any, column: Any) -> Any:
            tile, lane = T.Cast("int64", token // lanes), token % lanes
            group, inner = column // GROUP, column % GROUP
            scales = tile * (spec.tile_bytes // 2) + group * lanes + lane
            quants = tile * spec.tile_bytes + spec.quants_at + group * (spec.vectors * 4 * lanes)
            if spec.bits == 4:
                byte = w[quants + (inner // 8 * lanes + lane) * 4 + inner % 4]
                high = inner // 4 % 2 == 1
                quant = T.Cast("int32", T.Select(high, byte >> T.uint8(4), byte & T.uint8(15)))
            else:
                byte = w[quants + (inner // 4 * lanes + lane) * 4 + inner % 4]
                quant = T.Cast("int32", byte if spec.stored_zero else T.reinterpret("int8", byte))
            result = T.Cast("float32", quant - spec.stored_zero) * T.Cast("float32", half[scales])
            if not spec.symmetric:
                result = result + T.Cast("float32", half[scales + spec.scale_bytes // 2])
            return result

        return value

    return read
