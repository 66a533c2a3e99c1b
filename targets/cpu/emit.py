"""Lowers a ragged program to a Plan for the CPU, with the kernels and packed weights that it needs.

Every node becomes at most one launch. Three things are decided here and nowhere else: a Split is a view,
not a copy; an activation that a QuantLinear reads is quantized by the kernel that produced it where that
kernel can; the cache is updated in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from tokc.artifact.writer import Tensor
from tokc.cost.launch_work import LaunchWork
from tokc.errors import TargetRefused
from tokc.ir.ops import OPS, named_inputs
from tokc.ir.program import Program
from tokc.ir.verify import TREE_INPUTS
from tokc.runtime.executors.base import BLOCK_MAXIMA, BLOCK_SUMS, LIKELIEST, SCALES
from tokc.targets.cpu.codegen import Kernel
from tokc.targets.cpu.experts import (
    Routing,
    lower_moe_combine,
    lower_moe_linear,
    lower_moe_router,
    lower_quant_moe_linear,
)
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.arg_max import ArgMax
from tokc.targets.cpu.kernels.elementwise import Add, Apply, GatherRows, Multiply, Scale
from tokc.targets.cpu.kernels.gated_activation import GatedActivation
from tokc.targets.cpu.kernels.layer_norm import LayerNorm
from tokc.targets.cpu.kernels.logit_blocks import WIDTH as BLOCK_WIDTH
from tokc.targets.cpu.kernels.logit_blocks import LogitBlocks
from tokc.targets.cpu.kernels.paged_attention import PagedAttention
from tokc.targets.cpu.kernels.quantize import Quantize
from tokc.targets.cpu.kernels.rms_norm import RmsNorm
from tokc.targets.cpu.kernels.rope_write_kv import RopeWriteKV
from tokc.targets.cpu.weights import Weights
from tokc.targets.lowering import Lowering, Rules, Slot, lower_nodes, lower_split, skip
from tokc.targets.nodes import integer, layer_of, number, required, slots_of, text
from tokc.targets.plan import Buffer, Launch, Operand, Plan, Rows
from tokc.targets.work import launch_work

GROUP = 32
LACKS = "the CPU target has no kernel for"
HINT = "it runs the forms that the default passes leave; see `tokc targets cpu`"
# Attributes and inputs that its rules heed.
READS = frozenset(
    {
        *("PagedAttention.softcap", "PagedAttention.bits"),
        *("RopeWriteKV.entries", "PagedAttention.entries", "PagedAttention.ancestors"),
    }
)
INT8_READERS = frozenset({"QuantLinear", "QuantMoeLinear"})


@dataclass(frozen=True)
class QuantizedSlot:
    """The int8 form of a value: quants [rows, width], scales and sums [rows, width / 32]."""

    quants: str
    scales: str
    sums: str

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Return the three pointers in the order in which kernels take them."""
        return Operand(self.quants), Operand(self.scales), Operand(self.sums)


@dataclass
class Emission(Lowering):
    """A lowering for an instruction set, the int8 forms of values, and what routers chose."""

    isa: Isa = field(kw_only=True)
    weights: Weights = field(kw_only=True)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    quantized: dict[ir.Value, QuantizedSlot] = field(default_factory=dict)
    routings: dict[ir.Value, Routing] = field(default_factory=dict)

    def quantized_activation(self, value: ir.Value, width: int, rows: Rows) -> tuple[Operand, ...]:
        """Give `value` the three arena buffers of its int8 form."""
        slot = QuantizedSlot(f"q.{value.name}", f"s.{value.name}", f"t.{value.name}")
        self.quantized[value] = slot
        self.buffer(Buffer(slot.quants, "arena", "i8", (rows, width)))
        self.buffer(Buffer(slot.scales, "arena", "f32", (rows, width // GROUP)))
        self.buffer(Buffer(slot.sums, "arena", "i32", (rows, width // GROUP)))
        return slot.operands

    def as_int8(self, node: ir.Node, value: ir.Value) -> QuantizedSlot:
        """Return the int8 form of `value` for `node`, quantizing it now if nobody has."""
        if value not in self.quantized:
            x = self.slots[value]
            target = self.quantized_activation(value, x.width, x.rows)
            self.launch(node, Quantize(self.isa, x.width, x.stride), (x.operand, *target), x.rows)
            done = self.launches[-1]
            self.launches[-1] = replace(done, op="Quantize", work=done.work.moving_only())
        return self.quantized[value]

    def info(self) -> Operand:
        """Return the pointer to the step's own sizes: tokens, logit rows, seqs, block stride."""
        return self.buffer(Buffer("info", "input", "i32", (4,)))

    def launch(self, node: ir.Node, kernel: Kernel, operands: tuple[Operand, ...], rows: Rows) -> None:
        """Append a launch of `kernel` for `node`."""
        if len(operands) != len(kernel.args):
            raise AssertionError(f"{kernel.symbol} takes {kernel.args}, got {len(operands)} operands")
        self.kernels.setdefault(kernel.symbol, kernel)
        work = launch_work(node, [self.buffers[each.buffer] for each in operands], self.page_layout()[0])
        self.launches.append(Launch(kernel.symbol, operands, rows, node.op_type, layer_of(node), work))


def emit(
    program: Program, isa: Isa, limits: Mapping[str, int]
) -> tuple[Plan, tuple[Kernel, ...], tuple[Tensor, ...]]:
    """Return the plan (arena not yet placed), its kernels in the plan's order and its weights.

    Raises: TargetRefused if the program is not in ragged form or holds a node that no CPU kernel runs.
    """
    if program.form != "ragged":
        raise TargetRefused("the CPU target runs ragged programs only", hint="add kv-layout to the passes")
    lowering = Emission(program, limits, isa=isa, weights=Weights(isa))
    lower_nodes(
        lowering,
        LOWER,
        lacks=LACKS,
        hint=HINT,
        reads=READS,
    )
    find_likeliest(lowering)
    kernels = tuple(sorted(lowering.kernels.values(), key=lambda kernel: kernel.symbol))
    plan = lowering.plan(kernel.symbol for kernel in kernels)
    return plan, kernels, tuple(lowering.tensors.values())


def find_likeliest(low: Emission) -> None:
    """End the step with the likeliest token of each row of logits: a greedy choice then reads one number."""
    logits = low.slots[low.program.graph.outputs[0]]
    kernel = ArgMax(low.isa, min(logits.width, low.program.config.vocab), logits.stride)
    low.kernels.setdefault(kernel.symbol, kernel)
    tokens = low.buffer(Buffer(LIKELIEST, "output", "i32", ("rows", 1)))
    work = LaunchWork(row_bytes=4 * (kernel.vocab + 1))
    low.launches.append(Launch(kernel.symbol, (logits.operand, tokens), "rows", "ArgMax", None, work))
    if kernel.vocab % BLOCK_WIDTH == 0:
        _look_at_blocks(low, logits, kernel.vocab, tokens)


def _look_at_blocks(low: Emission, logits: Slot, vocab: int, tokens: Operand) -> None:
    """End the step with what drawing needs of the rows that are drawn from; greedy ones cost nothing."""
    kernel = LogitBlocks(low.isa, vocab, logits.stride)
    low.kernels.setdefault(kernel.symbol, kernel)
    scales = low.buffer(Buffer(SCALES, "input", "f32", ("rows",)))
    outputs = [
        low.buffer(Buffer(name, "output", "f32", ("rows", vocab // BLOCK_WIDTH)))
        for name in (BLOCK_MAXIMA, BLOCK_SUMS)
    ]
    operands, work = (logits.operand, tokens, scales, *outputs), LaunchWork(row_bytes=4)
    low.launches.append(Launch(kernel.symbol, operands, "rows", "LogitBlocks", None, work))


def wanted(value: ir.Value) -> tuple[bool, bool]:
    """Return whether `value` is read as f32, and whether it is read as int8."""
    readers = [node for node, _ in value.uses()]
    as_int8 = [
        n.op_type in INT8_READERS and integer(n, "act_group", GROUP) == GROUP and n.inputs[0] is value
        for n in readers
    ]
    return value.is_graph_output() or not all(as_int8), any(as_int8)


def outputs_of(
    low: Emission, value: ir.Value, width: int, rows: Rows
) -> tuple[bool, bool, tuple[Operand, ...]]:
    """Return (as f32, as int8, pointers) for a kernel that can write either form."""
    as_float, as_int8 = wanted(value)
    as_float = as_float or not as_int8
    operands: tuple[Operand, ...] = ()
    if as_float:
        operands += (low.activation(value, width, rows),)
    if as_int8:
        operands += low.quantized_activation(value, width, rows)
    return as_float, as_int8, operands


def lower_embedding(low: Emission, node: ir.Node) -> None:
    """Gather rows of a table: token embedding, or the rows whose logits are wanted."""
    source, ids = required(node.inputs[0]), required(node.inputs[1])
    if ids.name == "logit_rows":
        slot = low.slots[source]
        kernel = GatherRows(low.isa, slot.width, slot.stride)
        out = low.activation(node.outputs[0], slot.width, "rows")
        low.launch(node, kernel, (slot.operand, low.input("logit_rows"), out), "rows")
        return
    table, gather = low.weights.embedding(source)
    out = low.activation(node.outputs[0], low.program.config.hidden, "tokens")
    low.launch(node, gather, (low.weight(table), low.input(ids.name or ""), out), "tokens")


def lower_quant_embedding(low: Emission, node: ir.Node) -> None:
    """Gather and dequantize rows of the quantized embedding."""
    table, kernel = low.weights.quant_embedding(node)
    out = low.activation(node.outputs[0], low.program.config.hidden, "tokens")
    ids = required(node.inputs[0]).name or ""
    low.launch(node, kernel, (low.weight(table), low.input(ids), out), "tokens")


def lower_norm(low: Emission, node: ir.Node) -> None:
    """Lower RMSNormalization and AddRmsNorm, quantizing the result where it is read so."""
    add = node.op_type == "AddRmsNorm"
    x = low.slots[required(node.inputs[0])]
    operands: tuple[Operand, ...] = (x.operand,)
    if add:
        residual = low.slots[required(node.inputs[1])]
        if residual.stride != x.stride:
            raise AssertionError("the residual stream has one stride")
        operands += (residual.operand, low.activation(node.outputs[0], x.width, x.rows, x.stride))
    weight = low.weights.vector(required(node.inputs[2 if add else 1]))
    value = node.outputs[1 if add else 0]
    as_float, as_int8, out = outputs_of(low, value, x.width, x.rows)
    kernel = RmsNorm(low.isa, x.width, x.stride, number(node, "epsilon", 1e-5), add, as_int8, as_float)
    low.launch(node, kernel, (*operands, low.weight(weight), *out), x.rows)


def lower_layer_norm(low: Emission, node: ir.Node) -> None:
    """Lower LayerNormalization, quantizing the result where it is read so."""
    x = low.slots[required(node.inputs[0])]
    vectors = [low.weight(low.weights.vector(value)) for value in node.inputs[1:] if value is not None]
    as_float, as_int8, out = outputs_of(low, node.outputs[0], x.width, x.rows)
    epsilon, bias = number(node, "epsilon", 1e-5), len(vectors) > 1
    kernel = LayerNorm(low.isa, x.width, x.stride, epsilon, bias, as_int8, as_float)
    low.launch(node, kernel, (x.operand, *vectors, *out), x.rows)


def lower_linear(low: Emission, node: ir.Node) -> None:
    """Lower Linear over f32 weights."""
    x = low.slots[required(node.inputs[0])]
    weight, bias, kernel = low.weights.linear(node, x.stride)
    out = low.activation(node.outputs[0], kernel.n, x.rows, kernel.y_stride)
    operands = (low.weight(weight), x.operand, *([low.weight(bias)] if bias else []), out)
    low.launch(node, kernel, operands, x.rows)


def lower_quant_linear(low: Emission, node: ir.Node) -> None:
    """Lower QuantLinear, quantizing its input first if nobody has."""
    value = required(node.inputs[0])
    if integer(node, "act_group", GROUP) != GROUP:
        raise TargetRefused(
            f"QuantLinear with act_group={integer(node, 'act_group')} does not run on the CPU",
            where=f"node '{node.name}'",
            hint=f"use quantize-weights{{act_group={GROUP}}}",
        )
    weight, bias, kernel = low.weights.quant_linear(node)
    quantized = low.as_int8(node, value)
    rows: Rows = low.buffers[quantized.quants].shape[0]  # type: ignore[assignment]
    out = low.activation(node.outputs[0], kernel.n, rows, kernel.y_stride)
    operands = (low.weight(weight), *quantized.operands, *([low.weight(bias)] if bias else []), out)
    low.launch(node, kernel, operands, rows)


def lower_gated_activation(low: Emission, node: ir.Node) -> None:
    """Lower GatedActivation over the joint gate and up projection, in every slot where there are several."""
    x = low.slots[required(node.inputs[0])]
    width = x.width // 2
    as_float, as_int8, out = outputs_of(low, node.outputs[0], width, x.rows)
    times, activation = slots_of(node.outputs[0]), text(node, "activation", "silu")
    kernel = GatedActivation(
        low.isa, width // times, x.stride // times, activation, as_int8, as_float, times=times
    )
    low.launch(node, kernel, (x.operand, *out), x.rows)


def lower_rope_write_kv(low: Emission, node: ir.Node) -> None:
    """Lower RopeWriteKV; the cache it returns is the cache it was given."""
    q, k, v, cos, sin, positions, sequences, tables, *rest = node.inputs
    caches, norms = tuple(rest[:4]), [n for n in rest[4:6] if n is not None]
    entries = [n for n in rest[6:] if n is not None]
    slots = [low.slots[required(value)] for value in (q, k, v)]
    heads, kv_heads = integer(node, "heads"), integer(node, "kv_heads")
    dim = low.program.config.head_dim
    kernel = RopeWriteKV(
        isa=low.isa,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        q_stride=slots[0].stride,
        k_stride=slots[1].stride,
        v_stride=slots[2].stride,
        kv_dtype=low.page_layout()[1],
        page=low.page_layout()[0],
        qk_norm=bool(norms),
        epsilon=number(node, "epsilon", 1e-6),
        trees=bool(entries),
    )
    vectors = [low.weight(low.weights.vector(required(value))) for value in (cos, sin, *norms)]
    batch = [low.input(required(value).name or "") for value in (positions, sequences, tables, *entries)]
    out = low.activation(node.outputs[0], heads * dim, "tokens")
    operands = (*(s.operand for s in slots), *vectors, *batch, low.info(), out, *low.caches(caches))
    low.launch(node, kernel, operands, "tokens")


def lower_paged_attention(low: Emission, node: ir.Node) -> None:
    """Lower PagedAttention."""
    q, *caches = node.inputs[:5]
    heads, dim = integer(node, "heads"), low.program.config.head_dim
    as_float, as_int8, out = outputs_of(low, node.outputs[0], heads * dim, "tokens")
    kernel = PagedAttention(
        isa=low.isa,
        heads=heads,
        kv_heads=integer(node, "kv_heads"),
        dim=dim,
        page=low.page_layout()[0],
        kv_dtype=low.page_layout()[1],
        scale=number(node, "scale", dim**-0.5),
        window=integer(node, "window"),
        context=low.limits["context"],
        quantize=as_int8,
        keep_float=as_float,
        softcap=number(node, "softcap", 0.0),
        trees="ancestors" in {name for name, _ in named_inputs(OPS["PagedAttention"], node)},
    )
    scratch = low.buffer(Buffer("attention.scratch", "scratch", "u8", (kernel.scratch_bytes,)))
    tree = TREE_INPUTS if kernel.trees else ()
    batch = [low.input(name) for name in ("positions", "sequences", "block_tables", *tree)]
    operands = (
        low.slots[required(q)].operand,
        *low.caches(tuple(caches)),
        *batch,
        low.info(),
        scratch,
        *out,
    )
    low.launch(node, kernel, operands, "tokens")


def lower_add(low: Emission, node: ir.Node) -> None:
    """Lower a residual add that no norm took in."""
    a, b = (low.slots[required(value)] for value in node.inputs)
    out = low.activation(node.outputs[0], a.width, a.rows)
    low.launch(node, Add(low.isa, a.width, a.stride, b.stride), (a.operand, b.operand, out), a.rows)


def lower_product(low: Emission, node: ir.Node) -> None:
    """Lower a product of two activations, or of one with a constant scalar."""
    values = [required(value) for value in node.inputs]
    constants = [value for value in values if value.const_value is not None]
    if not constants:
        a, b = (low.slots[value] for value in values)
        out = low.activation(node.outputs[0], a.width, a.rows)
        low.launch(node, Multiply(low.isa, a.width, a.stride, b.stride), (a.operand, b.operand, out), a.rows)
        return
    if constants[0].const_value is None or constants[0].const_value.size != 1:
        raise TargetRefused("the CPU target multiplies by constant scalars only", where=f"node '{node.name}'")
    factor = float(constants[0].const_value.numpy().reshape(()))
    x = low.slots[next(value for value in values if value is not constants[0])]
    width = whole_width(x)
    out = low.activation(node.outputs[0], x.width, x.rows, width)
    low.launch(node, Scale(low.isa, width, x.stride, factor), (x.operand, out), x.rows)


def lower_activation(low: Emission, node: ir.Node) -> None:
    """Lower an activation that no gated projection took in."""
    exact = text(node, "approximate", "none") != "tanh"
    gelu = "gelu" if exact else "gelu_tanh"
    x = low.slots[required(node.inputs[0])]
    width = whole_width(x)
    out = low.activation(node.outputs[0], x.width, x.rows, width)
    function = {"Sigmoid": "sigmoid", "Gelu": gelu, "Tanh": "tanh"}[node.op_type]
    low.launch(node, Apply(low.isa, width, x.stride, function), (x.operand, out), x.rows)


def whole_width(x: Slot) -> int:
    """Return the width to compute: the padding too where a row ends within a group, as logits may."""
    return x.width if x.width % GROUP == 0 or x.column else x.stride


LOWER: Rules[Emission] = {
    ("", "Gather"): lower_embedding,
    ("", "RMSNormalization"): lower_norm,
    ("", "LayerNormalization"): lower_layer_norm,
    ("", "Split"): lower_split,
    ("", "Add"): lower_add,
    ("", "Mul"): lower_product,
    ("", "Sigmoid"): lower_activation,
    ("", "Gelu"): lower_activation,
    ("", "Tanh"): lower_activation,
    ("tokc", "QuantEmbedding"): lower_quant_embedding,
    ("tokc", "AddRmsNorm"): lower_norm,
    ("tokc", "Linear"): lower_linear,
    ("tokc", "QuantLinear"): lower_quant_linear,
    ("tokc", "BlockDequantize"): skip,
    ("tokc", "GatedActivation"): lower_gated_activation,
    ("tokc", "RopeWriteKV"): lower_rope_write_kv,
    ("tokc", "PagedAttention"): lower_paged_attention,
    ("tokc", "MoeRouter"): lower_moe_router,
    ("tokc", "MoeLinear"): lower_moe_linear,
    ("tokc", "QuantMoeLinear"): lower_quant_moe_linear,
    ("tokc", "MoeCombine"): lower_moe_combine,
}
