"""Reads the constant weights of a program, plain or on a grid."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.errors import TargetRefused
from tokc.targets.nodes import integer, required, text

Array = npt.NDArray[Any]
NEAREST: Mapping[str, str] = dict.fromkeys(("mxfp4", "nvfp4"), "int4 group 32, int8")  # to float formats


def name_of(value: ir.Value) -> str:
    """Return the weight's name in the artifact, the same for a packed and a plain weight."""
    producer = value.producer()
    source = required(producer.inputs[0]) if producer is not None else value
    return (source.name or "").removesuffix(".q")


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Return a weight's shape."""
    producer = value.producer()
    source = required(producer.inputs[0]) if producer is not None else value
    if source.const_value is None:
        raise TargetRefused("a target needs constant weights", where=f"value '{value.name}'")
    return tuple(int(extent) for extent in source.const_value.shape.numpy())


def array(value: ir.Value) -> Array:
    """Return an initializer's values."""
    if value.const_value is None:
        raise AssertionError(f"'{value.name}' is not a constant")
    return value.const_value.numpy()


def quants(value: ir.Value) -> Array:
    """Return quants one a byte."""
    values = array(value)
    return values.astype(np.int8 if value.dtype == ir.DataType.INT8 else np.uint8)


def grid_of(node: ir.Node, *, lacks: str, hint: str, widths: tuple[int, ...] = (4, 8)) -> tuple[int, bool]:
    """Return (bits, symmetric) of a quantized op's weight; the target's kernels decode `widths`.

    Raises: TargetRefused for a grid that no kernel decodes; it begins with `lacks`.
    """
    refuse_format(node, lacks=lacks)
    dtype, zero_point = required(node.inputs[1]).dtype, integer(node, "zero_point")
    offset = len(node.inputs) > 3 and node.inputs[3] is not None
    stated = integer(node, "bits")
    if dtype == ir.DataType.UINT4 and (stated or 4) in widths:
        bits = stated or 4
        if (zero_point, offset) in {(1 << bits - 1, False), (0, True)}:
            return bits, not offset
    if dtype == ir.DataType.INT8 and zero_point == 0 and not offset:
        return 8, True
    raise TargetRefused(
        f"{lacks} weights of {dtype}"
        + (f", {stated} bits of each" if stated else "")
        + f", zero_point {zero_point}"
        + (" and an offset" if offset else ""),
        where=f"node '{node.name}'",
        hint=hint,
    )


def refuse_format(node: ir.Node, *, lacks: str, runs: frozenset[str] = frozenset()) -> None:
    """Refuse a node whose weight is in a float format that is none of `runs`; `lacks` begins the error.

    Raises: TargetRefused.
    """
    weight_format = text(node, "format", "") if node.domain == "tokc" else ""
    if weight_format and weight_format not in runs:
        raise TargetRefused(
            f"{lacks} weights in '{weight_format}'; nearest are {NEAREST.get(weight_format, 'int8')}",
            where=f"node '{node.name}'",
            hint="use quantize-weights in place of cast-weights",
        )


def dense(value: ir.Value) -> Array:
    """Return a weight as f32, dequantizing it if it lies on a grid."""
    producer = value.producer()
    if producer is None:
        return np.ascontiguousarray(array(value), np.float32)
    q, scale, *rest = producer.inputs
    block = producer.attributes["block_size"].as_int() if "block_size" in producer.attributes else 32
    zero = producer.attributes["zero_point"].as_int() if "zero_point" in producer.attributes else 0
    values = quants(required(q)).astype(np.float32) - np.float32(zero)
    columns = values.shape[1]
    values *= spread(array(required(scale)), block, columns)
    if rest and rest[0] is not None:
        values += spread(array(rest[0]), block, columns)
    return values


def spread(per_block: Array, block: int, columns: int) -> Array:
    """Repeat one value a block over the block's columns; the last block may be short."""
    return np.repeat(per_block.astype(np.float32), block, axis=1)[:, :columns]
