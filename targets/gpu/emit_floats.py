"""Lowers products of weights and activations in e4m3; activations are rounded once for all who read them."""

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from tokc.errors import TargetRefused
from tokc.targets.gpu import weights
from tokc.targets.gpu.device import ARCHITECTURES
from tokc.targets.gpu.kernels.round_rows import RoundRows
from tokc.targets.lowering import Float, Slot
from tokc.targets.nodes import integer, required, text
from tokc.targets.plan import Buffer, Operand

if TYPE_CHECKING:
    from tokc.targets.gpu.emit import Emission

FORMATS = frozenset({"e4m3"})  # of weights


def lower_float_linear(low: "Emission", node: ir.Node, y_dtype: Float) -> None:
    """Lower a QuantLinear of e4m3: a rounding of x, and a kernel for narrow steps and one for wide ones.

    Raises: TargetRefused if the device multiplies no e4m3, x is not to be rounded, or the scales are others.
    """
    tensors, linear = weights.float8(node, _form(low, node))
    bias = weights.bias(node, 4)
    x = low.read_half(node, 0)
    codes, scales = _rounded(low, node, x, fnuz=_form(low, node) == weights.FNUZ)
    out = low.activation(node.outputs[0], linear.n, x.rows, dtype=y_dtype)
    given = [low.weight(bias)] if bias else []
    operands = (*low.packed(tensors), codes, scales, low.info(), *given, out)
    for steps in ("narrow", "wide"):
        kernel = linear.variant(
            wide=steps == "wide", bias=bias is not None, x_stride=linear.k, y_dtype=y_dtype, rows=x.rows
        )
        low.launch(node, kernel, operands, x.rows, steps)


def _rounded(low: "Emission", node: ir.Node, x: Slot, *, fnuz: bool) -> tuple[Operand, Operand]:
    """Return x in e4m3 and its scales, rounded by a launch of its own if no earlier node did so."""
    name = f"e4m3.{required(node.inputs[0]).name}"
    made = name in low.buffers
    codes = low.buffer(Buffer(name, "arena", "u8", (x.rows, x.width)))
    scales = low.buffer(Buffer(f"{name}.scale", "arena", "f32", (x.rows, 1)))
    if not made:
        kernel = RoundRows(x.width, x.stride, fnuz, x.rows)
        low.launch(node, kernel, (x.operand, low.info(), codes, scales), x.rows)
        low.launches[-1] = replace(low.launches[-1], work=low.launches[-1].work.moving_only())
    return codes, scales


def _form(low: "Emission", node: ir.Node) -> str:
    """Return the device's form of e4m3, as Triton names it."""
    where, form = f"node '{node.name}'", ARCHITECTURES[low.architecture].fp8
    if form is None:
        raise TargetRefused(
            f"'{low.architecture}' has no matrix unit for weights in 'e4m3'; nearest are int8", where=where
        )
    columns = required(node.inputs[1]).shape
    assert columns is not None, "a weight has a shape"
    if text(node, "act_format", "") != "e4m3":
        raise TargetRefused(
            "GPU targets multiply weights in 'e4m3' with activations in e4m3, not f16; nearest are int8",
            where=where,
            hint="use cast-weights{format=e4m3 activations=e4m3}",
        )
    if integer(node, "block_rows", 1) != 1 or integer(node, "block_size", 32) != columns[1]:
        raise TargetRefused(
            "GPU targets run weights in 'e4m3' with a scale a channel",
            where=where,
            hint="use cast-weights{format=e4m3 scales=channel activations=e4m3}",
        )
    return form
