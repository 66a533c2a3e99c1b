"""Put the weights of linear layers and embeddings on a low-bit grid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from tokc.errors import PassFailed
from tokc.ir.ops import make_node
from tokc.ir.program import Program
from tokc.ir.rewrite import drop, initializer, made_by
from tokc.passes.quantization.grid import NARROW, WIDE, Grid, NotFinite
from tokc.passes.quantization.methods import METHODS, Method, MethodName
from tokc.passes.quantization.pack import Packed, pack
from tokc.passes.quantization.stored import Stored, stored_weight
from tokc.passes.quantization.weights import replace_node, weight_readers

PLAIN = 32  # bits of a weight that is left alone
MAX_KL: Mapping[int, float] = {2: 16.0, 3: 4.0, 4: 1.0, WIDE: 0.1, PLAIN: 0.1}  # nats, by bits


@dataclass(frozen=True)
class QuantizeWeights:
    """Put linear weights on a grid of `bits`, and the embedding and the head on one of `head_bits`.

    Before: ``y = Linear(x, w, bias)``                     ``e = Gather(table, ids)``
    After:  ``y = QuantLinear(x, w.q, w.scale, , bias)``   ``e = QuantEmbedding(ids, table.q, table.scale)``

    A weight that was stored on a grid (a BlockDequantize in the program) keeps its codes bit by bit, whatever
    its width, and its scales in fp16; one on a grid that no kernel has (groups of 16, codes of 5 bits) goes
    to 8 bits. `requantize=true` puts those that are wider than asked on the narrower grid. A table that is
    the embedding and the head at once is stored once. `head_bits=32` leaves a plain embedding and head alone.
    `act_group` activation columns share a scale; 0 leaves the activations in f32.

    A weight is quantized when its codes are first read, so that no more than one is held in f32.
    Saves about ``(32 - bits - 16 / group) / 8`` bytes a weight and decoded token.
    Lossy: weights are rounded, activations too unless ``act_group=0``; with it, kept grids are exact.
    """

    name: ClassVar[str] = "quantize-weights"
    exact: ClassVar[bool] = False

    bits: Literal[2, 3, 4, 8] = 4
    group: int = 32
    method: MethodName = "rtn"
    symmetric: bool = True
    head_bits: Literal[2, 3, 4, 8, 32] = 8
    act_group: int = 32
    requantize: bool = False

    def __post_init__(self) -> None:
        """Refuse options that make no grid."""
        self._grid(self.bits)
        if self.act_group < 0:
            raise ValueError(f"act_group is 0 or a number of columns, not {self.act_group}")

    @property
    def max_kl(self) -> float:
        """Return the mean KL in nats that rounding may cost; more means that something else went wrong."""
        return MAX_KL[min(self.bits, self.head_bits)]

    def run(self, program: Program) -> Program:
        copy = program.copy()
        readers = weight_readers(copy.graph)
        quantized = False
        for value, nodes in readers.items():
            head = any(node.op_type == "Gather" or node.outputs[0].is_graph_output() for node in nodes)
            weight = self._weight(value, head=head)
            if weight is None:
                continue
            for node in nodes:
                replace_node(node, self._node(node, weight))
            drop(copy.graph, value)
            for made in weight.values():
                if not made.is_initializer():
                    copy.graph.register_initializer(made)
            quantized = True
        return copy if quantized else program

    def _grid(self, bits: int) -> Grid:
        return Grid(bits=bits, group=self.group, symmetric=self.symmetric or bits == WIDE)

    def _weight(self, value: ir.Value, *, head: bool) -> "_Weight | None":
        """Return the weight on its grid, or None where it stays as it is."""
        bits: int = self.head_bits if head else self.bits
        stored = stored_weight(value)
        if stored is not None:
            kept = stored.grid(self.group)
            if kept is not None and not (self.requantize and kept.bits > bits):
                return _kept(value, stored, kept)
            bits = WIDE if bits == PLAIN or not self.requantize else bits
        elif bits == PLAIN or value.const_value is None:
            return None
        grid = self._grid(bits)
        packed = _Deferred(value, stored, METHODS[self.method], grid).tensors()
        offset = None if packed.offset is None else _made(packed.offset)
        return _Weight(_made(packed.codes), _made(packed.scale), offset, grid)

    def _node(self, node: ir.Node, weight: "_Weight") -> ir.Node:
        """Return the quantized counterpart of `node`."""
        attributes = {"zero_point": weight.grid.zero_point, "block_size": weight.grid.group}
        if weight.grid.bits < NARROW:
            attributes["bits"] = weight.grid.bits
        operands = [weight.codes, weight.scale, weight.offset]
        if node.op_type == "Gather":
            return make_node("QuantEmbedding", [node.inputs[1], *operands], attributes)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        attributes["act_group"] = self.act_group
        return make_node("QuantLinear", [node.inputs[0], *operands, bias], attributes)


@dataclass(frozen=True)
class _Weight:
    """Hold the values of a weight that lies on a grid."""

    codes: ir.Value
    scale: ir.Value
    offset: ir.Value | None
    grid: Grid

    def values(self) -> tuple[ir.Value, ...]:
        """Return the values that exist."""
        return tuple(one for one in (self.codes, self.scale, self.offset) if one is not None)


class _Deferred:
    """Quantize one weight when it is first read, and keep only what was made of it."""

    def __init__(self, value: ir.Value, stored: Stored | None, method: Method, grid: Grid) -> None:
        self.name, self.method, self.grid = str(value.name), method, grid
        self.source: ir.TensorProtocol | Stored | None = stored or _tensor(value)
        shape = (_tensor(value) if stored is None else stored.tensors.codes).shape.numpy()
        self.rows, self.columns = shape
        self.packed: Packed | None = None
        self.lock = Lock()

    def tensors(self) -> Packed:
        """Return tensors whose data is made on demand."""
        rows, groups = self.rows, self.grid.groups(self.columns)
        codes = ir.DataType.UINT4 if self.grid.bits <= NARROW else ir.DataType.INT8
        half = ir.DataType.FLOAT16
        return Packed(
            self._lazy("q", codes, [rows, self.columns], lambda: self._result().codes),
            self._lazy("scale", half, [rows, groups], lambda: self._result().scale),
            None if self.grid.symmetric else self._lazy("offset", half, [rows, groups], self._offset),
        )

    def _lazy(
        self, part: str, dtype: ir.DataType, shape: list[int], make: Callable[[], ir.TensorProtocol]
    ) -> ir.LazyTensor:
        return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=f"{self.name}.{part}")

    def _offset(self) -> ir.TensorProtocol:
        offset = self._result().offset
        assert offset is not None, "an asymmetric grid has an offset"
        return offset

    def _result(self) -> Packed:
        with self.lock:
            if self.packed is None:
                self.packed = self._quantize()
                self.source = None
            return self.packed

    def _quantize(self) -> Packed:
        source = self.source
        assert source is not None, "the source is there until it was quantized"
        if isinstance(source, Stored):
            w = source.dequantized()
        else:
            w = np.asarray(source.numpy(), dtype=np.float32)
        try:
            return pack(self.name, self.method.quantize(w, self.grid))
        except NotFinite as error:
            where, hint = f"weight '{self.name}'", "the model's file is damaged"
            raise PassFailed(str(error), where=where, hint=hint) from error


def _kept(value: ir.Value, stored: Stored, grid: Grid) -> _Weight:
    """Return a stored weight as it is, or with its scales in fp16."""
    narrowed = stored.narrowed(str(value.name))
    if narrowed is not None:
        offset = None if narrowed.offset is None else _made(narrowed.offset)
        return _Weight(_made(narrowed.codes), _made(narrowed.scale), offset, grid)
    node = made_by(value, "BlockDequantize", "tokc")
    assert node is not None, "a stored weight is made by a node"
    codes, scale, *rest = node.inputs
    assert codes is not None, "BlockDequantize lacks its codes"
    assert scale is not None, "BlockDequantize lacks its scale"
    return _Weight(codes, scale, rest[0] if rest else None, grid)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, f"'{value.name}' is no constant"
    return value.const_value


def _made(tensor: ir.TensorProtocol) -> ir.Value:
    return initializer(tensor, str(tensor.name))
