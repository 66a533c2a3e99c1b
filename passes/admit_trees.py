"""Let a step verify trees of drafted tokens."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from tokc.errors import PassFailed
from tokc.ir.ops import OPS
from tokc.ir.program import Program
from tokc.ir.verify import TREE_INPUTS


@dataclass(frozen=True)
class AdmitTrees:
    """Let tokens of one step be alternatives to each other: a tree that grows from a sequence's last token.

    Before: ``RopeWriteKV(.., positions, ..)``, ``PagedAttention(.., positions, ..)`` over [tokens, ..]
    After:  ``RopeWriteKV(.., entries)``, ``PagedAttention(.., entries, ancestors)``

    A token's key and value go to entry ``entries`` i64[tokens] of its sequence's cache, while ``positions``
    stays what rotates them. It sees the entries before its tree, its own, and those of its ancestors in the
    tree: bit i of ``ancestors`` i64[tokens] is entry i of the tree, which begins at the position less the
    number of ancestors. For a token that continues its sequence they are its position and 0, and nothing
    changes. Needs kv-layout. Exact.
    Source: Miao et al. 2024 (SpecInfer), arXiv:2305.09781, for verifying a tree in one step.
    """

    name: ClassVar[str] = "admit-trees"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        if program.form != "ragged":
            raise PassFailed("admit-trees finds no paged cache", hint="run kv-layout before admit-trees")
        if any(value.name in TREE_INPUTS for value in program.graph.inputs):
            return program
        copy = program.copy()
        made = {name: _input(name) for name in TREE_INPUTS}
        nodes = [node for node in copy.graph if node.op_type in {"RopeWriteKV", "PagedAttention"}]
        for node in nodes:
            names = [name.removesuffix("?") for name in OPS[node.op_type].inputs]
            node.resize_inputs(len(names))
            for name in TREE_INPUTS:
                if name in names:
                    node.replace_input_with(names.index(name), made[name])
        copy.graph.inputs.extend(made.values())
        return copy if nodes else program


def _input(name: str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(["tokens"]), type=ir.TensorType(ir.DataType.INT64))
