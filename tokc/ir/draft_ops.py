"""Meaning and shape of what Medusa's heads compute before the vocabulary projection."""

import onnx_ir as ir

from tokc.ir.bodies import Call
from tokc.ir.shapes import F32, Typed, dims, shape_of


def residual_silu(call: Call) -> str:
    """Compute ``out[.., k, :] = x + silu(y[.., k * H : (k + 1) * H])`` for every head k, H the width of x.

    With joint 0 it is ``x + silu(y)`` of one head.
    """
    curved = """
        half = Sigmoid(heads)
        curved = Mul(heads, half)"""
    if not call.integer("joint"):
        return f"""
        heads = Identity(y){curved}
        out = Add(x, curved)"""
    width, joint = call.dim("x", -1), call.dim("y", -1)
    shape = call.shapes["x"]
    assert shape is not None, "the shape of x is known: its width is"
    cut = ", ".join(["0"] * (len(shape) - 1) + [str(joint // width), str(width)])
    return f"""
        cut = Constant<value_ints=[{cut}]>()
        heads = Reshape(y, cut){curved}
        axis = Constant<value_ints=[-2]>()
        plain = Unsqueeze(x, axis)
        out = Add(plain, curved)"""


def residual_silu_shape(node: ir.Node) -> list[Typed]:
    """Return f32 [.., K, H] of x [.., H] and y [.., K * H]; with joint 0 x's shape."""
    x, y = dims(node, 0), dims(node, 1)
    if x is not None and not node.attributes.get_int("joint", 1):
        return [(F32, shape_of(x))]
    if x is None or y is None or not isinstance(x[-1], int) or not isinstance(y[-1], int):
        return [(F32, None)]
    return [(F32, shape_of([*x[:-1], y[-1] // x[-1], x[-1]]))]
