"""Packs a program's weights into the layouts that the CPU kernels read, one tensor at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.artifact.writer import Tensor
from tokc.errors import TargetRefused
from tokc.ir.rewrite import parts_of
from tokc.targets.constants import array, dense, grid_of, name_of, quants, shape_of
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.embedding import Embedding, LinearEmbedding, QuantEmbedding
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.moe_linear import MoeLinear
from tokc.targets.cpu.kernels.quant_linear import GROUP, QuantLinear
from tokc.targets.cpu.packing import pack_linear, pack_quant, packed_bytes
from tokc.targets.nodes import integer, required

Array = npt.NDArray[Any]
ROW_ALIGNMENT = 32
LACKS = "the CPU target has no kernel for"
GRIDS = "it runs int2, int3 and int4 (symmetric around the middle, or with an offset) and symmetric int8"
WIDTHS = (2, 3, 4, 8)


class Weights:
    """How the weights of one program are packed for an instruction set."""

    def __init__(self, isa: Isa) -> None:
        """Pack for `isa`."""
        self._isa = isa

    def vector(self, value: ir.Value) -> Tensor:
        """Return a small f32 tensor as it is: norm weights, rope tables, biases."""
        shape = shape_of(value)
        return Tensor(value.name or "", "f32", shape, 4 * int(np.prod(shape)), lambda: dense(value))

    def linear(self, node: ir.Node, x_stride: int) -> tuple[Tensor, Tensor | None, Linear]:
        """Return weight, bias and kernel of a Linear."""
        value = required(node.inputs[1])
        rows, columns = matrix_shape(value)
        bias = self._bias(node, 2)
        kernel = Linear(self._isa, rows, columns, bias is not None, x_stride, padded(rows))
        return self._packed_linear(value, kernel), bias, kernel

    def quant_linear(self, node: ir.Node) -> tuple[Tensor, Tensor | None, QuantLinear]:
        """Return weight, bias and kernel of a QuantLinear."""
        rows, columns = matrix_shape(required(node.inputs[1]))
        bias = self._bias(node, 4)
        kernel = self._kernel(node, rows, columns, bias=bias is not None)
        return self._packed_quant(node, kernel), bias, kernel

    def moe_linear(self, node: ir.Node, x_stride: int) -> tuple[Tensor, MoeLinear]:
        """Return the weights of all experts, one after the other, and the kernel of such a layer."""
        value, experts = required(node.inputs[1]), integer(node, "experts", 1)
        rows, columns = matrix_shape(value)
        n = rows // experts
        if node.op_type == "MoeLinear":
            plain = Linear(self._isa, n, columns, bias=False, x_stride=x_stride, y_stride=padded(n))
            return self._packed_experts(value, MoeLinear(plain, experts), lambda: _packed_plain(value, plain))
        linear = self._kernel(node, n, columns, bias=False)
        kernel = MoeLinear(linear, experts)
        return self._packed_experts(value, kernel, lambda: _packed_grids(node, linear, experts))

    def _packed_experts(
        self, value: ir.Value, kernel: MoeLinear, packed: Callable[[], Iterable[Array]]
    ) -> tuple[Tensor, MoeLinear]:
        size = kernel.experts * kernel.expert_bytes

        def load() -> Array:
            whole = np.empty((kernel.experts, kernel.expert_bytes), np.uint8)
            for place, part in zip(whole, packed(), strict=True):
                place[:] = part.view(np.uint8)
            return whole.reshape(-1)

        return Tensor(name_of(value), "u8", (size,), size, load), kernel

    def embedding(self, table: ir.Value) -> tuple[Tensor, Embedding | LinearEmbedding]:
        """Return the table and its kernel; a tied table is read from the projection's layout."""
        rows, columns = matrix_shape(table)
        tied = [use for use, index in table.uses() if use.op_type == "Linear" and index == 1]
        if tied:
            linear = Linear(self._isa, rows, columns, bias=False, x_stride=columns, y_stride=padded(rows))
            return self._packed_linear(table, linear), LinearEmbedding(linear)
        tensor = Tensor(name_of(table), "f32", (rows, columns), 4 * rows * columns, lambda: dense(table))
        return tensor, Embedding(self._isa, columns)

    def quant_embedding(self, node: ir.Node) -> tuple[Tensor, QuantEmbedding]:
        """Return the table, in the projection's layout, and its kernel."""
        rows, columns = matrix_shape(required(node.inputs[1]))
        linear = self._kernel(node, rows, columns, bias=False)
        return self._packed_quant(node, linear), QuantEmbedding(linear)

    def _kernel(self, node: ir.Node, rows: int, columns: int, *, bias: bool) -> QuantLinear:
        bits, symmetric = grid_of(node, lacks=LACKS, hint=GRIDS, widths=WIDTHS)
        block = integer(node, "block_size", GROUP)
        if block % GROUP:
            raise TargetRefused(
                f"{LACKS} weights with a scale every {block} columns",
                where=f"node '{node.name}'",
                hint=f"it takes groups of multiples of {GROUP}",
            )
        scale_bits = integer(node, "scale_bits", 16)
        return QuantLinear(self._isa, rows, columns, bits, symmetric, bias, padded(rows), block, scale_bits)

    def _bias(self, node: ir.Node, index: int) -> Tensor | None:
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            return None
        (rows,) = shape_of(value)

        def load() -> Array:
            return np.pad(dense(value), (0, padded(rows) - rows))

        return Tensor(f"{value.name}.padded", "f32", (padded(rows),), 4 * padded(rows), load)

    def _packed_linear(self, value: ir.Value, kernel: Linear) -> Tensor:
        size = packed_bytes(kernel)
        return Tensor(name_of(value), "u8", (size,), size, lambda: pack_linear(dense(value), kernel))

    def _packed_quant(self, node: ir.Node, kernel: QuantLinear) -> Tensor:
        q, scale = required(node.inputs[1]), required(node.inputs[2])
        offset = node.inputs[3] if len(node.inputs) > 3 else None
        size = packed_bytes(kernel)

        def load() -> Array:
            shift = None if offset is None else array(offset)
            return pack_quant(quants(q), array(scale), shift, kernel)

        return Tensor(name_of(q), "u8", (size,), size, load)


def _packed_plain(value: ir.Value, kernel: Linear) -> Iterator[Array]:
    """Yield the packed f32 weight of each expert; one at a time is read where they can be told apart."""
    tensor = value.const_value
    parts = (dense(value),) if tensor is None else (part.numpy() for part in parts_of(tensor))
    for part in parts:
        for w in np.split(part, len(part) // kernel.n):
            yield pack_linear(w, kernel)


def _packed_grids(node: ir.Node, kernel: QuantLinear, experts: int) -> Iterator[Array]:
    """Yield the packed weight of each expert."""
    offset = node.inputs[3]
    codes, scales = quants(required(node.inputs[1])), array(required(node.inputs[2]))
    shifts = [None] * experts if offset is None else np.split(array(offset), experts)
    for q, scale, shift in zip(np.split(codes, experts), np.split(scales, experts), shifts, strict=True):
        yield pack_quant(q, scale, shift, kernel)


def padded(rows: int) -> int:
    """Return the row stride of a projection's result."""
    return -(-rows // ROW_ALIGNMENT) * ROW_ALIGNMENT


def matrix_shape(value: ir.Value) -> tuple[int, int]:
    """Return a projection's shape.

    Raises: TargetRefused if its columns do not fill groups.
    """
    rows, columns = shape_of(value)
    if columns % GROUP:
        raise TargetRefused(
            f"weight '{value.name}' has {columns} columns; the CPU target takes multiples of {GROUP}",
            hint="pad the model's hidden and intermediate sizes",
        )
    return rows, columns
