"""Name a product with a transposed weight for what it is."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from tokc.ir.ops import make_node
from tokc.ir.program import Program
from tokc.ir.rewrite import Answer, Missed, Rewrite, made_by, only_reader, rewrite

MATRIX = 2


@dataclass(frozen=True)
class FuseLinear:
    """Fuse a product with a transposed weight, and the bias added to it, to one Linear.

    Before: ``y = Add(MatMul(x, Transpose(w)), bias)``
    After:  ``y = Linear(x, w, bias)``

    Saves the transposed copy of the weight, and a write and a read of y where there is a bias.
    Exact up to the order of the sum.
    """

    name: ClassVar[str] = "fuse-linear"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        return rewrite(program, _fuse)


def _fuse(node: ir.Node) -> Answer:
    if (node.domain, node.op_type) != ("", "MatMul"):
        return None
    transpose = made_by(node.inputs[1], "Transpose")
    weight = None if transpose is None else transpose.inputs[0]
    if transpose is None or weight is None or not _is_weight(weight):
        return None
    if list(transpose.attributes.get_ints("perm", [1, 0])) != [1, 0]:
        return Missed(node, "its weight is not transposed by [1, 0]")
    product = node.outputs[0]
    add = only_reader(product, "Add")
    bias = None if add is None else _bias(add, product, weight)
    linear = make_node("Linear", [node.inputs[0], weight, bias])
    replaced = product if add is None or bias is None else add.outputs[0]
    return Rewrite([linear], {replaced: linear.outputs[0]})


def _is_weight(value: ir.Value) -> bool:
    if made_by(value, "BlockDequantize", "tokc") is not None:
        return True
    return value.const_value is not None and len(value.const_value.shape) == MATRIX


def _bias(add: ir.Node, product: ir.Value, weight: ir.Value) -> ir.Value | None:
    """Return the vector that is added to every row, None if something else is added."""
    other = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    if other is None or other.const_value is None or weight.shape is None or other.shape is None:
        return None
    return other if list(other.shape) == [weight.shape[0]] else None
