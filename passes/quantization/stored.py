"""Weights that a model came with on a grid, and what becomes of them where no kernel computes on it.

Codes are kept bit by bit wherever kernels have the grid. Two things they cannot hold are rounded, each by far
less than a step: scales and offsets wider than fp16 (products of narrow floats, as in GGUF's K types, and
zero points of GPTQ and AWQ), and the code -128, which instruction sets without an unsigned product lack.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.ir.rewrite import made_by
from tokc.passes.quantization.grid import F32, FP16_MAX, Grid
from tokc.passes.quantization.pack import Packed, grid_of

GROUP = 32  # columns that every kernel's groups are a multiple of
Values = npt.NDArray[Any]
LEAST = np.int8(-127)


@dataclass(frozen=True)
class Stored:
    """Hold a stored weight ``(q - zero_point) * scale (+ offset)``: q [out, in], a scale a `block_size`.

    `bits` is the width of a code, 0 where it is that of its type.
    """

    tensors: Packed
    zero_point: int
    block_size: int
    bits: int = 0

    def grid(self, group: int) -> Grid | None:
        """Return the grid if kernels compute on it: groups of `group`, as asked for, or a multiple of 32."""
        if self.block_size % GROUP and self.block_size != group:
            return None
        return grid_of(self.tensors, zero_point=self.zero_point, block_size=self.block_size, bits=self.bits)

    def dequantized(self) -> F32:
        """Return the weight in f32, rounded once a step as BlockDequantize does."""
        w = self.tensors.codes.numpy().astype(np.float32)
        w -= np.float32(self.zero_point)
        w *= self._spread(self.tensors.scale, w.shape[1])
        if self.tensors.offset is not None:
            w += self._spread(self.tensors.offset, w.shape[1])
        return w

    def narrowed(self, name: str) -> Packed | None:
        """Return the weight with fp16 scales and without the code -128; None if it is so already."""
        if self.tensors.scale.dtype == ir.DataType.FLOAT16:
            return None
        codes, offset = self.tensors.codes, self.tensors.offset
        least = _without_least if codes.dtype == ir.DataType.INT8 else _same
        return Packed(
            _mapped(codes, f"{name}.q", codes.dtype, least),
            _mapped(self.tensors.scale, f"{name}.scale", ir.DataType.FLOAT16, _half),
            None if offset is None else _mapped(offset, f"{name}.offset", ir.DataType.FLOAT16, _half),
        )

    def _spread(self, per_block: ir.TensorProtocol, columns: int) -> F32:
        values = per_block.numpy().astype(np.float32)
        spread: F32 = np.repeat(values, self.block_size, axis=1)[:, :columns]
        return spread


def stored_weight(value: ir.Value) -> Stored | None:
    """Return a weight that the model came with on a grid, None if `value` is no such weight."""
    node = made_by(value, "BlockDequantize", "tokc")
    if node is None:
        return None
    codes, scale, *rest = [None if operand is None else operand.const_value for operand in node.inputs]
    assert codes is not None, "BlockDequantize lacks its codes"
    assert scale is not None, "BlockDequantize lacks its scale"
    assert not node.attributes.get_string("format", ""), "a weight that is stored in a float format"
    return Stored(
        Packed(codes, scale, rest[0] if rest else None),
        zero_point=node.attributes.get_int("zero_point", 0),
        block_size=node.attributes.get_int("block_size", 32),
        bits=node.attributes.get_int("bits", 0),
    )


def _same(codes: Values) -> Values:
    return codes


def _without_least(codes: Values) -> Values:
    return np.maximum(codes, LEAST)


def _half(values: Values) -> Values:
    return np.clip(values, -FP16_MAX, FP16_MAX).astype(np.float16)


def _mapped(
    tensor: ir.TensorProtocol, name: str, dtype: ir.DataType, change: Callable[[Values], Values]
) -> ir.LazyTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(
        lambda: ir.Tensor(change(tensor.numpy()), dtype=dtype, name=name), dtype=dtype, shape=shape, name=name
    )


def source_of(value: ir.Value) -> Stored | ir.TensorProtocol | None:
    """Return what a weight is read from, None if it is computed."""
    return stored_weight(value) or value.const_value


def in_f32(source: Stored | ir.TensorProtocol) -> F32:
    """Return a weight in f32."""
    return source.dequantized() if isinstance(source, Stored) else np.asarray(source.numpy(), np.float32)
