"""In which dtype a value of the program is read on a GPU: f16 by what multiplies matrices, else f32."""

from typing import TYPE_CHECKING

import onnx_ir as ir

from tokc.errors import TargetRefused
from tokc.targets.lowering import Float, Slot
from tokc.targets.nodes import required

if TYPE_CHECKING:
    from tokc.targets.gpu.emit import Emission

READS_HALF = frozenset(
    {
        *("Linear", "QuantLinear", "MoeLinear", "QuantMoeLinear"),
        *("GatedActivation", "RopeWriteKV", "PagedAttention"),
    }
)


def reads_half(value: ir.Value) -> tuple[bool, bool]:
    """Return whether `value` is read as f32, and whether it is read as f16."""
    half, single = False, value.is_graph_output()
    for node, _ in value.uses():
        if node.op_type in {"Split", "Gather"}:
            for output in node.outputs:
                inner_single, inner_half = reads_half(output)
                single, half = single or inner_single, half or inner_half
        elif node.op_type in READS_HALF:
            half = True
        else:
            single = True
    return single, half


def only_dtype(node: ir.Node) -> Float:
    """Return the dtype in which a node's result is read.

    Raises: TargetRefused if it is read in both.
    """
    single, half = reads_half(node.outputs[0])
    if single and half:
        raise TargetRefused(
            f"the result of '{node.op_type}' is read as f32 and as f16, which no GPU kernel writes",
            where=f"node '{node.name}'",
        )
    return "f16" if half else "f32"


def single(low: "Emission", node: ir.Node, index: int) -> Slot:
    """Return an input that must be f32."""
    slot = low.slots[required(node.inputs[index])]
    if slot.dtype != "f32":
        raise TargetRefused(
            f"'{node.op_type}' reads f32 on a GPU, its input is {slot.dtype}", where=f"node '{node.name}'"
        )
    return slot
