"""Lowers layers of experts: tokens are routed, their slots sorted by expert, computed, and summed."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from tokc.targets.constants import shape_of
from tokc.targets.gpu import weights
from tokc.targets.gpu.kernels.moe import MoeCombine, MoeGroup, MoeRoute, MoeScores
from tokc.targets.gpu.kernels.moe_linear import MoeLinear
from tokc.targets.gpu.reads import only_dtype, single
from tokc.targets.nodes import integer, required, slots_of
from tokc.targets.plan import Buffer, Operand

if TYPE_CHECKING:
    from tokc.targets.gpu.emit import Emission


@dataclass(frozen=True)
class Routing:
    """Where the chosen experts of a router are: `top_k` a token, and the pointers that sort their slots."""

    top_k: int
    starts: Operand
    order: Operand


def lower_moe_router(low: "Emission", node: ir.Node) -> None:
    """Lower MoeRouter: scores in f32, the choice, and the order of its slots by expert."""
    x = single(low, node, 0)
    weight = required(node.inputs[1])
    rows, columns = shape_of(weight)
    chosen, weighed = node.outputs
    top_k, shared = integer(node, "top_k", 1), integer(node, "shared")
    count, name = rows - shared, str(chosen.name)
    scores = low.buffer(Buffer(f"scores.{name}", "arena", "f32", (x.rows, rows)))
    operands = (x.operand, low.weight(weights.vector(weight)), low.info(), scores)
    low.launch(node, MoeScores(rows, columns, x.stride), operands, x.rows)
    experts = low.buffer(Buffer(f"experts.{name}", "arena", "i32", (x.rows, top_k)))
    out = low.activation(weighed, top_k + shared, x.rows)
    route = MoeRoute(count, top_k, bool(integer(node, "normalize")), bool(shared))
    low.launch(node, route, (scores, low.info(), experts, out), x.rows)
    _moves_only(low, "MoeRoute")
    routing = Routing(
        top_k,
        low.buffer(Buffer(f"starts.{name}", "arena", "i32", (count + 1,))),
        low.buffer(Buffer(f"order.{name}", "arena", "i32", (x.rows, top_k))),
    )
    group = (experts, low.info(), routing.starts, routing.order)
    low.launch(node, MoeGroup(count, top_k), group, x.rows)
    _moves_only(low, "MoeGroup")
    low.routings[chosen] = routing


def lower_moe_linear(low: "Emission", node: ir.Node) -> None:
    """Lower MoeLinear and QuantMoeLinear: a kernel for narrow steps and one for wide ones."""
    value, routing = required(node.inputs[0]), low.routings[required(node.inputs[-1])]
    x, slots, experts = low.read_half(node, 0), slots_of(value), integer(node, "experts", 1)
    tensors, weight = weights.multiplied(node, low.architecture)
    own = replace(weight, n=weight.n // experts, x_stride=x.stride // slots, y_dtype=only_dtype(node))
    kernel = MoeLinear(own, experts, routing.top_k, by_token=slots == 1, most_tokens=low.limits["tokens"])
    out = low.activation(node.outputs[0], routing.top_k * own.n, x.rows, dtype=only_dtype(node))
    operands = (*low.packed(tensors), x.operand, routing.starts, routing.order, out)
    for steps in ("narrow", "wide"):
        low.launch(node, kernel.variant(wide=steps == "wide"), operands, x.rows, steps)


def lower_moe_combine(low: "Emission", node: ir.Node) -> None:
    """Lower MoeCombine: each token's slots, in their own order."""
    y, weighed = single(low, node, 0), single(low, node, 1)
    shared = single(low, node, 2) if len(node.inputs) > 2 else None
    slots = slots_of(required(node.inputs[0]))
    kernel = MoeCombine(y.width // slots, slots, 0 if shared is None else shared.stride)
    out = low.activation(node.outputs[0], kernel.width, y.rows)
    given = (y.operand, weighed.operand, *(() if shared is None else (shared.operand,)), low.info(), out)
    low.launch(node, kernel, given, y.rows)


def _moves_only(low: "Emission", op: str) -> None:
    """Say that the launch just made prepares what its node computes, and counts no work of it."""
    low.launches[-1] = replace(low.launches[-1], op=op, work=low.launches[-1].work.moving_only())
