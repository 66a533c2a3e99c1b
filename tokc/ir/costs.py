"""What a node costs: FLOPs and bytes, as functions of the tokens of a step and their context."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

ACTIVATION_BYTES = 4  # activations are f32


@dataclass(frozen=True)
class Step:
    """State the work of one step: `tokens` of `sequences`, each token attending to `context` cached tokens.

    A decode step of a batch has as many sequences as tokens; a prefill chunk has one. The cache of a sequence
    is read once a step.
    """

    tokens: int = 1
    context: int = 1
    sequences: int = 1


@dataclass(frozen=True)
class Cost:
    """Hold the arithmetic and the memory traffic of a node or program in one step."""

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        """Return both costs together."""
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


CostRule = Callable[[ir.Node, Step], float]

CODES_AT: Mapping[str, int] = {
    "BlockDequantize": 0,
    **dict.fromkeys(("QuantLinear", "QuantEmbedding", "QuantMoeLinear"), 1),
}
VIEWS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Identity", "Constant", "Shape", "Flatten"})
MOVES = frozenset(
    {"Transpose", "Concat", "Split", "Slice", "Gather", "Expand", "Cast", "Where", "Pad", "Range"}
)
FLOPS_PER_ELEMENT: Mapping[str, float] = {
    "RMSNormalization": 4.0,
    "LayerNormalization": 7.0,
    "Softmax": 5.0,
    "Gelu": 10.0,
    "Sigmoid": 4.0,
    "Tanh": 4.0,
    "RotaryEmbedding": 3.0,
    **dict.fromkeys(VIEWS | MOVES, 0.0),
}


def elements(value: ir.Value | None, step: Step) -> float:
    """Return how many elements a value has in such a step; 0 if its shape is unknown."""
    if value is None or value.shape is None:
        return 0.0
    sizes = {
        "tokens": step.tokens,
        "rows": step.sequences,
        "seqs": step.sequences,
        "batch": step.sequences,
        "seq": step.tokens / step.sequences,
        "past": step.context,
        "total": step.context,
    }
    count = 1.0
    for dim in value.shape:
        count *= dim if isinstance(dim, int) else sizes.get(str(dim.value), 1)
    return count


def value_bytes(value: ir.Value | None, step: Step) -> float:
    """Return the bytes of a value in such a step; packed types count packed."""
    if value is None:
        return 0.0
    if value.const_value is not None:
        return constant_bytes(value)
    width = ACTIVATION_BYTES if value.dtype is None else value.dtype.bitwidth / 8
    return elements(value, step) * width


def constant_bytes(value: ir.Value) -> float:
    """Return the bytes of a constant; codes and scales narrower than their type count their width."""
    assert value.const_value is not None, f"'{value.name}' is no constant"
    bits = code_bits(value)
    return float(value.const_value.nbytes) if bits is None else value.const_value.size * bits / 8


def code_bits(value: ir.Value) -> int | None:
    """Return the width of codes or scales of a weight on a grid, None where it is that of their type."""
    for node, index in value.uses():
        at = CODES_AT.get(node.op_type)
        if at is not None and index in {at, at + 1}:
            bits = node.attributes.get_int("bits" if index == at else "scale_bits", 0)
            if bits:
                return bits
    return None


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input, None if it is not given."""
    return node.inputs[index] if index < len(node.inputs) else None


def static_dim(value: ir.Value | None, axis: int) -> int:
    """Return a dimension that must be static, 0 if it is not known."""
    dim = None if value is None or value.shape is None else value.shape[axis]
    return dim if isinstance(dim, int) else 0


def all_bytes(node: ir.Node, step: Step) -> float:
    """Count every input and output once."""
    return sum(value_bytes(value, step) for value in (*node.inputs, *node.outputs))


def gather_bytes(node: ir.Node, step: Step) -> float:
    """Count the rows that are read and written, not the table."""
    return 2 * elements(node.outputs[0], step) * ACTIVATION_BYTES


def product_flops(node: ir.Node, step: Step) -> float:
    """Count a multiplication and an addition per output element and inner dimension."""
    inner = operand(node, 0)
    depth = (
        0.0 if inner is None or inner.shape is None else elements(inner, step) / max(_rows(inner, step), 1.0)
    )
    return 2 * elements(node.outputs[0], step) * depth


def _rows(value: ir.Value, step: Step) -> float:
    last = static_dim(value, -1)
    return elements(value, step) / last if last else elements(value, step) / step.context


def linear_flops(node: ir.Node, step: Step) -> float:
    """Count 2 * rows * N * K of y = x @ weight.T."""
    weight = operand(node, 1)
    rows = elements(node.outputs[0], step) / (static_dim(weight, 0) or 1)
    return 2 * (rows or step.tokens) * static_dim(weight, 0) * static_dim(weight, 1)


def per_element(factor: float) -> CostRule:
    """Return a rule that counts `factor` FLOPs an element of the first output."""

    def flops(node: ir.Node, step: Step) -> float:
        return factor * elements(node.outputs[0], step)

    return flops


def embedding_bytes(node: ir.Node, step: Step) -> float:
    """Count the packed rows that are read and the f32 rows that are written."""
    made = elements(node.outputs[0], step)
    codes, scale = operand(node, 1), operand(node, 2)
    bits = 8.0 if codes is None or codes.dtype is None else float(code_bits(codes) or codes.dtype.bitwidth)
    scale_bits = 16.0
    if scale is not None and scale.dtype is not None:
        scale_bits = float(code_bits(scale) or scale.dtype.bitwidth)
    per_row = (static_dim(codes, 1) * bits + static_dim(scale, 1) * scale_bits) / 8
    rows = made / (static_dim(codes, 1) or 1)
    return rows * per_row + made * ACTIVATION_BYTES


def rope_write_flops(node: ir.Node, step: Step) -> float:
    """Count six operations per pair of elements that is rotated."""
    return 3 * sum(step.tokens * static_dim(operand(node, index), 1) for index in (0, 1))


def rope_write_bytes(node: ir.Node, step: Step) -> float:
    """Count queries, keys and values read, queries written, and the cache entries of the tokens written."""
    widths = [static_dim(operand(node, index), 1) for index in (0, 1, 2)]
    read = step.tokens * sum(widths) * ACTIVATION_BYTES
    kept = 2 * step.tokens * cached_row_bytes(operand(node, 8), operand(node, 10))
    return read + step.tokens * widths[0] * ACTIVATION_BYTES + kept


def paged_attention_flops(node: ir.Node, step: Step) -> float:
    """Count the two products: 4 * tokens * context * heads * dim."""
    return 4.0 * step.tokens * _seen(node, step) * static_dim(operand(node, 0), 1)


def paged_attention_bytes(node: ir.Node, step: Step) -> float:
    """Count the cache of every sequence once, and queries and results."""
    key = operand(node, 1)
    cache = 2 * step.sequences * _seen(node, step) * cached_row_bytes(key, operand(node, 3))
    return cache + 2 * step.tokens * static_dim(operand(node, 0), 1) * ACTIVATION_BYTES


def attention_flops(node: ir.Node, step: Step) -> float:
    """Count the two products of a standard Attention."""
    query = operand(node, 0)
    return 4.0 * elements(query, step) * step.context


def cached_row_bytes(key: ir.Value | None, scale: ir.Value | None) -> float:
    """Return the bytes of one token's keys [kv_heads, dim] as they are cached, their scales included."""
    bits = 8 * ACTIVATION_BYTES if key is None or key.dtype is None else key.dtype.bitwidth
    scale_bits = 0 if scale is None or scale.dtype is None else scale.dtype.bitwidth
    return static_dim(key, 1) * (static_dim(key, 2) * bits + scale_bits) / 8


def _seen(node: ir.Node, step: Step) -> int:
    window = node.attributes.get_int("window", 0)
    return min(window, step.context) if window else step.context


def standard_cost(node: ir.Node, step: Step) -> Cost:
    """Return the cost of a standard op."""
    if node.op_type in VIEWS:
        return Cost(0.0, 0.0)
    bytes_rule = gather_bytes if node.op_type == "Gather" else all_bytes
    flops_rule = {"MatMul": product_flops, "Attention": attention_flops}.get(
        node.op_type, per_element(FLOPS_PER_ELEMENT.get(node.op_type, 1.0))
    )
    return Cost(flops_rule(node, step), bytes_rule(node, step))
