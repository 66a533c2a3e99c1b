"""Put the weights of linear layers in a float format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from tokc.ir.formats import NIBBLES, FloatFormat
from tokc.ir.ops import make_node
from tokc.ir.program import Program
from tokc.ir.rewrite import drop, initializer
from tokc.passes.quantization.float_grid import (
    SCALES,
    FloatCodes,
    FloatGrid,
    RoundingMethod,
    ScaleShape,
    float_grid,
)
from tokc.passes.quantization.pack import codes_tensor
from tokc.passes.quantization.stored import in_f32, source_of
from tokc.passes.quantization.weights import Once, is_head, replace_node, require_finite, weight_readers

MAX_KL: Mapping[FloatFormat, float] = {"e4m3": 0.1, "e5m2": 0.4, "mxfp4": 2.0, "nvfp4": 1.0}  # nats
CODES: Mapping[FloatFormat, ir.DataType] = {
    "e4m3": ir.DataType.FLOAT8E4M3FN,
    "e5m2": ir.DataType.FLOAT8E5M2,
    "mxfp4": ir.DataType.UINT4,
    "nvfp4": ir.DataType.UINT4,
}


@dataclass(frozen=True)
class CastWeights:
    """Put linear weights in 8-bit floats, MXFP4 or NVFP4; `head=true` the embedding and the head as well.

    Before: ``y = Linear(x, w, bias)``
    After:  ``y = QuantLinear{format=.. act_group=0}(x, w.q, w.scale, , bias, w.tensor_scale)``

    `scales` of the 8-bit formats are one a ``tensor``, one a ``channel`` (a row, what ``auto`` takes) or one
    a ``block`` of 128 by 128; mxfp4 has its own blocks of 32 columns and nvfp4 of 16. `method=rtn-mse` tries
    several scales for each of these. A weight that was stored on a grid stays there unless `requantize=true`.
    `activations=e4m3` rounds what a Linear in e4m3 reads as well, one scale a row and token, as Transformer
    Engine does. Weights are cast when they are read.

    Saves 24 bits a weight with e4m3 and e5m2, 27.75 with mxfp4, 27.5 with nvfp4.
    Lossy: weights are rounded, and activations if so asked.
    """

    name: ClassVar[str] = "cast-weights"
    exact: ClassVar[bool] = False

    format: FloatFormat = "mxfp4"
    scales: ScaleShape = "auto"
    method: RoundingMethod = "rtn"
    activations: Literal["f32", "e4m3"] = "f32"
    head: bool = False
    requantize: bool = False

    def __post_init__(self) -> None:
        """Refuse scales that the format does not have."""
        float_grid(self.format, self.scales, self.method, (1, 1))
        if self.activations != "f32" and (self.format != "e4m3" or self.scales not in {"auto", "channel"}):
            raise ValueError("activations in e4m3 go with weights in e4m3, a scale a channel")

    @property
    def max_kl(self) -> float:
        """Return the mean KL in nats that rounding may cost; more means that something else went wrong."""
        return MAX_KL[self.format]

    def run(self, program: Program) -> Program:
        copy = program.copy()
        changed = False
        for value, nodes in weight_readers(copy.graph).items():
            stored = value.const_value is None
            if (is_head(nodes) and not self.head) or (stored and not self.requantize):
                continue
            assert value.shape is not None, f"'{value.name}' has no shape"
            rows, columns = (int(size) for size in value.shape.numpy())
            grid = float_grid(self.format, self.scales, self.method, (rows, columns))
            made = _values(value, grid, rows, columns)
            for node in nodes:
                replace_node(node, self._node(node, made, grid))
            drop(copy.graph, value)
            for one in made.values():
                copy.graph.register_initializer(one)
            changed = True
        return copy if changed else program

    def _node(self, node: ir.Node, made: Mapping[str, ir.Value], grid: FloatGrid) -> ir.Node:
        """Return the counterpart of `node` that reads the weight in its format."""
        attributes: dict[str, int | float | str] = {"format": grid.format, "block_size": grid.block_size}
        if grid.block_rows > 1:
            attributes["block_rows"] = grid.block_rows
        operands, whole = [made["q"], made["scale"], None], made.get("tensor_scale")
        if node.op_type == "Gather":
            return make_node("QuantEmbedding", [node.inputs[1], *operands, whole], attributes)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        attributes["act_group"] = 0
        if self.activations != "f32":
            attributes["act_format"] = self.activations
        return make_node("QuantLinear", [node.inputs[0], *operands, bias, whole], attributes)


def _values(value: ir.Value, grid: FloatGrid, rows: int, columns: int) -> dict[str, ir.Value]:
    """Return the parts of a weight in the format, made when the first of them is read."""
    cast = Once(_cast(value, grid))
    parts: dict[str, tuple[ir.DataType, tuple[int, ...], Callable[[FloatCodes], Any]]] = {
        "q": (CODES[grid.format], (rows, columns), lambda found: found.codes),
        "scale": (
            ir.DataType.from_numpy(np.dtype(SCALES[grid.format])),
            grid.scale_shape(rows, columns),
            lambda found: found.scale,
        ),
    }
    if grid.format == "nvfp4":
        parts["tensor_scale"] = (ir.DataType.FLOAT, (1,), lambda found: found.tensor_scale)
    made = {}
    for part, (dtype, shape, pick) in parts.items():
        name = f"{value.name}.{part}"
        packed = part == "q" and grid.format in NIBBLES

        def load(pick: Callable[[FloatCodes], Any] = pick, name: str = name, *, packed: bool = packed) -> Any:
            array = pick(cast())
            return codes_tensor(name, array) if packed else ir.Tensor(array, name=name)

        made[part] = initializer(ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=name), name)
    return made


def _cast(value: ir.Value, grid: FloatGrid) -> Callable[[], FloatCodes]:
    source, name = source_of(value), str(value.name)
    assert source is not None, f"'{name}' is no constant"

    def cast() -> FloatCodes:
        w = in_f32(source)
        with require_finite(name):
            return grid.quantize(w)

    return cast
