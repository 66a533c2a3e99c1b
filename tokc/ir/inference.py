"""Types and shapes of the values in between, by a rule for every op that occurs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from tokc.ir.ops import op_of
from tokc.ir.shapes import Typed

Dims = list[int | ir.SymbolicDim]
Rule = Callable[[ir.Node], Sequence[Typed] | None]

F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64


def annotate_shapes(graph: ir.Graph) -> None:
    """Give every value whose type and shape can be told both; what is known already stays."""
    for node in graph:
        op = op_of(node)
        rule = RULES.get(node.op_type) if op is None and node.domain == "" else None
        found = op.shape(node) if op is not None else None if rule is None else rule(node)
        for value, (dtype, shape) in zip(node.outputs, found or (), strict=False):
            if value.type is None and dtype != ir.DataType.UNDEFINED:
                value.type = ir.TensorType(dtype)
            if value.shape is None:
                value.shape = shape


def _same(node: ir.Node) -> list[Typed]:
    return [(_dtype(node, 0), _shape(_dims(node, 0)))] * len(node.outputs)


def _constant(node: ir.Node) -> list[Typed] | None:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    return None if tensor is None else [(tensor.dtype, ir.Shape([int(dim) for dim in tensor.shape.numpy()]))]


def _broadcast(node: ir.Node) -> list[Typed]:
    first = 1 if node.op_type == "Where" else 0
    shape: Dims | None = []
    for index in range(len(node.inputs)):
        dims = _dims(node, index)
        shape = None if shape is None or dims is None else _joined(shape, dims)
    return [(_dtype(node, first), _shape(shape))]


def _joined(left: Dims, right: Dims) -> Dims | None:
    """Broadcast two shapes; None if two symbols that are not the same meet."""
    width = max(len(left), len(right))
    joined: Dims = []
    ones: Dims = [1] * width
    padded_left, padded_right = (ones[len(dims) :] + dims for dims in (left, right))
    for one, other in zip(padded_left, padded_right, strict=True):
        if other in (one, 1):
            joined.append(one)
        elif one == 1 or isinstance(other, int):
            joined.append(other)
        elif isinstance(one, int):
            joined.append(one)
        else:
            return None
    return joined


def _matmul(node: ir.Node) -> list[Typed]:
    left, right = _dims(node, 0), _dims(node, 1)
    if left is None or right is None or len(right) < 2:
        return [(F32, None)]
    return [(F32, ir.Shape([*left[:-1], right[-1]]))]


def _transpose(node: ir.Node) -> list[Typed]:
    dims = _dims(node, 0)
    perm = node.attributes.get_ints("perm", range(len(dims or ()))[::-1])
    return [(_dtype(node, 0), None if dims is None else ir.Shape([dims[axis] for axis in perm]))]


def _reshape(node: ir.Node) -> list[Typed]:
    dims, target = _dims(node, 0), _numbers(node, 1)
    if (
        dims is None
        or target is None
        or any(size == 0 and axis >= len(dims) for axis, size in enumerate(target))
    ):
        return [(_dtype(node, 0), None)]
    shape: Dims = [dims[axis] if size == 0 else size for axis, size in enumerate(target)]
    if -1 in target:
        rest, inferred = list(dims), [dim for dim in shape if dim != -1]
        for dim in inferred:
            if dim in rest:
                rest.remove(dim)
        sizes = [dim for dim in rest if isinstance(dim, int)]
        known = [dim for dim in inferred if isinstance(dim, int) and dim not in dims]
        shape[target.index(-1)] = _left_over(rest, sizes, known)
    return [(_dtype(node, 0), ir.Shape(shape))]


def _left_over(rest: Dims, sizes: list[int], known: list[int]) -> int | ir.SymbolicDim:
    """Return the dimension that -1 stands for: what is left of the input's."""
    symbols = [dim for dim in rest if not isinstance(dim, int)]
    total, taken = int(np.prod(sizes, dtype=np.int64)), int(np.prod(known, dtype=np.int64))
    if not symbols and total % taken == 0:
        return total // taken
    if len(symbols) == 1 and total == taken:
        return symbols[0]
    return ir.SymbolicDim(None)


def _concat(node: ir.Node) -> list[Typed]:
    every = [_dims(node, index) for index in range(len(node.inputs))]
    known = [dims for dims in every if dims is not None]
    axis = node.attributes.get_int("axis", 0)
    if len(known) != len(every):
        return [(_dtype(node, 0), None)]
    sizes = [dims[axis] for dims in known]
    shape = list(known[0])
    numbers = [size for size in sizes if isinstance(size, int)]
    shape[axis] = sum(numbers) if len(numbers) == len(sizes) else ir.SymbolicDim("total")
    return [(_dtype(node, 0), ir.Shape(shape))]


def _gather(node: ir.Node) -> list[Typed]:
    table, ids = _dims(node, 0), _dims(node, 1)
    if table is None or ids is None:
        return [(_dtype(node, 0), None)]
    axis = node.attributes.get_int("axis", 0) % len(table)
    return [(_dtype(node, 0), ir.Shape([*table[:axis], *ids, *table[axis + 1 :]]))]


def _split(node: ir.Node) -> list[Typed]:
    dims, lengths = _dims(node, 0), _numbers(node, 1)
    if dims is None:
        return [(_dtype(node, 0), None)] * len(node.outputs)
    axis = node.attributes.get_int("axis", 0) % len(dims)
    size = dims[axis]
    if lengths is None and isinstance(size, int):
        part = -(-size // len(node.outputs))
        lengths = [min(part, size - part * index) for index in range(len(node.outputs))]
    return [
        (_dtype(node, 0), ir.Shape([*dims[:axis], length, *dims[axis + 1 :]])) for length in lengths or ()
    ]


def _unsqueeze(node: ir.Node) -> list[Typed]:
    dims, axes = _dims(node, 0), _numbers(node, 1)
    if dims is None or axes is None:
        return [(_dtype(node, 0), None)]
    shape = list(dims)
    for axis in sorted(axis % (len(dims) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return [(_dtype(node, 0), ir.Shape(shape))]


def _expand(node: ir.Node) -> list[Typed]:
    dims, target = _dims(node, 0), _numbers(node, 1)
    joined = None if dims is None or target is None else _joined(dims, list(target))
    return [(_dtype(node, 0), _shape(joined))]


def _attention(node: ir.Node) -> list[Typed]:
    query, value = _dims(node, 0), _dims(node, 2)
    key = _dims(node, 1)
    if query is None or value is None or key is None or len(query) != 4:
        return [(F32, None)] * len(node.outputs)
    total = ir.SymbolicDim("total")
    grown = [ir.Shape([*dims[:2], total, dims[3]]) for dims in (key, value)]
    return [(F32, ir.Shape([*query[:3], value[3]])), *((F32, shape) for shape in grown)]


def _cast(node: ir.Node) -> list[Typed]:
    return [(ir.DataType(node.attributes.get_int("to", 1)), _shape(_dims(node, 0)))]


def _rank(node: ir.Node) -> list[Typed]:
    dims = _dims(node, 0)
    plain = dims is not None and not node.attributes
    return [(I64, ir.Shape([len(dims)]) if plain and dims is not None else None)]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Sigmoid", "Gelu", "Tanh", "Softmax", "Identity", "Neg", "RotaryEmbedding"), _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Where"), _broadcast),
    "RMSNormalization": lambda node: _same(node)[:1],
    "LayerNormalization": lambda node: _same(node)[:1],
    "Constant": _constant,
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Concat": _concat,
    "Gather": _gather,
    "Split": _split,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Attention": _attention,
    "Cast": _cast,
    "Shape": _rank,
}


def _dims(node: ir.Node, index: int) -> Dims | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.shape is None else list(value.shape)


def _dtype(node: ir.Node, index: int) -> ir.DataType:
    value = node.inputs[index]
    return ir.DataType.UNDEFINED if value is None or value.dtype is None else value.dtype


def _shape(dims: Dims | None) -> ir.Shape | None:
    return None if dims is None else ir.Shape(dims)


def _numbers(node: ir.Node, index: int) -> list[int] | None:
    """Return the elements of a constant input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(one) for one in np.asarray(tensor.numpy()).reshape(-1)]
