"""Compute gate and up by one product, and the gated activation by one node."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from tokc.ir.ops import make_node
from tokc.ir.program import Program
from tokc.ir.rewrite import Answer, Missed, Rewrite, made_by, readers, rewrite, stack_weights
from tokc.passes.fuse_qkv import fused_name


@dataclass(frozen=True)
class FuseGateUp:
    """Fuse the two Linears of a gated feed-forward block, and what gates them.

    Before: ``g = Linear(x, wg); y = Mul(Mul(g, Sigmoid(g)), Linear(x, wu))`` (or Gelu, tanh form)
    After:  ``y = GatedActivation(Linear(x, [wg; wu]))``

    Weights are stacked by rows, on the grid they are stored on, when they are read.
    Saves a read of x, three writes and reads of [tokens, intermediate] and three launches a layer.
    Exact up to the order of the sum.
    """

    name: ClassVar[str] = "fuse-gate-up"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        return rewrite(program, _fuse)


def _fuse(node: ir.Node) -> Answer:
    if (node.domain, node.op_type) != ("", "Mul"):
        return None
    for act, other in (node.inputs, node.inputs[::-1]):
        gated = _activation(act)
        up = made_by(other, "Linear", "tokc")
        if gated is not None and up is not None:
            return _fused(node, *gated, up)
    return None


def _fused(node: ir.Node, gate: ir.Node, activation: str, up: ir.Node) -> Answer:
    if gate.inputs[0] is not up.inputs[0]:
        return Missed(node, "gate and up read different values")
    if len(gate.inputs) > 2 or len(up.inputs) > 2:
        return Missed(node, "gate or up has a bias")
    if len(readers(up.outputs[0])) > 1 or up.outputs[0].is_graph_output():
        return Missed(node, f"'{up.outputs[0].name}' has other readers; fusing would compute it twice")
    weights = [one.inputs[1] for one in (gate, up) if one.inputs[1] is not None]
    name = fused_name([str(weight.name) for weight in weights], "gate_proj", "gate_up_proj")
    stacked = stack_weights(weights, name)
    if isinstance(stacked, str):
        return Missed(node, stacked)
    linear = make_node("Linear", [gate.inputs[0], stacked.weight])
    linear.outputs[0].name = name.removesuffix(".weight") + ".out"
    gated = make_node("GatedActivation", [linear.outputs[0]], {"activation": activation})
    return Rewrite([*stacked.nodes, linear, gated], {node.outputs[0]: gated.outputs[0]}, stacked.initializers)


def _activation(value: ir.Value | None) -> tuple[ir.Node, str] | None:
    """Return the Linear behind an activation and the activation's name."""
    gelu = made_by(value, "Gelu")
    if gelu is not None:
        gate = made_by(gelu.inputs[0], "Linear", "tokc")
        tanh = gelu.attributes.get_string("approximate", "none") == "tanh"
        return (gate, "gelu_tanh") if gate is not None and tanh else None
    product = made_by(value, "Mul")
    for plain, curved in () if product is None else (product.inputs, product.inputs[::-1]):
        sigmoid = made_by(curved, "Sigmoid")
        gate = made_by(plain, "Linear", "tokc")
        if sigmoid is not None and gate is not None and sigmoid.inputs[0] is plain:
            return gate, "silu"
    return None
