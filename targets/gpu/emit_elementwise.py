"""Lowers what is computed an element at a time and that no other kernel took in."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import Kernel
from tokc.targets.gpu.kernels.elementwise import Add, Apply, Multiply, Scale
from tokc.targets.gpu.reads import only_dtype, single
from tokc.targets.lowering import Slot
from tokc.targets.nodes import required, text

if TYPE_CHECKING:
    from tokc.targets.gpu.emit import Emission


def lower_add(low: "Emission", node: ir.Node) -> None:
    """Lower a residual add that no norm took in."""
    a, b = single(low, node, 0), single(low, node, 1)
    out = low.activation(node.outputs[0], a.width, a.rows)
    kernel = Add(width=a.width, a_stride=a.stride, b_stride=b.stride, rows=a.rows)
    low.launch(node, kernel, (a.operand, b.operand, low.info(), out), a.rows)


def lower_product(low: "Emission", node: ir.Node) -> None:
    """Lower a product of two activations, or of one with a constant scalar."""
    values = [required(value) for value in node.inputs]
    constants = [value for value in values if value.const_value is not None]
    if not constants:
        a, b = (low.slots[value] for value in values)
        out = low.activation(node.outputs[0], a.width, a.rows, dtype=only_dtype(node))
        product = Multiply(
            width=a.width,
            a_stride=a.stride,
            b_stride=b.stride,
            a_dtype=a.dtype,
            b_dtype=b.dtype,
            y_dtype=only_dtype(node),
            rows=a.rows,
        )
        low.launch(node, product, (a.operand, b.operand, low.info(), out), a.rows)
        return
    if constants[0].const_value is None or constants[0].const_value.size != 1:
        raise TargetRefused("GPU targets multiply by constant scalars only", where=f"node '{node.name}'")
    factor = float(constants[0].const_value.numpy().reshape(()))
    x = low.slots[next(value for value in values if value is not constants[0])]
    launch_row(low, node, x, partial(Scale, factor=factor))


def lower_activation(low: "Emission", node: ir.Node) -> None:
    """Lower an activation that no gated projection took in."""
    if node.op_type == "Gelu" and text(node, "approximate", "none") != "tanh":
        raise TargetRefused("GPU targets run Gelu with approximate='tanh' only", where=f"node '{node.name}'")
    x = low.slots[required(node.inputs[0])]
    function = {"Sigmoid": "sigmoid", "Gelu": "gelu_tanh"}[node.op_type]
    launch_row(low, node, x, partial(Apply, activation=function))


def launch_row(low: "Emission", node: ir.Node, x: Slot, kernel: Callable[..., Kernel]) -> None:
    """Launch what computes each element of a row from that of `x`, in the dtype in which it is read."""
    dtype = only_dtype(node)
    out = low.activation(node.outputs[0], x.width, x.rows, dtype=dtype)
    made = kernel(width=x.width, x_stride=x.stride, x_dtype=x.dtype, y_dtype=dtype, rows=x.rows)
    low.launch(node, made, (x.operand, low.info(), out), x.rows)
