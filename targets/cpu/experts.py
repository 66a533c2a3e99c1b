"""Lowers layers of experts: tokens are routed, sorted by expert, computed a group at a time, and summed.

Between the router and MoeCombine a step's rows are positions, slots sorted by expert (`kernels/moe.py`). What
has an axis of slots in the program, [tokens, k, width], lies in that order: a row of its buffer is the k
positions from token * k on, whosever they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from tokc.errors import TargetRefused
from tokc.targets.cpu.kernels.moe import MoeCombine, MoeGather, MoeGroup, MoeRoute
from tokc.targets.cpu.kernels.quantize import GROUP, QUANTIZED_ARGS
from tokc.targets.nodes import integer, required, slots_of
from tokc.targets.plan import Buffer, Operand, Rows

if TYPE_CHECKING:
    from tokc.targets.cpu.emit import Emission

DTYPES: Mapping[str, str] = dict(zip(QUANTIZED_ARGS, ("i8", "f32", "i32"), strict=True))


@dataclass(frozen=True)
class Routing:
    """Where the chosen experts of a router are: `top_k` a row, and the pointers that sort them."""

    name: str
    top_k: int
    starts: Operand
    tokens: Operand
    places: Operand


def lower_moe_router(low: "Emission", node: ir.Node) -> None:
    """Lower MoeRouter: scores by a linear layer in f32, the choice, and its order by expert."""
    x = low.slots[required(node.inputs[0])]
    weight, _, linear = low.weights.linear(node, x.stride)
    chosen, weights = node.outputs
    name, rows, top_k, shared = str(chosen.name), x.rows, integer(node, "top_k", 1), integer(node, "shared")
    count = linear.n - shared
    scores = low.buffer(Buffer(f"scores.{name}", "arena", "f32", (rows, linear.y_stride)))
    low.launch(node, linear, (low.weight(weight), x.operand, scores), rows)
    experts = low.buffer(Buffer(f"experts.{name}", "arena", "i32", (rows, top_k)))
    route = MoeRoute(low.isa, count, top_k, bool(integer(node, "normalize")), bool(shared), linear.y_stride)
    low.launch(node, route, (scores, experts, low.activation(weights, top_k + shared, rows)), rows)
    _moves_only(low, "MoeRoute")
    routing = Routing(
        name,
        top_k,
        low.buffer(Buffer(f"starts.{name}", "arena", "i32", (2 * count + 1,))),
        low.buffer(Buffer(f"tokens.{name}", "arena", "i32", (rows, top_k))),
        low.buffer(Buffer(f"places.{name}", "arena", "i32", (rows, top_k))),
    )
    order = (experts, routing.starts, routing.tokens, routing.places)
    low.launch(node, MoeGroup(low.isa, count, top_k), order, rows)
    _moves_only(low, "MoeGroup")
    low.routings[chosen] = routing


def lower_moe_linear(low: "Emission", node: ir.Node) -> None:
    """Lower MoeLinear over f32 weights."""
    value, routing = required(node.inputs[0]), low.routings[required(node.inputs[2])]
    x = low.slots[value]
    source, stride = x.operand, x.stride // slots_of(value)
    if slots_of(value) == 1:
        source, stride = _gathered(low, node, value, routing), x.width
    weight, kernel = low.weights.moe_linear(node, stride)
    out = low.activation(node.outputs[0], routing.top_k * kernel.linear.y_stride, x.rows)
    low.launch(node, kernel, (low.weight(weight), routing.starts, source, out), x.rows)


def lower_quant_moe_linear(low: "Emission", node: ir.Node) -> None:
    """Lower QuantMoeLinear, quantizing its input first if nobody has.

    Raises: TargetRefused if activations are not rounded in groups of 32.
    """
    if integer(node, "act_group", GROUP) != GROUP:
        raise TargetRefused(
            f"QuantMoeLinear with act_group={integer(node, 'act_group')} does not run on the CPU",
            where=f"node '{node.name}'",
            hint=f"use quantize-weights{{act_group={GROUP}}}",
        )
    value, routing = required(node.inputs[0]), low.routings[required(node.inputs[4])]
    operands = low.as_int8(node, value).operands
    rows: Rows = low.buffers[operands[0].buffer].shape[0]  # type: ignore[assignment]
    if slots_of(value) == 1:
        operands = _gathered_int8(low, node, operands, routing)
    weight, kernel = low.weights.moe_linear(node, 0)
    out = low.activation(node.outputs[0], routing.top_k * kernel.linear.y_stride, rows)
    low.launch(node, kernel, (low.weight(weight), routing.starts, *operands, out), rows)


def lower_moe_combine(low: "Emission", node: ir.Node) -> None:
    """Lower MoeCombine: each token's slots, wherever they lie, in their own order."""
    y, weights = (low.slots[required(value)] for value in node.inputs[:2])
    linear = required(node.inputs[0]).producer()
    assert linear is not None, "results of experts are made by a node"
    routing = low.routings[required(linear.inputs[-1])]
    shared = low.slots[required(node.inputs[2])] if len(node.inputs) > 2 else None
    shape = required(node.outputs[0]).shape
    assert shape is not None, "the op's rule gives a shape"
    assert isinstance(shape[-1], int), "the width of a sum of experts is static"
    kernel = MoeCombine(
        low.isa, shape[-1], routing.top_k, y.stride // routing.top_k, 0 if shared is None else shared.stride
    )
    out = low.activation(node.outputs[0], kernel.width, y.rows)
    given = (routing.places, weights.operand, y.operand, *(() if shared is None else (shared.operand,)))
    low.launch(node, kernel, (*given, out), y.rows)


def _gathered(low: "Emission", node: ir.Node, value: ir.Value, routing: Routing) -> Operand:
    """Return each position's row of `value`, copied by a launch of its own."""
    x = low.slots[value]
    made = low.buffer(Buffer(f"g.{routing.name}", "arena", "f32", (x.rows, routing.top_k * x.width)))
    kernel = MoeGather(low.isa, x.width, routing.top_k, x.stride, quantized=False)
    low.launch(node, kernel, (routing.tokens, x.operand, made), x.rows)
    _moves_only(low, "MoeGather")
    return made


def _gathered_int8(
    low: "Emission", node: ir.Node, given: tuple[Operand, ...], routing: Routing
) -> tuple[Operand, ...]:
    """Return each position's row of an int8 form, copied by a launch of its own."""
    made = []
    for operand, (part, dtype) in zip(given, DTYPES.items(), strict=True):
        rows, width = low.buffers[operand.buffer].shape
        assert isinstance(width, int), "rows have a static width"
        shape = (rows, routing.top_k * width)
        made.append(low.buffer(Buffer(f"g.{part}.{routing.name}", "arena", dtype, shape)))
    rows, width = low.buffers[given[0].buffer].shape
    assert isinstance(width, int), "rows have a static width"
    kernel = MoeGather(low.isa, width, routing.top_k, 0, quantized=True)
    low.launch(node, kernel, (routing.tokens, *given, *made), rows)  # type: ignore[arg-type]
    _moves_only(low, "MoeGather")
    return tuple(made)


def _moves_only(low: "Emission", op: str) -> None:
    """Say that the launch just made prepares what its node computes, and counts no work of it."""
    low.launches[-1] = replace(low.launches[-1], op=op, work=low.launches[-1].work.moving_only())
