"""Read linear products, norms, gated feed-forward layers and embeddings out of a sample."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from tokc.importers.raising.facts import F64Array, FeedForward, IndexArray, Linear, Norm, Ref
from tokc.importers.raising.functions import gelu, sigmoid
from tokc.importers.raising.mismatch import Unmatched, further
from tokc.importers.raising.sample import MATRIX, Sample
from tokc.importers.raising.walking import (
    ELEMENTWISE,
    actives,
    frontier,
    made,
    noise,
    operand,
    plain,
    probe,
    scalar,
)

SWAPPED = (1, 0)
GRID = np.linspace(-9.0, 9.0, 97)  # inputs at which activations are told apart
ACTIVATION_TOLERANCE = 5e-5


ACTIVATIONS: Mapping[str, F64Array] = {
    "silu": GRID * sigmoid(GRID),
    "gelu_tanh": gelu(GRID, approximate=True),
    "gelu": gelu(GRID, approximate=False),
    "quick_gelu": GRID * sigmoid(1.702 * GRID),
    "relu": np.maximum(GRID, 0),
    "relu2": np.maximum(GRID, 0) ** 2,
}


def linear_of(sample: Sample, value: ir.Value) -> tuple[Linear, ir.Value] | None:
    """Return a product with a weight, bias included, and what it multiplies; None if `value` is none."""
    value = plain(sample, value)
    node = made(value, "MatMul", "Gemm", "Add", "Split", "Slice")
    if node is None:
        return None
    if node.op_type == "Add":
        return _biased(sample, node)
    if node.op_type in {"Split", "Slice"}:
        return _part(sample, node, value)
    return _product(sample, node)


def _product(sample: Sample, node: ir.Node) -> tuple[Linear, ir.Value] | None:
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or x not in sample.active or not sample.is_weight(weight):
        return None
    if len(sample.shapes[weight]) != MATRIX:
        return None
    if node.op_type == "MatMul":
        return Linear(_ref(weight, transposed=True), None), x
    attributes = node.attributes
    factors = {attributes.get_float(name, 1.0) for name in ("alpha", "beta")}
    if attributes.get_int("transA", 0) or factors != {1.0}:
        return None
    bias = node.inputs[2] if len(node.inputs) > MATRIX else None
    ref = _ref(weight, transposed=not attributes.get_int("transB", 0))
    return Linear(ref, None if bias is None else Ref(bias)), x


def _ref(value: ir.Value, *, transposed: bool) -> Ref:
    """Point at a weight [out, in], or [in, out] if transposed, behind the transposes of the graph."""
    node = made(value, "Transpose", "Identity")
    while node is not None and node.inputs[0] is not None:
        if node.op_type == "Transpose":
            if tuple(node.attributes.get_ints("perm", SWAPPED)) != SWAPPED:
                break
            transposed = not transposed
        value = node.inputs[0]
        node = made(value, "Transpose", "Identity")
    return Ref(value, transposed)


def _biased(sample: Sample, node: ir.Node) -> tuple[Linear, ir.Value] | None:
    for index in (0, 1):
        product, bias = node.inputs[index], node.inputs[1 - index]
        if product is not None and product in sample.active and sample.is_weight(bias) and bias is not None:
            found = linear_of(sample, product)
            width = sample.shapes[product][-1:]
            if found is not None and found[0].bias is None and sample.shapes[bias] == width:
                return Linear(found[0].weight, Ref(bias)), found[1]
    return None


def _part(sample: Sample, node: ir.Node, value: ir.Value) -> tuple[Linear, ir.Value] | None:
    """Read columns of a product that several share."""
    source = node.inputs[0]
    found = None if source is None or source not in sample.active else linear_of(sample, source)
    if found is None or source is None or found[0].weight.rows is not None:
        return None
    shape = sample.shapes[source]
    numbers = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    taken = probe(sample, value, source, numbers)
    first, width = int(taken.flat[0]), taken.shape[-1]
    if first + width > shape[-1] or not np.array_equal(taken, numbers[..., first : first + width]):
        return None
    return found[0].part(((first, first + width),)), found[1]


def need_linear(sample: Sample, value: ir.Value, what: str) -> tuple[Linear, ir.Value]:
    """Return `linear_of`.

    Raises: Unmatched if there is no such product.
    """
    found = linear_of(sample, value)
    if found is None:
        raise Unmatched(plain(sample, value), f"{what}, a product with a weight")
    return found


def norm_of(sample: Sample, value: ir.Value) -> tuple[Norm, ir.Value] | None:
    """Return a norm over the last axis and what it norms; None if `value` is none."""
    value = plain(sample, value)
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type in {"RMSNormalization", "LayerNormalization"}:
        return _named_norm(sample, node)
    if node.op_type != "Mul":
        return None
    for index in (0, 1):
        weight, normed = node.inputs[index], node.inputs[1 - index]
        if weight is None or not sample.is_weight(weight) or normed not in sample.active or normed is None:
            continue
        found = _rms(sample, plain(sample, normed))
        if found is not None and sample.shapes[weight] == sample.shapes[value][-1:]:
            return Norm("rms", Ref(weight), None, found[1], sample.shapes[value][-1]), found[0]
    return None


def _named_norm(sample: Sample, node: ir.Node) -> tuple[Norm, ir.Value] | None:
    x, weight = node.inputs[0], node.inputs[1]
    rank = 0 if x is None else len(sample.shapes[x])
    if x is None or weight is None or weight in sample.active:
        return None
    if node.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return None
    bias = node.inputs[2] if len(node.inputs) > MATRIX else None
    epsilon, width = node.attributes.get_float("epsilon", 1e-5), sample.shapes[x][-1]
    if node.op_type == "RMSNormalization":
        return Norm("rms", Ref(weight), None, epsilon, width), x
    return Norm("layer", Ref(weight), None if bias is None else Ref(bias), epsilon, width), x


def _rms(sample: Sample, value: ir.Value) -> tuple[ir.Value, float] | None:
    """Read ``x / sqrt(mean(x * x) + epsilon)`` however the quotient is spelled; return x and epsilon."""
    node = made(value, "Mul", "Div")
    if node is None or len(actives(sample, node)) != MATRIX:
        return None
    for index in (0,) if node.op_type == "Div" else (0, 1):
        x, other = node.inputs[index], node.inputs[1 - index]
        root = other if node.op_type == "Div" else _inverted(sample, other)
        mean = None if root is None else _root(sample, root)
        if x is not None and mean is not None:
            epsilon = _mean_square(sample, mean, plain(sample, x))
            if epsilon is not None:
                return x, epsilon
    return None


def _inverted(sample: Sample, value: ir.Value | None) -> ir.Value | None:
    node = made(value, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Reciprocal":
        return node.inputs[0]
    if node.op_type == "Pow":
        return value if scalar(sample, node.inputs[1]) == -0.5 else None
    return node.inputs[1] if scalar(sample, node.inputs[0]) == 1 else None


def _root(sample: Sample, value: ir.Value) -> ir.Value | None:
    """Return what is under the root; of ``Pow(x, -0.5)``, which _inverted passes on, x."""
    node = made(value, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and scalar(sample, node.inputs[1]) not in (0.5, -0.5)):
        return None
    return node.inputs[0]


def _mean_square(sample: Sample, value: ir.Value, x: ir.Value) -> float | None:
    """Return the epsilon of ``mean(x * x) + epsilon`` over the last axis."""
    node = made(value, "Add")
    parts = None if node is None else operand(sample, node)
    mean = None if parts is None else made(parts[0], "ReduceMean")
    if parts is None or mean is None or sample.shapes[mean.outputs[0]] != (*sample.shapes[x][:-1], 1):
        return None
    square = made(mean.inputs[0], "Pow", "Mul")
    if square is None or square.inputs[0] is None or plain(sample, square.inputs[0]) is not x:
        return None
    squared = (
        scalar(sample, square.inputs[1]) == MATRIX
        if square.op_type == "Pow"
        else (square.inputs[1] is square.inputs[0])
    )
    return parts[1] if squared else None


def need_norm(sample: Sample, value: ir.Value, what: str) -> tuple[Norm, ir.Value]:
    """Return `norm_of`.

    Raises: Unmatched if there is no norm.
    """
    found = norm_of(sample, value)
    if found is None:
        raise Unmatched(plain(sample, value), f"{what}, an RMSNorm or LayerNorm over the last axis")
    return found


def feed_forward_of(sample: Sample, value: ir.Value) -> tuple[FeedForward, ir.Value]:
    """Return a feed-forward layer and its input.

    Raises: Unmatched if `value` is no feed-forward layer.
    """
    down, inner = need_linear(sample, value, "a feed-forward layer's 'down'")
    with further(1):
        return _fed(sample, down, inner)


def _fed(sample: Sample, down: Linear, inner: ir.Value) -> tuple[FeedForward, ir.Value]:
    parts = frontier(sample, inner, ELEMENTWISE, lambda v: linear_of(sample, v) is not None)
    read = [linear_of(sample, part) for part in parts]
    known = [found for found in read if found is not None]
    if len(known) != len(read) or not 1 <= len(known) <= MATRIX:
        raise Unmatched(inner, "a feed-forward layer's act(gate) * up, elementwise on one or two products")
    inputs = {plain(sample, x) for _, x in known}
    if len(inputs) != 1:
        raise Unmatched(inner, "a feed-forward layer whose gate and up read the same value")
    if len(known) == 1:
        return FeedForward(None, known[0][0], down, _activation(sample, inner, parts)), inputs.pop()
    for gate, up in ((0, 1), (1, 0)):
        activation = _gated(sample, inner, parts[gate], parts[up])
        if activation is not None:
            return FeedForward(known[gate][0], known[up][0], down, activation), inputs.pop()
    raise Unmatched(inner, f"act(gate) * up with one of the activations {', '.join(ACTIVATIONS)}")


def _spread(shape: tuple[int, ...]) -> tuple[IndexArray, F64Array]:
    """Return the grid's index of each element, and the grid over a shape, again and again."""
    index = np.arange(np.prod(shape)).reshape(shape) % len(GRID)
    return index, GRID[index]


def _activation(sample: Sample, value: ir.Value, parts: list[ir.Value]) -> str:
    index, x = _spread(sample.shapes[parts[0]])
    name = _named(probe(sample, value, parts[0], x), index, np.ones_like(x))
    if name is None:
        raise Unmatched(value, f"one of the activations {', '.join(ACTIVATIONS)}")
    return name


def _gated(sample: Sample, value: ir.Value, gate: ir.Value, up: ir.Value) -> str | None:
    index, x = _spread(sample.shapes[gate])
    factor = noise(sample.shapes[up])
    given = {gate: x.astype(np.float32), up: factor.astype(np.float32)}
    return _named(np.asarray(sample.compute(value, given), dtype=np.float64), index, factor)


def _named(y: F64Array, index: IndexArray, factor: F64Array) -> str | None:
    for name, table in ACTIVATIONS.items():
        want = table[index] * factor
        if y.size == want.size and np.abs(y.reshape(want.shape) - want).max() < ACTIVATION_TOLERANCE:
            return name
    return None
