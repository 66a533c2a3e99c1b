"""Take a program from [batch, seq] with a dense cache to one ragged axis [tokens] with a paged cache."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tokc.errors import PassFailed
from tokc.ir.head import FEATURES, FEATURES_OUT, head_of
from tokc.ir.program import KvLayout as Layout
from tokc.ir.program import ModelConfig, Program
from tokc.ir.rewrite import initializer, made_by, only_reader
from tokc.ir.wanted_rows import pick_rows

# Ops that compute each row [.., width] from that row alone, so that they mean the same over [tokens, width].
ROW_WISE = frozenset(
    {
        *("Add", "Mul", "Sub", "Div", "Sigmoid", "Gelu", "Tanh", "Cast", "Identity", "Split"),
        *("RMSNormalization", "LayerNormalization", "MatMul", "Gather", "Constant"),
        *("Linear", "QuantLinear", "QuantEmbedding", "AddRmsNorm", "GatedActivation"),
        *("RopeWriteKV", "PagedAttention", "ResidualSilu"),
        *("MoeRouter", "MoeLinear", "QuantMoeLinear", "MoeCombine"),
    }
)
ON_WEIGHTS = frozenset({"BlockDequantize", "Transpose"})
CACHE_TYPES = {
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.UINT8,
}
LOOKUPS = frozenset({"Gather", "QuantEmbedding"})
STILL = "rope_none"  # tables of layers without rotation
OF_EXPERTS = frozenset({"MoeLinear", "QuantMoeLinear", "GatedActivation"})  # may have an axis of slots
OUTPUT_AXES = {"logits": "rows", FEATURES: "tokens", FEATURES_OUT: "rows"}
OF_SLOTS = -2  # the axis along which heads of a draft are joined
BATCH_RANK = 3  # [batch, seq, width]
SWAP_HEADS = (0, 2, 1, 3)  # [batch, seq, heads, dim] and [batch, heads, seq, dim]


@dataclass(frozen=True)
class KvLayout:
    """Lay all sequences of a step on one axis [tokens] and keep their keys and values in pages.

    Before: ``y = Attention(rope(q), rope(k), v, mask, past_key, past_value)`` over [batch, seq, heads, dim]
    After:  ``q', cache' = RopeWriteKV(q, k, v, cos, sin, positions, sequences, block_tables, cache)``
            ``y = PagedAttention(q', cache', positions, sequences, block_tables)`` over [tokens, heads * dim]

    A norm of each query and key head (Qwen 3, Gemma 3) moves into RopeWriteKV. Layers without rotation get
    tables of 1 and 0, which leave queries and keys as they are to the bit. The head computes only rows
    that are asked for: ``Gather(x, logit_rows)`` is put before it, in a draft right behind its
    attention. `page` is in tokens. Needs fuse-attention.

    Saves the padding of a batch, and the copy of the whole cache that Concat makes each step.
    Exact with ``dtype=f32`` up to the order of sums; the others round keys and values as they are written,
    int8 and int4 with a scale a token and head. For int4, queries and keys are turned by a Hadamard matrix.
    """

    name: ClassVar[str] = "kv-layout"
    exact: ClassVar[bool] = False

    page: int = 16
    dtype: Literal["f32", "f16", "int8", "int4"] = "f16"

    def __post_init__(self) -> None:
        """Refuse pages without room."""
        if self.page < 1:
            raise ValueError(f"a page holds at least one token, not {self.page}")

    @property
    def max_kl(self) -> float:
        """Return the mean KL in nats that rounding keys and values may cost.

        fp16 alone costs about 1e-6; where activations are rounded too, it moves some by a whole step.
        """
        return {"f32": 0.0, "f16": 0.02, "int8": 0.1, "int4": 1.0}[self.dtype]

    def run(self, program: Program) -> Program:
        layout = Layout(page=self.page, dtype=self.dtype)
        if program.form == "ragged":
            if program.kv == layout:
                return program
            raise PassFailed(f"the cache is already laid out as {program.kv}", hint="name kv-layout once")
        if program.config.layers and not any(node.op_type == "Attention" for node in program.graph):
            raise PassFailed(
                "kv-layout finds no Attention node to take to pages",
                hint="run fuse-attention before kv-layout",
            )
        copy = program.copy()
        _Relayout(copy.graph, program.config, layout).run()
        RemoveUnusedNodesPass()(copy.model)
        _check_rows(copy.graph)
        _name_shapes(copy.graph)
        return copy.replace(form="ragged", kv=layout)


@dataclass(frozen=True)
class _Rotated:
    """Hold what feeds a RotaryEmbedding: flat [.., heads * dim], its tables if any, and a norm on the way."""

    flat: ir.Value
    tables: tuple[ir.Value, ir.Value] | None
    norm: ir.Value | None
    epsilon: float


class _Relayout:
    """Rewrite one graph in place."""

    def __init__(self, graph: ir.Graph, config: ModelConfig, layout: Layout) -> None:
        self.graph, self.config, self.layout = graph, config, layout
        given = {str(value.name): value for value in graph.inputs}
        self.ids, self.batch_positions = given.get("input_ids"), given.get("position_ids")
        self.features = given.get(FEATURES)
        self.positions = _input("positions", "tokens")
        self.sequences = _input("sequences", "tokens")
        self.block_tables = _input("block_tables", "seqs", "blocks")
        self.logit_rows = _input("logit_rows", "rows")
        self.caches: list[ir.Value] = []
        self.updated: list[ir.Value] = []

    def run(self) -> None:
        if self.features is None:
            self._pick_rows()
        for layer, node in enumerate([node for node in self.graph if node.op_type == "Attention"]):
            self._attention(layer, node)
        places = [self.positions, self.sequences, self.block_tables]
        if self.ids is not None and self.batch_positions is not None:
            for use in list(self.batch_positions.uses()):
                if use.node.op_type in LOOKUPS:  # positions that are learned
                    use.node.replace_input_with(use.idx, self.positions)
            self.ids.shape = ir.Shape(["tokens"])
            places = [self.ids, *places]
        read = [*(places if self.caches else ()), self.logit_rows]
        if self.features is not None:
            pick_rows(self.graph, self.logit_rows)
            self.features.shape = ir.Shape(["tokens", self.config.hidden])
            read.append(self.features)
        made = [value for value in self.graph.outputs if value.name in OUTPUT_AXES]
        self.graph.inputs[:] = [*read, *self.caches]
        self.graph.outputs[:] = [made[0], *self.updated, *made[1:]]

    def _pick_rows(self) -> None:
        """Put a Gather of the wanted rows right before the head."""
        head = head_of(self.graph)
        gather = ir.node("Gather", [head.inputs[0], self.logit_rows], {"axis": 0})
        made = gather.outputs[0]
        made.name, made.type = "logit_rows.hidden", ir.TensorType(ir.DataType.FLOAT)
        made.shape = ir.Shape(["rows", self.config.hidden])
        self.graph.insert_before(head, gather)
        head.replace_input_with(0, made)

    def _attention(self, layer: int, node: ir.Node) -> None:
        """Exchange one Attention and the rotations before it for RopeWriteKV and PagedAttention."""
        inputs = [*node.inputs, *[None] * 6]
        query, key = (self._rotated(node, value) for value in inputs[:2])
        if query.tables != key.tables or query.epsilon != key.epsilon:
            raise _unexpected(node, "query and key are rotated or normalized differently")
        value = _flat(node, inputs[2])[0]
        rotate = self._write(layer, query, key, value)
        attend = self._attend(rotate, node, _window(node, inputs[3]))
        tail = _tail(node)
        self.graph.insert_before(tail, [rotate, attend])
        tail.outputs[0].shape = rotate.outputs[0].shape
        tail.outputs[0].type = rotate.outputs[0].type
        ir.convenience.replace_nodes_and_values(self.graph, tail, [tail], [], tail.outputs, attend.outputs)

    def _rotated(self, node: ir.Node, value: ir.Value | None) -> _Rotated:
        rotary = made_by(value, "RotaryEmbedding")
        if rotary is None:
            flat, norm, epsilon = _flat(node, value)
            return _Rotated(flat, None, norm, epsilon)
        if rotary.attributes.get_int("interleaved", 0) or rotary.attributes.get_int(
            "rotary_embedding_dim", 0
        ):
            raise _unexpected(rotary, "it rotates in pairs or only a part of a head")
        flat, norm, epsilon = _flat(node, rotary.inputs[0])
        cos, sin = rotary.inputs[1], rotary.inputs[2]
        assert cos is not None, "RotaryEmbedding lacks its cosines"
        assert sin is not None, "RotaryEmbedding lacks its sines"
        return _Rotated(flat, (cos, sin), norm, epsilon)

    def _still(self) -> tuple[ir.Value, ir.Value]:
        """Return tables that rotate by nothing, one pair for all layers."""
        shape = (self.config.context, self.config.head_dim // 2)
        made = []
        for name, fill in ((f"{STILL}.cos", np.ones), (f"{STILL}.sin", np.zeros)):
            if name not in self.graph.initializers:
                self.graph.register_initializer(
                    initializer(ir.tensor(fill(shape, np.float32), name=name), name)
                )
            made.append(self.graph.initializers[name])
        return made[0], made[1]

    def _write(self, layer: int, query: _Rotated, key: _Rotated, value: ir.Value) -> ir.Node:
        config = self.config
        caches = self._caches(layer)
        operands = [
            *(query.flat, key.flat, value, *(query.tables or self._still())),
            *(self.positions, self.sequences, self.block_tables),
            *caches,
            *(query.norm, key.norm),
        ]
        while operands[-1] is None:
            operands.pop()
        attributes = {
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "epsilon": query.epsilon,
            "dtype": self.layout.dtype,
        }
        real = [cache for cache in caches if cache is not None]
        node = ir.node("RopeWriteKV", operands, attributes, domain="tokc", num_outputs=1 + len(real))
        rotated = node.outputs[0]
        rotated.name, rotated.type = f"layers.{layer}.query", ir.TensorType(ir.DataType.FLOAT)
        rotated.shape = ir.Shape(["tokens", config.heads * config.head_dim])
        for cache, updated in zip(real, node.outputs[1:], strict=True):
            updated.name, updated.type, updated.shape = f"{cache.name}.out", cache.type, cache.shape
            self.updated.append(updated)
        return node

    def _attend(self, rotate: ir.Node, node: ir.Node, window: int) -> ir.Node:
        config = self.config
        attributes = {
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "scale": node.attributes.get_float("scale", config.head_dim**-0.5),
            "window": window,
        }
        cap = node.attributes.get_float("softcap", 0.0)
        attributes |= {"softcap": cap} if cap else {}
        if self.layout.dtype == "int4":
            attributes["bits"] = 4
        scales = [None] * (5 - len(rotate.outputs))
        operands = [*rotate.outputs, *scales, self.positions, self.sequences, self.block_tables]
        return ir.node("PagedAttention", operands, attributes, domain="tokc")

    def _caches(self, layer: int) -> list[ir.Value | None]:
        """Make the cache inputs of a layer: key, value, and their scales or None."""
        page, heads = self.layout.page, self.config.kv_heads
        kind, packed = CACHE_TYPES[self.layout.dtype], self.layout.dtype == "int4"
        dim = self.config.head_dim // 2 if packed else self.config.head_dim
        made: list[ir.Value | None] = [
            _input(f"kv.{layer}.key", "pages", heads, dim, page, dtype=kind),
            _input(f"kv.{layer}.value", "pages", heads, page, dim, dtype=kind),
        ]
        scales = [f"kv.{layer}.key_scale", f"kv.{layer}.value_scale"] if self.layout.scaled else []
        scale = ir.DataType.FLOAT16 if packed else ir.DataType.FLOAT
        made += [_input(name, "pages", heads, page, dtype=scale) for name in scales]
        self.caches += [one for one in made if one is not None]
        return made if scales else [*made, None, None]


def _input(name: str, *dims: str | int, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))


def _unexpected(node: ir.Node, why: str) -> PassFailed:
    return PassFailed(f"kv-layout cannot take '{node.op_type}' to pages: {why}", where=f"node '{node.name}'")


def _flat(node: ir.Node, value: ir.Value | None) -> tuple[ir.Value, ir.Value | None, float]:
    """Follow heads back to the flat [batch, seq, heads * dim] that they are cut from, past a norm."""
    norm, epsilon = None, 0.0
    while value is not None:
        maker = value.producer()
        if maker is None:
            break
        if maker.op_type == "Reshape":
            assert maker.inputs[0] is not None, "Reshape lacks its input"
            return maker.inputs[0], norm, epsilon
        if maker.op_type == "RMSNormalization":
            norm, epsilon = maker.inputs[1], maker.attributes.get_float("epsilon", 1e-5)
        elif maker.op_type != "Transpose" or tuple(maker.attributes.get_ints("perm", ())) != SWAP_HEADS:
            raise _unexpected(node, f"'{maker.op_type}' stands between the projection and the heads")
        value = maker.inputs[0]
    raise _unexpected(node, "its heads are not cut from a projection")


def _window(node: ir.Node, mask: ir.Value | None) -> int:
    maker = made_by(mask, "CausalMask", "tokc")
    if maker is None:
        raise _unexpected(node, "its mask is not made by CausalMask")
    return maker.attributes.get_int("window", 0)


def _tail(node: ir.Node) -> ir.Node:
    """Return the Reshape that makes the heads flat again after an Attention."""
    transpose = only_reader(node.outputs[0], "Transpose")
    reshape = None if transpose is None else only_reader(transpose.outputs[0], "Reshape")
    if reshape is None:
        raise _unexpected(node, "its result is not made flat by Transpose and Reshape")
    return reshape


def _check_rows(graph: ir.Graph) -> None:
    """Refuse what does not mean the same over [tokens, width]; count the last axis from the end."""
    constant = set(graph.initializers.values())
    for node in graph:
        if all(value is None or value in constant for value in node.inputs):
            constant.update(node.outputs)
        elif node.op_type not in ROW_WISE and node.attributes.get_int("axis", -1) != OF_SLOTS:
            raise _unexpected(node, "it does not compute each token's row from that row alone")
        elif node.op_type != "Gather" and node.attributes.get_int("axis", -1) == BATCH_RANK - 1:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)


def _name_shapes(graph: ir.Graph) -> None:
    """Write [tokens, width] for [batch, seq, width], and [rows, width] behind the wanted rows' Gather."""
    rows: set[ir.Value] = {value for value in graph.inputs if value.name == "logit_rows"}
    for node in graph:
        picked = any(value in rows for value in node.inputs)
        for value in node.outputs:
            if picked:
                rows.add(value)
            if value.shape is None or value.is_graph_output():
                continue
            of_slots = len(value.shape) > BATCH_RANK and (picked or node.op_type in OF_EXPERTS)
            if of_slots or len(value.shape) == BATCH_RANK:
                value.shape = ir.Shape(["rows" if picked else "tokens", *value.shape[2:]])
    for value in graph.outputs:
        if value.name in OUTPUT_AXES and value.shape is not None:
            value.shape = ir.Shape([OUTPUT_AXES[value.name], *value.shape[2:]])
