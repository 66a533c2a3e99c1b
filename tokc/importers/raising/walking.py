"""Ways through the arithmetic that is left of a graph, and what they amount to."""

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from tokc.importers.raising.facts import F64Array
from tokc.importers.raising.mismatch import Unmatched
from tokc.importers.raising.sample import Sample

MOVES = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
LINEAR = MOVES | {"Add", "Sub", "Neg", "Mul", "Div", "RotaryEmbedding"}
ELEMENTWISE = frozenset({
    "Add", "Cast", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "Max",
    "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Reshape", "Sigmoid", "Softplus", "Sqrt", "Sub",
    "Swish", "Tanh",
})  # fmt: skip
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
Stop = Callable[[ir.Value], bool]


def made(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """Return the node behind a value if it is one of the standard ops `ops`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in ops else None


def operand(sample: Sample, node: ir.Node) -> tuple[ir.Value, float] | None:
    """Split a node of two inputs into its activation and a known number; None if they are others."""
    for index in (0, 1):
        value, other = node.inputs[index], node.inputs[1 - index]
        number = scalar(sample, other)
        if value is not None and value in sample.active and number is not None:
            return value, number
    return None


def capped(sample: Sample, node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return x and cap of ``cap * tanh(x / cap)``; None if a node is another."""
    parts = operand(sample, node) if node.op_type == "Mul" else None
    tanh = None if parts is None else made(parts[0], "Tanh")
    inner = None if tanh is None else made(tanh.inputs[0], "Div", "Mul")
    divided = None if inner is None else operand(sample, inner)
    if parts is None or inner is None or divided is None:
        return None
    number = divided[1] if inner.op_type == "Div" else 1 / divided[1]
    return (divided[0], parts[1]) if np.isclose(number, parts[1]) else None


def scalar(sample: Sample, value: ir.Value | None) -> float | None:
    """Return the number that a known value has in all its elements."""
    if value is None or value not in sample.known:
        return None
    array = np.asarray(sample.known[value], dtype=np.float64)
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None


def actives(sample: Sample, node: ir.Node) -> list[ir.Value]:
    """Return a node's inputs that are activations."""
    return [value for value in node.inputs if value is not None and value in sample.active]


def plain(sample: Sample, value: ir.Value) -> ir.Value:
    """Go back over what changes no number of [.., width]: casts between floats, reshapes of leading axes."""
    while True:
        node = made(value, "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand")
        source = None if node is None else node.inputs[0]
        if node is None or source is None or source not in sample.active:
            return value
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) not in FLOATS:
            return value
        if not (sample.shapes[source] == sample.shapes[value] or _both_tokens(sample, source, value)):
            return value
        value = source


def _both_tokens(sample: Sample, one: ir.Value, other: ir.Value) -> bool:
    """Return whether both are [batch, seq, width] or [batch * seq, width]."""
    size, width = sample.size, sample.shapes[one][-1:]
    forms = ((size.batch, size.seq, *width), (size.batch * size.seq, *width))
    return sample.shapes[one] in forms and sample.shapes[other] in forms


def frontier(sample: Sample, value: ir.Value, ops: Collection[str], stop: Stop) -> list[ir.Value]:
    """Return the activations that `value` is computed of by `ops` and known numbers alone, each once.

    A value at which `stop` says so is not gone beyond.
    """
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()

    def visit(current: ir.Value) -> None:
        if current in seen:
            return
        seen.add(current)
        node = made(current, *ops)
        if node is None or stop(current) or not _passes(sample, node, ops):
            found[current] = None
            return
        for source in actives(sample, node):
            visit(source)

    visit(value)
    return list(found)


def _passes(sample: Sample, node: ir.Node, ops: Collection[str]) -> bool:
    """Return whether a node has no weight, and keeps linear what is linear."""
    if node.op_type != "RotaryEmbedding" and any(sample.is_weight(value) for value in node.inputs):
        return False  # the tables of the op are taken at positions, which are known
    if ops is LINEAR and node.op_type in {"Mul", "Div"}:
        factors = [value in sample.active for value in node.inputs]
        return factors == [True, False] or (node.op_type == "Mul" and factors == [False, True])
    return True


def only(sample: Sample, value: ir.Value, ops: Collection[str], stop: Stop, what: str) -> ir.Value:
    """Return the one activation that `value` is computed of.

    Raises: Unmatched if there are several.
    """
    found = frontier(sample, value, ops, stop)
    if len(found) != 1:
        raise Unmatched(value, f"{what} made of one value, not of {len(found)}")
    return found[0]


def probe(sample: Sample, value: ir.Value, base: ir.Value, array: F64Array) -> F64Array:
    """Return what `value` becomes where `base` is `array`.

    Two linear maps that agree on one random array are the same map, but for a chance of measure zero.
    """
    dtype = np.float32 if base.dtype is None else base.dtype.numpy()
    return np.asarray(sample.compute(value, {base: array.astype(dtype)}), dtype=np.float64)


def noise(shape: tuple[int, ...]) -> F64Array:
    """Return normal random numbers, the same at each call, exact in f32."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(np.float64)
