"""Shape rules of the `tokc` ops: from a node to the types and shapes of its outputs. Symbols are kept."""

from collections.abc import Callable, Sequence

import onnx_ir as ir

Dim = int | ir.SymbolicDim
Typed = tuple[ir.DataType, ir.Shape | None]
ShapeRule = Callable[[ir.Node], list[Typed]]

F32, BOOL = ir.DataType.FLOAT, ir.DataType.BOOL


def causal_mask_shape(node: ir.Node) -> list[Typed]:
    """Return bool [batch, 1, seq, total]."""
    ids, key = dims(node, 0), dims(node, 1)
    return [(BOOL, shape_of(ids and key and [ids[0], 1, ids[1], key[2]]))]


def block_dequantize_shape(node: ir.Node) -> list[Typed]:
    """Return f32 [N, K]."""
    return [(F32, shape_of(dims(node, 0)))]


def linear_shape(node: ir.Node) -> list[Typed]:
    """Return f32 [.., N] of x [.., K] and a weight [N, K]."""
    x, weight = dims(node, 0), dims(node, 1)
    return [(F32, shape_of(x and weight and [*x[:-1], weight[0]]))]


def embedding_shape(node: ir.Node) -> list[Typed]:
    """Return f32 [.., K] of ids [..] and codes [N, K]."""
    ids, codes = dims(node, 0), dims(node, 1)
    return [(F32, shape_of(None if ids is None or codes is None else [*ids, codes[1]]))]


def add_rms_norm_shape(node: ir.Node) -> list[Typed]:
    """Return the shape of x, twice."""
    return [(F32, shape_of(dims(node, 0)))] * 2


def gated_activation_shape(node: ir.Node) -> list[Typed]:
    """Return f32 [.., I] of [.., 2 * I]."""
    x = dims(node, 0)
    if x is None or not isinstance(x[-1], int):
        return [(F32, None)]
    return [(F32, shape_of([*x[:-1], x[-1] // 2]))]


def rope_write_kv_shape(node: ir.Node) -> list[Typed]:
    """Return f32 [tokens, heads * dim] and the cache as it came."""
    caches = [value for value in node.inputs[8:12] if value is not None]
    return [
        (F32, shape_of(dims(node, 0))),
        *((cache.dtype or F32, cache.shape) for cache in caches),
    ]


def paged_attention_shape(node: ir.Node) -> list[Typed]:
    """Return the shape of the queries."""
    return [(F32, shape_of(dims(node, 0)))]


def dims(node: ir.Node, index: int) -> list[Dim] | None:
    """Return the dimensions of an input, None if they are not known."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.shape is None else list(value.shape)


def shape_of(dims: Sequence[Dim] | None) -> ir.Shape | None:
    """Return the shape of such dimensions, None where there are none."""
    return ir.Shape(dims) if dims else None
