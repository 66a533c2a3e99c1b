"""Cuts a model's weights over chips: columns, then rows, so that two products share one sum.

Source: Shoeybi et al. 2019, arXiv:1909.08053: the projections of a block's inputs are cut by columns, the one
back to the hidden size by rows, with an all-reduce after it; the embedding and the head by vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from tokc.ir.program import Program
from tokc.targets.nodes import required
from tokc.targets.tpu.step import MODEL_AXIS, Axes

WHOLE: Axes = (None, None)
COLUMNS: Axes = (MODEL_AXIS, None)  # of [n, k]: each chip has some of the results
ROWS: Axes = (None, MODEL_AXIS)  # each chip has some of the sum
PRODUCTS = frozenset({"Linear", "QuantLinear"})
SAME_CUT = frozenset(
    {"Add", "Mul", "Sub", "Div", "Sigmoid", "Gelu", "Tanh", "GatedActivation", "Split", "Cast"}
)


@dataclass(frozen=True)
class Shardings:
    """Axes by weight, in the program's [n, k]; `attention` are those of [tokens, heads]."""

    weights: Mapping[str, Axes] = field(default_factory=dict)
    attention: Axes = (None, None)


def shardings(program: Program, chips: int) -> Shardings:
    """Return how `chips` share the weights; what does not divide evenly stays whole on each."""
    if chips == 1:
        return Shardings()
    config = program.config
    heads_cut = config.heads % chips == 0 and config.kv_heads % chips == 0
    cuts = _Cuts(chips, heads_cut)
    for node in program.graph:
        cuts.visit(node)
    return Shardings(cuts.weights, (None, MODEL_AXIS) if heads_cut else WHOLE)


class _Cuts:
    """Walks the graph in order and keeps which activations are cut on their last axis."""

    def __init__(self, chips: int, heads_cut: bool) -> None:  # noqa: FBT001 - one fact of two
        self.chips, self.heads_cut = chips, heads_cut
        self.weights: dict[str, Axes] = {}
        self.cut: set[ir.Value] = set()

    def visit(self, node: ir.Node) -> None:
        """Cut the weights of a node, and note whether its results are cut."""
        if node.op_type in PRODUCTS:
            self._product(node)
        elif node.op_type in {"Gather", "QuantEmbedding"}:
            self._table(node)
        elif node.op_type in {"RopeWriteKV", "PagedAttention"}:
            if self.heads_cut:
                self.cut.add(node.outputs[0])
        elif node.op_type in SAME_CUT and any(value in self.cut for value in node.inputs):
            self.cut.update(node.outputs)

    def _product(self, node: ir.Node) -> None:
        x, weight = required(node.inputs[0]), required(node.inputs[1])
        if x in self.cut or _attends(x):
            self._set(node, weight, ROWS)
            return
        feeds_rotation = any(use.op_type == "RopeWriteKV" for use in _readers(node.outputs[0]))
        if feeds_rotation and not self.heads_cut:
            return
        if self._set(node, weight, COLUMNS):
            self.cut.add(node.outputs[0])

    def _table(self, node: ir.Node) -> None:
        at = 1 if node.op_type == "QuantEmbedding" else 0
        table = required(node.inputs[at])
        maker = table.producer()
        if table.const_value is not None or (maker is not None and maker.op_type == "BlockDequantize"):
            self._set(node, table, COLUMNS, grid_at=at)

    def _set(self, node: ir.Node, weight: ir.Value, axes: Axes, *, grid_at: int = 1) -> bool:
        """Cut a weight with its scales and its bias; return whether their sizes allow it."""
        maker = weight.producer()
        grid = [weight, *node.inputs[grid_at + 1 : grid_at + 3]] if maker is None else list(maker.inputs)
        if node.op_type in {"Linear", "Gather"} and maker is None:
            grid = [weight]
        present = [value for value in grid if value is not None and value.const_value is not None]
        place = axes.index(MODEL_AXIS)
        done = all(_shape(value)[place] % self.chips == 0 for value in present)
        if done:
            self.weights.update({str(value.name): axes for value in present})
        bias = node.inputs[-1] if len(node.inputs) == (3 if node.op_type == "Linear" else 5) else None
        if done and axes == COLUMNS and bias is not None:
            self.weights[str(bias.name)] = (MODEL_AXIS,)
        return done


def _shape(value: ir.Value) -> list[int]:
    assert value.const_value is not None, f"'{value.name}' is no constant"
    return [int(extent) for extent in value.const_value.shape.numpy()]


def _attends(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type == "PagedAttention"


def _readers(value: ir.Value) -> list[ir.Node]:
    """Return who reads a value, looking through Split."""
    found = []
    for node, _ in value.uses():
        found += [use for out in node.outputs for use in _readers(out)] if node.op_type == "Split" else [node]
    return found
