"""Reads nodes of a program's graph: their attributes, their inputs, and the layer that they belong to."""

from collections.abc import Mapping
from itertools import pairwise

import onnx_ir as ir

from tokc.errors import TargetRefused
from tokc.ir.ops import attributes_of, named_inputs, op_of
from tokc.ir.verify import TREE_INPUTS

SLOTS_RANK = 3  # [tokens, k, width]
# What of an op every target's rule reads; another attribute may only have the value that changes nothing.
READ: Mapping[str, frozenset[str]] = {
    "AddRmsNorm": frozenset({"epsilon"}),
    "GatedActivation": frozenset({"activation"}),
    "RopeWriteKV": frozenset({"heads", "kv_heads", "epsilon", "dtype"}),
    "PagedAttention": frozenset({"heads", "kv_heads", "scale", "window"}),
}


def layer_of(node: ir.Node) -> int | None:
    """Return the decoder layer that a node belongs to, read from the names of its weights and outputs."""
    for value in (*node.inputs, *node.outputs):
        parts = (value.name or "").split(".") if value is not None else []
        for before, part in pairwise(parts):
            if before in {"layers", "kv"} and part.isdigit():
                return int(part)
    return None


def refuse_attributes(node: ir.Node, *, lacks: str, reads: frozenset[str] = frozenset()) -> None:
    """Refuse an attribute that changes what an op computes and that a target does not read.

    `reads` are those that the target reads besides READ, as "Op.attribute"; the inputs of trees are alike.
    Raises: TargetRefused naming op, attribute and value; it begins with `lacks`.
    """
    op = op_of(node)
    if op is None or op.name not in READ:
        return
    for name, value in attributes_of(op, node).items():
        if value != op.attributes[name] and name not in READ[op.name] and f"{op.name}.{name}" not in reads:
            raise TargetRefused(
                f"{lacks} '{op.name}' with {name} {value}",
                where=f"node '{node.name}'",
                hint="build for a target that has it, such as cpu, or choose another model",
            )
    for name, _ in named_inputs(op, node):
        if name in TREE_INPUTS and f"{op.name}.{name}" not in reads:
            raise TargetRefused(
                f"{lacks} '{op.name}' with {name}",
                where=f"node '{node.name}'",
                hint="leave out admit-trees, or build for cpu",
            )


def slots_of(value: ir.Value) -> int:
    """Return how many slots a token has in a value, 1 where it has no axis of slots."""
    shape = value.shape
    return shape[1] if shape is not None and len(shape) == SLOTS_RANK and isinstance(shape[1], int) else 1


def integer(node: ir.Node, name: str, default: int = 0) -> int:
    """Return an integer attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def number(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute."""
    return node.attributes[name].as_float() if name in node.attributes else default


def text(node: ir.Node, name: str, default: str) -> str:
    """Return a string attribute."""
    return node.attributes[name].as_string() if name in node.attributes else default


def required(value: ir.Value | None) -> ir.Value:
    """Return an input that the op's row says is never absent."""
    if value is None:
        raise AssertionError("a required input is absent; verify should have refused the program")
    return value


def split_widths(node: ir.Node) -> list[int]:
    """Return the widths of a Split's outputs from its constant second input."""
    sizes = required(node.inputs[1]).const_value
    if sizes is None:
        raise AssertionError("fuse-qkv splits at constant widths")
    return [int(size) for size in sizes.numpy()]
