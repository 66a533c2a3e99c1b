"""Lowers a ragged program to a Plan for a GPU, with the kernels and packed weights that it needs.

Three things are decided here and nowhere else: what feeds a matrix product or the attention is f16 and the
residual stream is f32; a Split is a view, not a copy; and each matrix product and attention has a kernel for
steps of few tokens and one for wide steps, which give a token the same bits.
"""

from dataclasses import dataclass, field, replace

import onnx_ir as ir

from tokc.artifact.writer import Tensor
from tokc.cost.launch_work import LaunchWork
from tokc.errors import TargetRefused
from tokc.ir.program import Program
from tokc.runtime.executors.base import LIKELIEST
from tokc.targets.base import Limits
from tokc.targets.constants import shape_of
from tokc.targets.gpu import weights
from tokc.targets.gpu.emit_elementwise import lower_activation, lower_add, lower_product
from tokc.targets.gpu.emit_floats import FORMATS, lower_float_linear
from tokc.targets.gpu.experts import Routing, lower_moe_combine, lower_moe_linear, lower_moe_router
from tokc.targets.gpu.kernel import INFO_SIZE, NARROW_TOKENS, Kernel
from tokc.targets.gpu.kernels.embedding import Embedding, QuantEmbedding
from tokc.targets.gpu.kernels.gated_activation import GatedActivation
from tokc.targets.gpu.kernels.gather_rows import GatherRows
from tokc.targets.gpu.kernels.paged_attention import PagedAttention
from tokc.targets.gpu.kernels.rms_norm import RmsNorm
from tokc.targets.gpu.kernels.rope_write_kv import RopeWriteKV
from tokc.targets.gpu.kernels.sampling import ArgMax
from tokc.targets.gpu.meetings import lower_join_over_ranks, lower_sum_over_ranks
from tokc.targets.gpu.reads import only_dtype, reads_half, single
from tokc.targets.gpu.sharding import DOMAIN, JOIN, SUM
from tokc.targets.lowering import Lowering, Rules, Slot, lower_nodes, lower_split, skip
from tokc.targets.nodes import integer, layer_of, number, required, slots_of, text
from tokc.targets.plan import Buffer, Launch, Operand, Plan, Rows, Steps
from tokc.targets.work import launch_work

POINTER_BYTES = 16


@dataclass
class Emission(Lowering):
    """A lowering for a GPU."""

    architecture: str = field(kw_only=True)
    ranks: int = 1
    kernels: dict[str, Kernel] = field(default_factory=dict)
    halves: dict[ir.Value, Slot] = field(default_factory=dict)
    routings: dict[ir.Value, Routing] = field(default_factory=dict)

    def half(self, value: ir.Value, width: int, rows: Rows) -> Operand:
        """Give `value` a buffer f16[rows, width], beside that in f32 if it has one."""
        slot = Slot(f"h.{value.name}", width, width, rows=rows, dtype="f16")
        self.halves[value] = slot
        self.slots.setdefault(value, slot)
        return self.buffer(Buffer(slot.buffer, "arena", "f16", (rows, width)))

    def read_half(self, node: ir.Node, index: int) -> Slot:
        """Return an input that a kernel reads as f16."""
        value = required(node.inputs[index])
        slot = self.halves.get(value, self.slots[value])
        assert slot.dtype == "f16", f"'{node.name}' reads {slot.dtype}"
        return slot

    def info(self) -> Operand:
        """Return the pointer to the step's own sizes."""
        return self.buffer(Buffer("info", "input", "i32", (INFO_SIZE,)))

    def packed(self, tensors: tuple[Tensor, ...]) -> tuple[Operand, ...]:
        """Return the pointers to the parts of a weight."""
        return tuple(self.weight(tensor) for tensor in tensors)

    def launch(
        self,
        node: ir.Node,
        kernel: Kernel,
        operands: tuple[Operand, ...],
        rows: Rows,
        steps: Steps = "all",
    ) -> None:
        """Append a launch of `kernel` for `node`."""
        assert len(operands) == len(kernel.args), f"{kernel.symbol} takes {kernel.args}, got {len(operands)}"
        for operand in operands:
            assert operand.offset % POINTER_BYTES == 0, f"{kernel.symbol}: {operand} is not aligned"
        self.kernels.setdefault(kernel.symbol, kernel)
        work = launch_work(node, [self.buffers[each.buffer] for each in operands], self.page_layout()[0])
        self.launches.append(
            Launch(kernel.symbol, operands, rows, node.op_type, layer_of(node), work, kernel.grid, steps)
        )


def emit(
    program: Program, architecture: str, limits: Limits, ranks: int = 1
) -> tuple[Plan, tuple[Kernel, ...], tuple[Tensor, ...]]:
    """Return the plan (arena not yet placed), its kernels in the plan's order and its weights.

    With `ranks`, `program` is that of one of so many (`tokc.targets.gpu.sharding`).

    Raises: TargetRefused if the program is not in ragged form or holds a node that no GPU kernel runs.
    """
    if program.form != "ragged":
        raise TargetRefused("GPU targets run ragged programs only", hint="add kv-layout to the passes")
    if program.kv is not None and program.kv.dtype == "int4":
        raise TargetRefused("GPU targets have no kernel for a cache in int4", hint="the nearest is int8")
    low = Emission(program, bounds(program, architecture, limits), architecture=architecture, ranks=ranks)
    lower_nodes(
        low,
        LOWER,
        lacks="GPU targets have no kernel for",
        hint="they run the forms that the default passes leave",
        formats=FORMATS,
    )
    find_likeliest(low)
    kernels = tuple(sorted(low.kernels.values(), key=lambda kernel: kernel.symbol))
    plan = replace(low.plan(kernel.symbol for kernel in kernels), ranks=ranks)
    return plan, kernels, tuple(low.tensors.values())


def find_likeliest(low: Emission) -> None:
    """End the step with each row's likeliest token, so that logits need not leave the device."""
    logits = low.slots[low.program.graph.outputs[0]]
    kernel = ArgMax(min(logits.width, low.program.config.vocab), logits.stride)
    tokens = low.buffer(Buffer(LIKELIEST, "output", "i32", ("rows", 1)))
    low.kernels.setdefault(kernel.symbol, kernel)
    work = LaunchWork(row_bytes=4 * (kernel.vocab + 1))
    operands = (logits.operand, low.info(), tokens)
    low.launches.append(Launch(kernel.symbol, operands, "rows", "ArgMax", None, work, kernel.grid))


def bounds(program: Program, architecture: str, limits: Limits) -> dict[str, int]:
    """Return the largest value of every symbol, and the sizes by which the runtime cuts a step in tiles."""
    page = program.kv.page if program.kv else 1
    wide, narrow = (attention(program, architecture, limits.context, wide=form) for form in (True, False))
    return {
        "tokens": limits.tokens,
        "rows": limits.rows,
        "seqs": limits.seqs,
        "blocks": -(-limits.context // page),
        "context": limits.context,
        "tiles": max(NARROW_TOKENS, -(-limits.tokens // wide.tile) + limits.seqs),
        "splits": wide.max_splits,
        "narrow_tokens": NARROW_TOKENS,
        "narrow_tile": narrow.tile,
        "wide_tile": wide.tile,
        "split": wide.split,
    }


def attention(program: Program, architecture: str, context: int, *, wide: bool) -> PagedAttention:
    """Return the attention kernel of a program's layers."""
    config, kv = program.config, program.kv
    assert kv is not None, "a ragged program has a cache layout"
    return PagedAttention(
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        page=kv.page,
        dtype=kv.dtype,
        scale=config.head_dim**-0.5,
        context=context,
        wide=wide,
        architecture=architecture,
    )


def lower_embedding(low: Emission, node: ir.Node) -> None:
    """Gather rows of a table: token embedding, or the rows whose logits are wanted."""
    source, ids = required(node.inputs[0]), required(node.inputs[1])
    if ids.name == "logit_rows":
        slot = low.slots[source]
        kernel = GatherRows(slot.width, slot.stride, slot.dtype)
        out = low.activation(node.outputs[0], slot.width, "rows", dtype=slot.dtype)
        low.launch(node, kernel, (slot.operand, low.input("logit_rows"), low.info(), out), "rows")
        return
    tensors, table = weights.plain(source)
    out = low.activation(node.outputs[0], table.k, "tokens")
    gather = Embedding(table.k, table.n)
    low.launch(node, gather, (*low.packed(tensors), low.input(ids.name or ""), low.info(), out), "tokens")


def lower_quant_embedding(low: Emission, node: ir.Node) -> None:
    """Gather and dequantize rows of the quantized embedding."""
    tensors, linear = weights.quantized(node)
    out = low.activation(node.outputs[0], linear.k, "tokens")
    ids = required(node.inputs[0]).name or ""
    operands = (*low.packed(tensors), low.input(ids), low.info(), out)
    low.launch(node, QuantEmbedding(linear), operands, "tokens")


def lower_norm(low: Emission, node: ir.Node) -> None:
    """Lower RMSNormalization and AddRmsNorm; each writes the forms that are read."""
    add = node.op_type == "AddRmsNorm"
    x = single(low, node, 0)
    operands: tuple[Operand, ...] = (x.operand,)
    if add:
        residual = single(low, node, 1)
        assert residual.stride == x.stride, "the residual stream has one stride"
        operands += (residual.operand, low.activation(node.outputs[0], x.width, x.rows, x.stride))
    weight = weights.vector(required(node.inputs[2 if add else 1]))
    value = node.outputs[1 if add else 0]
    as_single, as_half = reads_half(value)
    kernel = RmsNorm(x.width, x.stride, number(node, "epsilon", 1e-5), add, as_single, as_half, rows=x.rows)
    out: tuple[Operand, ...] = ()
    if as_single:
        out += (low.activation(value, x.width, x.rows),)
    if as_half:
        out += (low.half(value, x.width, x.rows),)
    low.launch(node, kernel, (*operands, low.weight(weight), low.info(), *out), x.rows)


def lower_linear(low: Emission, node: ir.Node) -> None:
    """Lower Linear and QuantLinear: a kernel for narrow steps and one for wide ones."""
    x = low.read_half(node, 0)
    if text(node, "format", ""):
        lower_float_linear(low, node, only_dtype(node))
        return
    y_dtype = only_dtype(node)
    tensors, linear = weights.multiplied(node, low.architecture)
    bias = weights.bias(node, 4 if node.op_type == "QuantLinear" else 2)
    out = low.activation(node.outputs[0], linear.n, x.rows, dtype=y_dtype)
    operands = (
        *low.packed(tensors),
        x.operand,
        low.info(),
        *([low.weight(bias)] if bias else []),
        out,
    )
    for steps in ("narrow", "wide"):
        kernel = linear.variant(
            wide=steps == "wide", bias=bias is not None, x_stride=x.stride, y_dtype=y_dtype, rows=x.rows
        )
        scratch = tuple(
            low.buffer(Buffer(f"{kernel.symbol}.{name}", "scratch", dtype, shape))
            for name, dtype, shape in kernel.scratch
        )
        low.launch(node, kernel, (*operands, *scratch), x.rows, steps)


def lower_gated_activation(low: Emission, node: ir.Node) -> None:
    """Lower GatedActivation over the joint gate and up projection, of a token or of each of its slots."""
    value = required(node.inputs[0])
    x, slots = low.slots[value], slots_of(value)
    width = x.width // slots // 2
    kernel = GatedActivation(width, x.stride // slots, text(node, "activation", "silu"), slots)
    out = low.activation(node.outputs[0], slots * width, x.rows, dtype="f16")
    low.launch(node, kernel, (x.operand, low.info(), out), x.rows)


def lower_rope_write_kv(low: Emission, node: ir.Node) -> None:
    """Lower RopeWriteKV; the cache it returns is the cache it was given."""
    q, k, v, cos, sin, positions, sequences, tables, *rest = node.inputs
    caches, norms = tuple(rest[:4]), [n for n in rest[4:6] if n is not None]
    slots = [low.slots[required(value)] for value in (q, k, v)]
    heads, dim = integer(node, "heads"), low.program.config.head_dim
    page, dtype = low.page_layout()
    kernel = RopeWriteKV(
        heads=heads,
        kv_heads=integer(node, "kv_heads"),
        head_dim=dim,
        page=page,
        q_stride=slots[0].stride,
        k_stride=slots[1].stride,
        v_stride=slots[2].stride,
        dtype=dtype,
        q_norm=bool(norms),
        k_norm=bool(norms),
        epsilon=number(node, "epsilon", 1e-6),
        context=shape_of(required(cos))[0],
    )
    vectors = [low.weight(weights.vector(required(value))) for value in (cos, sin)]
    scales = [low.weight(weights.vector(value)) for value in norms]
    batch = [low.input(required(value).name or "") for value in (positions, sequences, tables)]
    out = low.activation(node.outputs[0], heads * dim, "tokens", dtype="f16")
    pointers = (*(s.operand for s in slots), *vectors, *batch, low.info(), *scales, out)
    low.launch(node, kernel, (*pointers, *low.caches(caches)), "tokens")


def lower_paged_attention(low: Emission, node: ir.Node) -> None:
    """Lower PagedAttention: over splits of the context and a reduction, or a program a tile in wide steps."""
    q, *caches = node.inputs[:5]
    width = integer(node, "heads") * low.program.config.head_dim
    context = low.limits["context"]
    scale, window = number(node, "scale", 1.0), integer(node, "window")
    narrow, wide = (
        replace(attention(low.program, low.architecture, context, wide=form), scale=scale, window=window)
        for form in (False, True)
    )
    read = (
        low.slots[required(q)].operand,
        *low.caches(tuple(caches)),
        *[low.input(name) for name in ("positions", "sequences", "block_tables")],
        low.buffer(Buffer("query_tiles", "input", "i32", ("tiles", 2))),
        low.info(),
    )
    out = low.activation(node.outputs[0], width, "tokens", dtype="f16")
    name = node.outputs[0].name
    parts = (
        low.buffer(Buffer(f"p.{name}", "arena", "f32", narrow.partials_shape)),
        low.buffer(Buffer(f"m.{name}", "arena", "f32", narrow.statistics_shape)),
    )
    low.launch(node, narrow, (*read, *parts), "tokens", "narrow")
    merge = (*parts, low.input("positions"), low.info(), out)
    low.launch(node, narrow.reduce, merge, "tokens", "narrow")
    low.launches[-1] = replace(low.launches[-1], work=low.launches[-1].work.moving_only())
    low.launch(node, wide, (*read, out), "tokens", "wide")


LOWER: Rules[Emission] = {
    ("", "Gather"): lower_embedding,
    ("", "RMSNormalization"): lower_norm,
    ("", "Split"): lower_split,
    ("", "Add"): lower_add,
    ("", "Mul"): lower_product,
    ("", "Sigmoid"): lower_activation,
    ("", "Gelu"): lower_activation,
    ("tokc", "QuantEmbedding"): lower_quant_embedding,
    ("tokc", "AddRmsNorm"): lower_norm,
    ("tokc", "Linear"): lower_linear,
    ("tokc", "QuantLinear"): lower_linear,
    ("tokc", "MoeRouter"): lower_moe_router,
    ("tokc", "MoeLinear"): lower_moe_linear,
    ("tokc", "QuantMoeLinear"): lower_moe_linear,
    ("tokc", "MoeCombine"): lower_moe_combine,
    ("tokc", "BlockDequantize"): skip,
    ("tokc", "GatedActivation"): lower_gated_activation,
    ("tokc", "RopeWriteKV"): lower_rope_write_kv,
    ("tokc", "PagedAttention"): lower_paged_attention,
    (DOMAIN, SUM): lower_sum_over_ranks,
    (DOMAIN, JOIN): lower_join_over_ranks,
}
