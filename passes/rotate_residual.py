"""Rotate the residual stream, so that no channel is larger than the others."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tokc.errors import PassFailed
from tokc.ir.head import FEATURES, output_named
from tokc.ir.inference import annotate_shapes
from tokc.ir.program import Program
from tokc.ir.rewrite import Missed, drop, initializer, remark
from tokc.passes.rotation.folding import Fold, Heads, folded_bias, folded_weight
from tokc.passes.rotation.orthogonal import Rotation
from tokc.passes.rotation.stream import Stream, head_pair, residual_stream

HEAD = "lm_head.weight"
HEADS_SEED = 1 << 32  # seeds of heads' rotations are apart from those of streams


@dataclass(frozen=True)
class RotateResidual:
    """Fold norm weights into what reads the norm, and an orthogonal matrix R into all about the stream.

    Before: ``x = Gather(e, ids); n = RMSNorm(x, g); x' = Add(x, Linear(act(Linear(n, w)), o))``
    After:  ``x = Gather(e R, ids); n = RMSNorm(x, 1); x' = Add(x, Linear(act(Linear(n, w g R)), R.T o))``

    Every channel of the rotated stream is a mixture of all, so that weights and activations lose their
    outliers and a grid fits them better (Ashkboos et al. 2024, QuaRot, arXiv:2404.00456; Liu et al. 2024,
    SpinQuant, arXiv:2405.16406). R is a Hadamard matrix where one is known for the width, with signs by
    `seed`. `heads=true` turns each head of v as well, and back in the weight that reads attention's output.
    All of it is in the weights: the program has the same nodes, and nothing is computed beside them.

    Weights are rotated when they are read, in f64; a weight that was stored on a grid leaves it. The norm
    before the head is folded into the head alone, so a table that was the embedding and the head at once is
    stored twice: ``vocab * hidden`` more weights, at the head's bits.
    Exact up to the order of the sum. Norms that stand between a layer and the stream, as Gemma 3 and OLMo 2
    have them, scale the unrotated channels and cannot be folded: such programs are refused.
    """

    name: ClassVar[str] = "rotate-residual"
    exact: ClassVar[bool] = True

    heads: bool = True
    seed: int = 0

    def run(self, program: Program) -> Program:
        if output_named(program.graph, FEATURES) is not None:
            raise PassFailed(
                "rotate-residual would turn the features that a draft reads",
                hint="leave out one of the two: rotate-residual, or the draft",
            )
        copy = program.copy()
        annotate_shapes(copy.graph)
        stream = residual_stream(copy)
        folds = _stream_folds(stream, Rotation(copy.config.hidden, self.seed))
        if self.heads:
            self._fold_heads(copy, folds)
        _put_ones(copy.graph, stream)
        _put_folded(copy.graph, folds)
        return copy.replace(config=replace(copy.config, tied_embedding=False))

    def _fold_heads(self, program: Program, folds: dict[ir.Node, Fold]) -> None:
        """Add the rotation of each layer's heads of v to what makes and what reads them."""
        attentions = [node for node in program.graph if node.op_type == "Attention"]
        dim = program.config.head_dim
        for layer, node in enumerate(attentions):
            pair = head_pair(node)
            if isinstance(pair, Missed):
                remark(pair)
                continue
            rotation = Rotation(dim, self.seed + (layer + 1) * HEADS_SEED)
            rows = Heads(rotation, pair.start, pair.stop)
            columns = Heads(rotation, 0, program.config.heads * dim)
            folds[pair.value] = replace(folds.get(pair.value, Fold()), head_rows=rows)
            folds[pair.output] = replace(folds.get(pair.output, Fold()), head_columns=columns)


def _stream_folds(stream: Stream, rotation: Rotation) -> dict[ir.Node, Fold]:
    """Return what each node's weight takes in for the stream to turn."""
    folds = {node: Fold(reads=rotation) for node in stream.embeddings}
    for node, norm in stream.readers.items():
        folds[node] = Fold(norm=None if norm is None else norm.const_value, reads=rotation)
    for node in stream.writers:
        folds[node] = replace(folds.get(node, Fold()), writes=rotation)
    return folds


def _put_ones(graph: ir.Graph, stream: Stream) -> None:
    """Let the norms of the stream scale nothing: what reads them does."""
    for weight in dict.fromkeys(node.inputs[-1] for node in stream.norms):
        assert weight is not None, "a norm has a weight"
        assert weight.shape is not None, f"'{weight.name}' has no shape"
        ones = np.ones([int(dim) for dim in weight.shape.numpy()], np.float32)
        _exchange(graph, weight, initializer(ir.tensor(ones), str(weight.name)), stream.norms)


def _put_folded(graph: ir.Graph, folds: Mapping[ir.Node, Fold]) -> None:
    """Let every node read its folded weight and bias; a weight that is folded in two ways becomes two."""
    groups: dict[tuple[ir.Value, Fold], list[ir.Node]] = {}
    for node in graph:
        if node in folds:
            weight = node.inputs[0 if node.op_type == "Gather" else 1]
            assert weight is not None, "a Linear and a Gather have a weight"
            groups.setdefault((weight, folds[node]), []).append(node)
    for (weight, fold), nodes in reversed(groups.items()):  # the first that reads a weight gets its name
        _exchange(graph, weight, folded_weight(weight, fold), nodes)
    for (_, fold), nodes in groups.items():
        for bias in dict.fromkeys(_bias(node) for node in nodes):
            if bias is not None and fold.turns_rows:
                _exchange(graph, bias, folded_bias(bias, fold), nodes)


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if node.op_type == "Linear" and len(node.inputs) > 2 else None


def _exchange(graph: ir.Graph, old: ir.Value, new: ir.Value, nodes: Collection[ir.Node]) -> None:
    """Let `nodes` read `new` for `old`, which goes if no other reads it and leaves its name."""
    for use in list(old.uses()):
        if use.node in nodes:
            use.node.replace_input_with(use.idx, new)
    name = str(old.name)
    drop(graph, old)
    if old.uses():
        name = HEAD if HEAD not in graph.initializers else f"{name}.rotated"
    new.name = name
    graph.register_initializer(new)
