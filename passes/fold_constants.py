"""Compute at build time what depends on no input."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from tokc.ir.program import OPSET, Program
from tokc.ir.rewrite import Answer, Rewrite, initializer, rewrite


@dataclass(frozen=True)
class FoldConstants:
    """Compute nodes whose inputs are small constants, and make Constant nodes initializers.

    Before: ``two = Constant(); four = Mul(two, two); y = Add(x, four)``
    After:  ``y = Add(x, four)`` with the initializer ``four = 4``

    Only scalars and vectors of at most `limit` elements are folded: matrices are weights, and stay as they
    are stored.
    Saves the nodes. Exact, bit by bit, up to the platform's own elementary functions.
    """

    name: ClassVar[str] = "fold-constants"
    exact: ClassVar[bool] = True

    limit: int = 1024

    def run(self, program: Program) -> Program:
        return rewrite(program, self._fold)

    def _fold(self, node: ir.Node) -> Answer:
        if node.domain != "" or node.op_type.startswith("Random") or len(node.outputs) != 1:
            return None
        if not all(value is None or self._is_small(value.const_value) for value in node.inputs):
            return None
        if node.outputs[0].is_graph_output():
            return None
        result = ir.tensor(_evaluate(node), name=node.outputs[0].name)
        if node.op_type != "Constant" and not self._is_small(result):
            return None
        folded = initializer(result, f"{node.outputs[0].name}.folded")
        return Rewrite([], {node.outputs[0]: folded}, [folded])

    def _is_small(self, tensor: ir.TensorProtocol | None) -> bool:
        return tensor is not None and len(tensor.shape) <= 1 and tensor.size <= self.limit


def _evaluate(node: ir.Node) -> np.ndarray:
    """Compute a node of constants by the reference implementation of its op."""
    values = [
        None if value is None else ir.Value(name=f"in{index}", type=value.type, shape=value.shape)
        for index, value in enumerate(node.inputs)
    ]
    clone = ir.Node("", node.op_type, values, list(node.attributes.values()), num_outputs=1)
    clone.outputs[0].name = "out"
    graph = ir.Graph(
        [value for value in values if value is not None],
        clone.outputs,
        nodes=[clone],
        opset_imports={"": OPSET},
        name="fold",
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    feeds = {
        f"in{index}": np.asarray(value.const_value.numpy())
        for index, value in enumerate(node.inputs)
        if value is not None and value.const_value is not None
    }
    results: list[np.ndarray] = list(ReferenceEvaluator(proto).run(None, feeds))  # type: ignore[arg-type]
    return np.asarray(results[0])
