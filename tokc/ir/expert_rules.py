"""Shapes and prices of the ops of mixture-of-experts layers.

A step reads the weights of the experts that its tokens choose, each once. How many that are depends on the
router; it is priced by its mean where every choice is as likely and tokens choose apart from each other:
``experts * (1 - (1 - top_k / experts) ** tokens)``. That is `top_k` for one token, never more than
``min(experts, tokens * top_k)``, and all of them in a long prefill. Text routes less evenly, so a batch may
read fewer.
"""

import onnx_ir as ir

from tokc.ir.costs import ACTIVATION_BYTES, Step, constant_bytes, elements, operand, static_dim, value_bytes
from tokc.ir.shapes import F32, Typed, dims, shape_of

INT64 = ir.DataType.INT64
OF_EXPERTS = frozenset({"MoeLinear", "QuantMoeLinear"})


def moe_router_shape(node: ir.Node) -> list[Typed]:
    """Return the experts, int64 [.., k], and their weights, f32 [.., k] or [.., k + 1]."""
    x, slots = dims(node, 0), node.attributes.get_int("top_k", 1)
    width = slots + node.attributes.get_int("shared", 0)
    return [
        (INT64, shape_of(x and [*x[:-1], slots])),
        (F32, shape_of(x and [*x[:-1], width])),
    ]


def moe_linear_shape(node: ir.Node) -> list[Typed]:
    """Return f32 [.., k, N] of experts [.., k] and a weight [experts * N, K]."""
    chosen, weight = dims(node, _chosen_at(node)), dims(node, 1)
    if chosen is None or weight is None or not isinstance(weight[0], int):
        return [(F32, None)]
    return [(F32, shape_of([*chosen, weight[0] // _count(node)]))]


def moe_combine_shape(node: ir.Node) -> list[Typed]:
    """Return f32 [.., N] of slots [.., k, N]."""
    y = dims(node, 0)
    return [(F32, shape_of(y and [*y[:-2], y[-1]]))]


def moe_router_flops(node: ir.Node, step: Step) -> float:
    """Count the product with the router's weight and a softmax over the experts."""
    experts = static_dim(operand(node, 1), 0)
    return step.tokens * experts * (2.0 * static_dim(operand(node, 1), 1) + 5.0)


def moe_linear_flops(node: ir.Node, step: Step) -> float:
    """Count the chosen experts only: 2 * tokens * k * N * K."""
    return 2.0 * elements(node.outputs[0], step) * static_dim(operand(node, 1), 1)


def moe_linear_bytes(node: ir.Node, step: Step) -> float:
    """Count activations, and the share of the weights that `touched_experts` are of all."""
    given = [value for value in node.inputs if value is not None]
    moved = [value for value in (*given, *node.outputs) if value.const_value is None]
    read = every_expert_bytes(node) * touched_share(node, step.tokens)
    return read + sum(value_bytes(value, step) for value in moved)


def moe_combine_flops(node: ir.Node, step: Step) -> float:
    """Count a multiplication and an addition an element that is summed."""
    shared = operand(node, 2)
    return 2.0 * (elements(operand(node, 0), step) + elements(shared, step))


def every_expert_bytes(node: ir.Node) -> float:
    """Return the bytes of the weights of all experts that a node reads from, 0 for a node without experts."""
    if node.op_type not in OF_EXPERTS:
        return 0.0
    return sum(
        constant_bytes(value) for value in node.inputs if value is not None and value.const_value is not None
    )


def touched_share(node: ir.Node, tokens: int) -> float:
    """Return how many of the experts `tokens` tokens are expected to choose, as a share of all.

    1 for a node without experts: it reads its weights whole.
    """
    if node.op_type not in OF_EXPERTS:
        return 1.0
    slots = static_dim(operand(node, _chosen_at(node)), -1) or 1
    return 1.0 - (1.0 - min(slots / _count(node), 1.0)) ** tokens


def router_bytes(node: ir.Node, step: Step) -> float:
    """Count the router's weight and f32 activations; what it chooses counts as it is stored, 4 bytes each."""
    moved = [operand(node, 0), *node.outputs]
    weight = value_bytes(operand(node, 1), step)
    return weight + ACTIVATION_BYTES * sum(elements(value, step) for value in moved)


def _chosen_at(node: ir.Node) -> int:
    """Return which input names the chosen experts."""
    return 2 if node.op_type == "MoeLinear" else 4


def _count(node: ir.Node) -> int:
    return node.attributes.get_int("experts", 1)
