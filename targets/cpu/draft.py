"""Lowers a draft beside its backbone: the same kernels and rules, a plan and weights of its own.

What the two share keeps the backbone's name and packing, so that it is stored and held once. The rows of
medusa's heads are `drafts`: so many for each row that is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from tokc.artifact.writer import Tensor
from tokc.errors import TargetRefused
from tokc.ir.head import FEATURES
from tokc.ir.program import Draft
from tokc.targets.cpu.codegen import Kernel
from tokc.targets.cpu.emit import HINT, LACKS, LOWER, READS, Emission, lower_embedding, wanted
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.embedding import LinearEmbedding
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.residual_silu import ResidualSilu
from tokc.targets.cpu.weights import Weights, matrix_shape, padded
from tokc.targets.lowering import Rules, Slot, lower_nodes
from tokc.targets.nodes import required
from tokc.targets.plan import Buffer, Operand, Plan, Rows


def emit_draft(
    draft: Draft, isa: Isa, limits: Mapping[str, int], backbone: Sequence[Tensor]
) -> tuple[Plan, tuple[Kernel, ...], tuple[Tensor, ...]]:
    """Return the plan (arena not yet placed), its kernels and the weights that `backbone` has not.

    Raises: TargetRefused if the draft is not in ragged form or holds a node that no CPU kernel runs.
    """
    program = draft.program
    if program.form != "ragged":
        raise TargetRefused("the CPU target runs ragged drafts only", hint="add kv-layout to the passes")
    held = {tensor.name: tensor for tensor in backbone}
    bounds = {**limits, "drafts": limits["rows"] * draft.heads}
    low = Emission(program, bounds, isa=isa, weights=Weights(isa))
    features = next(value for value in program.graph.inputs if value.name == FEATURES)
    low.slots[features] = Slot(FEATURES, program.config.hidden, program.config.hidden)
    low.buffer(Buffer(FEATURES, "input", "f32", ("tokens", program.config.hidden)))
    rules: Rules[Emission] = {
        **LOWER,
        ("", "Gather"): partial(_lower_gather, held),
        ("", "Concat"): _lower_joined_heads,
        ("tokc", "ResidualSilu"): _lower_residual_silu,
    }
    lower_nodes(low, rules, lacks=LACKS, hint=HINT, reads=READS)
    kernels = tuple(sorted(low.kernels.values(), key=lambda kernel: kernel.symbol))
    own = tuple(tensor for name, tensor in low.tensors.items() if name not in held)
    for name, tensor in low.tensors.items():
        if name in held and (held[name].dtype, held[name].shape) != (tensor.dtype, tensor.shape):
            raise AssertionError(f"'{name}' is packed in two ways")
    return low.plan(kernel.symbol for kernel in kernels), kernels, own


def _lower_gather(held: Mapping[str, Tensor], low: Emission, node: ir.Node) -> None:
    """Lower a Gather; the backbone may hold the embedding in the layout of its head."""
    table, ids = required(node.inputs[0]), required(node.inputs[1])
    packed = held.get(str(table.name))
    if packed is None or packed.dtype == "f32":
        lower_embedding(low, node)
        return
    rows, columns = matrix_shape(table)
    linear = Linear(low.isa, rows, columns, bias=False, x_stride=columns, y_stride=padded(rows))
    out = low.activation(node.outputs[0], columns, "tokens")
    operands = (low.weight(packed), low.input(str(ids.name)), out)
    low.launch(node, LinearEmbedding(linear), operands, "tokens")


def _lower_residual_silu(low: Emission, node: ir.Node) -> None:
    """Lower ResidualSilu, quantizing what it makes where that is read so; heads become rows."""
    x, y = (low.slots[required(value)] for value in node.inputs)
    made, times = node.outputs[0], y.width // x.width
    rows: Rows = "drafts" if times > 1 else x.rows
    as_float, as_int8 = wanted(made)
    operands: tuple[Operand, ...] = (x.operand, y.operand)
    if as_float or not as_int8:
        operands += (low.activation(made, x.width, rows),)
    if as_int8:
        operands += low.quantized_activation(made, x.width, rows)
    kernel = ResidualSilu(
        low.isa, x.width, times, x.stride, y.stride, quantize=as_int8, keep_float=as_float or not as_int8
    )
    low.launch(node, kernel, operands, x.rows)


def _lower_joined_heads(low: Emission, node: ir.Node) -> None:
    """Leave the logits of heads with projections of their own apart: the runtime puts them together."""
    parts = [low.slots[required(value)] for value in node.inputs]
    if not node.outputs[0].is_graph_output():
        raise TargetRefused(f"{LACKS} 'Concat' of what is no output", where=f"node '{node.name}'", hint=HINT)
    for part in parts:
        low.buffers[part.buffer] = replace(low.buffers[part.buffer], space="output")
