"""Compute queries, keys and values by one product."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tokc.ir.ops import make_node
from tokc.ir.program import Program
from tokc.ir.rewrite import (
    Answer,
    Missed,
    Rewrite,
    initializer,
    readers,
    rewrite,
    stack_initializers,
    stack_weights,
)

QKV = 3


@dataclass(frozen=True)
class FuseQkv:
    """Fuse the three Linears that read one value to one Linear and a Split.

    Before: ``q = Linear(x, wq); k = Linear(x, wk); v = Linear(x, wv)``
    After:  ``q, k, v = Split(Linear(x, [wq; wk; wv]))``

    Weights are stacked by rows, on the grid they are stored on, when they are read.
    Saves two reads of x and two launches a layer. Exact up to the order of the sum.
    """

    name: ClassVar[str] = "fuse-qkv"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        return rewrite(program, _fuse)


def _fuse(node: ir.Node) -> Answer:
    if (node.domain, node.op_type) != ("tokc", "Linear") or node.inputs[0] is None:
        return None
    linears = [
        one for one in readers(node.inputs[0]) if one.op_type == "Linear" and one.inputs[0] is node.inputs[0]
    ]
    linears = [one for one in node.graph or () if one in linears]
    if len(linears) != QKV or linears[0] is not node:
        return None
    weights = [one.inputs[1] for one in linears if one.inputs[1] is not None]
    biases = [one.inputs[2] if len(one.inputs) > QKV - 1 else None for one in linears]
    name = fused_name([str(weight.name) for weight in weights], "q_proj", "qkv_proj")
    stacked = stack_weights(weights, name)
    if isinstance(stacked, str):
        return Missed(node, stacked)
    if any(biases) and None in biases:
        return Missed(node, "only some of the three have a bias")
    bias = stack_initializers(biases, name.removesuffix(".weight") + ".bias") if all(biases) else None
    if isinstance(bias, str):
        return Missed(node, bias)
    linear = make_node("Linear", [node.inputs[0], stacked.weight, bias])
    linear.outputs[0].name = name.removesuffix(".weight") + ".out"
    sizes = [_rows(weight) for weight in weights]
    lengths = initializer(ir.tensor(np.array(sizes, np.int64)), "split." + "_".join(map(str, sizes)))
    known = None if node.graph is None else node.graph.initializers.get(str(lengths.name))
    split = ir.node("Split", [linear.outputs[0], known or lengths], {"axis": -1}, num_outputs=QKV)
    made = [one for one in (*stacked.initializers, bias, lengths) if one is not None]
    outputs = {old.outputs[0]: new for old, new in zip(linears, split.outputs, strict=True)}
    return Rewrite([*stacked.nodes, linear, split], outputs, made)


def fused_name(names: list[str], part: str, fused: str) -> str:
    """Name a stacked weight after the first of its parts."""
    return names[0].replace(part, fused) if part in names[0] else "+".join(names)


def _rows(weight: ir.Value) -> int:
    assert weight.shape is not None, f"'{weight.name}' has no shape"
    return int(weight.shape.numpy()[0])
