"""Weights of layers of experts: quantized one expert after the other, and the nodes that read them."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from tokc.ir.ops import make_node
from tokc.ir.rewrite import Missed, remark
from tokc.passes.quantization.grid import Quantized

UNCALIBRATED = (
    "it reads experts, each of which sees too few tokens of a calibration text: "
    "they are quantized by what goes with the method where there is nothing to calibrate on"
)


def is_experts(node: ir.Node) -> bool:
    """Return whether a node is a linear layer of experts."""
    return (node.domain, node.op_type) == ("tokc", "MoeLinear")


def calibratable(readers: Mapping[ir.Value, list[ir.Node]]) -> dict[ir.Value, list[ir.Node]]:
    """Return the weights that no experts read, and remark on the others."""
    kept = {}
    for value, nodes in readers.items():
        experts = [node for node in nodes if is_experts(node)]
        for node in experts:
            remark(Missed(node, UNCALIBRATED))
        if not experts:
            kept[value] = nodes
    return kept


def quant_moe_linear(
    node: ir.Node, operands: Sequence[ir.Value | None], attributes: Mapping[str, int | float | str]
) -> ir.Node:
    """Return the quantized counterpart of a MoeLinear; `operands` are codes, scale and offset."""
    x, _, chosen = node.inputs
    given = {**attributes, "experts": node.attributes.get_int("experts", 1)}
    return make_node("QuantMoeLinear", [x, *operands, chosen], given)


def joined(parts: Sequence[Quantized]) -> Quantized:
    """Put quantized weights one above the other."""
    if len(parts) == 1:
        return parts[0]
    offsets = [part.offset for part in parts if part.offset is not None]
    return Quantized(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate(offsets) if offsets else None,
    )
