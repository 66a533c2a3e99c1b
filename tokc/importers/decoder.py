"""An architecture and its weights become a Program in batch form, spelled in standard ops.

The graph is decomposed on purpose: fusing is the passes' work, and each fusion is checked against this
spelling.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.architecture import Architecture
from tokc.importers.checkpoint import Checkpoint, Dense, Grid, Weight, selected, shifted, static
from tokc.importers.experts import expert_layer
from tokc.importers.rope import rotated_first
from tokc.ir.ops import DOMAIN, DOMAIN_VERSION, make_node
from tokc.ir.program import IR_VERSION, OPSET, Assets, ModelConfig, Program

EMBEDDING = "model.embed_tokens.weight"
POSITIONS = "model.embed_positions.weight"
HEAD = "lm_head.weight"
HEAD_BIAS = "lm_head.bias"
Attributes = Mapping[str, int | float | str | Sequence[int]]


def decoder_program(architecture: Architecture, checkpoint: Checkpoint, assets: Assets) -> Program:
    """Build the program of a decoder.

    Raises: ImportRefused if the weights do not fit the architecture.
    """
    _refuse_contradictions(checkpoint, architecture.config)
    graph = DecoderBuilder(architecture, checkpoint).build()
    _refuse_leftovers(checkpoint, architecture)
    return Program(ir.Model(graph, ir_version=IR_VERSION, producer_name="tokc"), architecture.config, assets)


def _refuse_contradictions(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Refuse a configuration whose counts are not those of the weights."""
    layers = {int(name.split(".")[2]) for name in checkpoint.weights if name.startswith("model.layers.")}
    table = checkpoint.weights.get(EMBEDDING)
    rows = config.vocab if table is None else table.shape[0]
    for key, stated, found, what in (
        ("num_hidden_layers", config.layers, max(layers, default=config.layers - 1) + 1, "layers"),
        ("vocab_size", config.vocab, rows, f"rows in '{EMBEDDING}'"),
    ):
        if stated != found:
            raise ImportRefused(
                f"'{key}' is {stated}, but the weights have {found} {what}",
                where=checkpoint.origin,
                hint="the configuration and the weights are of different models, or a file is missing; "
                f"if the weights are whole, write {found} to config.json",
            )


def _refuse_leftovers(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Refuse a checkpoint with tensors that the decoder does not use: it is another model's.

    A head beside a tied embedding is a copy of it.
    """
    names = [name for name in checkpoint.left() if name.startswith(("model.", "lm_head.")) and name != HEAD]
    if names:
        more = f" (nor have {len(names) - 1} more)" if len(names) > 1 else ""
        raise ImportRefused(
            f"tensor '{names[0]}' has no place in family '{architecture.family.name}'{more}",
            where=checkpoint.origin,
            hint="the configuration may state too few layers, or another architecture than the weights have",
        )


class DecoderBuilder:
    """Write one decoder's graph, layer by layer; `root` is how the names of layers begin."""

    root = "model."

    def __init__(self, architecture: Architecture, checkpoint: Checkpoint) -> None:
        self.arch = architecture
        self.config = architecture.config
        self.checkpoint = checkpoint
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.weights: dict[str, ir.Value] = {}
        self.masks: dict[int, ir.Value] = {}
        self.inputs = {
            name: typed_value(name, ir.DataType.INT64, ("batch", "seq"))
            for name in ("input_ids", "position_ids")
        }
        self.presents: list[ir.Value] = []

    def build(self) -> ir.Graph:
        """Return the whole decoder as a graph."""
        x = self.op("Gather", [self.weight(EMBEDDING, self._table), self.inputs["input_ids"]], {"axis": 0})
        x = self.scaled(x, "embedding.scale", self.arch.scales.embedding)
        if self.arch.learned_positions:
            table = self.weight(POSITIONS, (self.arch.trained, self.config.hidden))
            places = self.op("Gather", [table, self.inputs["position_ids"]], {"axis": 0})
            x = self.op("Add", [x, places])
        for layer in range(self.config.layers):
            x = self._layer(x, layer)
        logits = self._head(self.norm(x, "model.norm", self.config.hidden))
        logits.name = "logits"
        annotate(logits, ir.DataType.FLOAT, ("batch", "seq", self.config.vocab))
        return self.graph([logits, *self.presents], "decoder")

    def graph(self, outputs: Sequence[ir.Value], name: str) -> ir.Graph:
        """Return what was written as a graph."""
        return ir.Graph(
            list(self.inputs.values()),
            outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET, DOMAIN: DOMAIN_VERSION},
            name=name,
        )

    @property
    def _table(self) -> tuple[int, int]:
        return self.config.vocab, self.config.hidden

    def _head(self, x: ir.Value) -> ir.Value:
        tied = self.config.tied_embedding
        head = self.weight(EMBEDDING if tied else HEAD, self._table)
        bias = self.weight(HEAD_BIAS, (self.config.vocab,)) if HEAD_BIAS in self.checkpoint else None
        return self.projected(x, head, bias)

    def projected(self, x: ir.Value, head: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Return logits over the rows of `head`, scaled and capped as the family's are."""
        logits = self.op("MatMul", [x, self.op("Transpose", [head], {"perm": [1, 0]})])
        if bias is not None:
            logits = self.op("Add", [logits, bias])
        logits = self.scaled(logits, "logits.scale", 1 / self.arch.scales.logits)
        return self.capped(logits, "logits", self.arch.scales.logit_cap)

    def _layer(self, x: ir.Value, layer: int) -> ir.Value:
        prefix, hidden = f"{self.root}layers.{layer}.", self.config.hidden
        places, parallel = self.arch.family.norm_places, self.arch.parallel
        h = x if places == "after" else self.norm(x, prefix + "input_layernorm", hidden)
        attended = self.attention(h, layer)
        if places != "before":
            attended = self.norm(attended, prefix + "post_attention_layernorm", hidden)
        summed = self.op("Add", [x, self.scaled(attended, "residual.scale", self.arch.scales.residual)])
        before = "pre_feedforward_layernorm" if places == "around" else "post_attention_layernorm"
        if not (parallel and self.arch.family.shared_norm):
            read = x if parallel else summed
            h = read if places == "after" else self.norm(read, prefix + before, hidden)
        mixed = self._mixed(h, layer)
        if places != "before":
            mixed = self.norm(mixed, prefix + "post_feedforward_layernorm", hidden)
        return self.op("Add", [summed, self.scaled(mixed, "residual.scale", self.arch.scales.residual)])

    def attention(self, h: ir.Value, layer: int) -> ir.Value:
        """Write a layer's attention, from its normed input to the projection of its result."""
        prefix, config = f"{self.root}layers.{layer}.self_attn.", self.config
        q = self._heads(h, prefix + "q", config.heads)
        k = self._heads(h, prefix + "k", config.kv_heads)
        v = self._heads(h, prefix + "v", config.kv_heads)
        if self.arch.rotated[layer]:
            q, k = self._rotate(q, layer), self._rotate(k, layer)
        key, value = self._cached(k, layer, "key"), self._cached(v, layer, "value")
        mask = self._mask(self.arch.windows[layer], key)
        turned = self.op("Transpose", [self._repeat(key)], {"perm": [0, 1, 3, 2]})
        scale = self.constant("attention.scale", np.float32(self.arch.attention_scale))
        scores = self.op("Mul", [self.op("MatMul", [q, turned]), scale])
        scores = self.capped(scores, "attention", self.arch.scales.score_cap)
        masked = self.op("Where", [mask, scores, self.constant("attention.hidden", np.float32(-np.inf))])
        y = self.op("MatMul", [self.op("Softmax", [masked], {"axis": -1}), self._repeat(value)])
        width = config.heads * config.head_dim
        shape = self.constant("attention.out_shape", np.array([0, 0, width], dtype=np.int64))
        y = self.op("Reshape", [self.op("Transpose", [y], {"perm": [0, 2, 1, 3]}), shape])
        return self.linear(y, prefix + "o_proj", width, config.hidden, bias=self.arch.attention_bias)

    def _heads(self, h: ir.Value, name: str, heads: int) -> ir.Value:
        """Project to [batch, heads, seq, dim], each head of q and k normed where the family does so."""
        dim, family = self.config.head_dim, self.arch.family
        bias = self.arch.qkv_bias or self.arch.attention_bias
        turned = not name.endswith(".v")
        order = self._row_order(heads) if turned else None
        y = self.linear(h, f"{name}_proj", self.config.hidden, heads * dim, bias=bias, order=order)
        if family.wide_qk_norm and turned:
            y = self.norm(y, f"{name}_norm", heads * dim)
        shape = self.constant(f"attention.shape_{heads}", np.array([0, 0, heads, dim], dtype=np.int64))
        y = self.op("Reshape", [y, shape])
        if family.qk_norm and turned:
            y = self.norm(y, f"{name}_norm", dim)
        return self.op("Transpose", [y], {"perm": [0, 2, 1, 3]})

    def _row_order(self, heads: int) -> list[int] | None:
        """Return the rows of q or k, each head's rotated elements paired; None as they are."""
        dim, rotated = self.config.head_dim, self.arch.rope.rotated
        if rotated is None:
            return None
        normed = self.arch.family.qk_norm or self.arch.family.wide_qk_norm
        assert not normed, "the norm's weight would have to be ordered too"
        first = rotated_first(dim, rotated)
        return [head * dim + element for head in range(heads) for element in first]

    def _rotate(self, x: ir.Value, layer: int) -> ir.Value:
        local = self.arch.local(layer)
        name, rope = ("rope_local", self.arch.local_rope) if local else ("rope", self.arch.rope)
        if f"{name}.cos" not in self.initializers:
            cos, sin = rope.tables(self.config.head_dim, self.config.context)
            self.constant(f"{name}.cos", cos)
            self.constant(f"{name}.sin", sin)
        tables = [self.initializers[f"{name}.cos"], self.initializers[f"{name}.sin"]]
        return self.op("RotaryEmbedding", [x, *tables, self.inputs["position_ids"]])

    def _cached(self, new: ir.Value, layer: int, kind: str) -> ir.Value:
        shape = (self.config.kv_heads, self.config.head_dim)
        past = typed_value(
            f"past_key_values.{layer}.{kind}", ir.DataType.FLOAT, ("batch", shape[0], "past", shape[1])
        )
        self.inputs[str(past.name)] = past
        present = self.op("Concat", [past, new], {"axis": 2})
        present.name = f"present.{layer}.{kind}"
        annotate(present, ir.DataType.FLOAT, ("batch", shape[0], "total", shape[1]))
        self.presents.append(present)
        return present

    def _mask(self, window: int, key: ir.Value) -> ir.Value:
        if window not in self.masks:
            node = make_node("CausalMask", [self.inputs["position_ids"], key], {"window": window})
            self.nodes.append(node)
            self.masks[window] = node.outputs[0]
        return self.masks[window]

    def _repeat(self, x: ir.Value) -> ir.Value:
        """Let each key-value head serve its group of query heads."""
        config = self.config
        groups = config.heads // config.kv_heads
        if groups == 1:
            return x
        x = self.op("Unsqueeze", [x, self.constant("attention.group_axis", np.array([2], dtype=np.int64))])
        shape = np.array([1, 1, groups, 1, 1], dtype=np.int64)
        x = self.op("Expand", [x, self.constant("attention.group_shape", shape)])
        merged = np.array([0, config.heads, -1, config.head_dim], dtype=np.int64)
        return self.op("Reshape", [x, self.constant("attention.merged_shape", merged)])

    def _mixed(self, h: ir.Value, layer: int) -> ir.Value:
        """Write a layer's feed-forward block, of experts where it has some."""
        prefix, experts = f"{self.root}layers.{layer}.mlp.", self.arch.experts
        if experts is not None and layer in experts.layers:
            return expert_layer(self, h, prefix, experts, self.arch.activation)
        return self.feed_forward(h, prefix, self.config.intermediate)

    def feed_forward(self, h: ir.Value, prefix: str, width: int) -> ir.Value:
        """Write a feed-forward block of intermediate size `width`, gated where the family has it so."""
        hidden, bias = self.config.hidden, self.arch.mlp_bias
        if not self.arch.family.gated:
            active = self._activated(self.linear(h, prefix + "up_proj", hidden, width, bias=bias))
            return self.linear(active, prefix + "down_proj", width, hidden, bias=bias)
        gate = self.linear(h, prefix + "gate_proj", hidden, width, bias=bias)
        up = self.linear(h, prefix + "up_proj", hidden, width, bias=bias)
        gated = self.op("Mul", [self._activated(gate), up])
        return self.linear(gated, prefix + "down_proj", width, hidden, bias=bias)

    def _activated(self, x: ir.Value) -> ir.Value:
        if self.arch.activation == "silu":
            return self.op("Mul", [x, self.op("Sigmoid", [x])])
        return self.op(
            "Gelu", [x], {"approximate": "tanh" if self.arch.activation == "gelu_tanh" else "none"}
        )

    def scaled(self, x: ir.Value, name: str, factor: float) -> ir.Value:
        """Return x times a constant, x itself where that is 1."""
        return x if factor == 1.0 else self.op("Mul", [x, self.constant(name, np.float32(factor))])

    def capped(self, x: ir.Value, name: str, cap: float) -> ir.Value:
        """Return cap * tanh(x / cap), x without a cap."""
        if not cap:
            return x
        inner = self.op("Tanh", [self.scaled(x, f"{name}.cap_inverse", 1 / cap)])
        return self.scaled(inner, f"{name}.cap", cap)

    def op(self, name: str, inputs: Sequence[ir.Value], attributes: Attributes | None = None) -> ir.Value:
        """Write a node of the standard and return what it makes."""
        node = ir.node(name, inputs, attributes)
        self.nodes.append(node)
        return node.outputs[0]

    def linear(
        self, x: ir.Value, name: str, columns: int, rows: int, *, bias: bool, order: list[int] | None = None
    ) -> ir.Value:
        """Write ``x @ weight.T (+ bias)``, the rows in `order` if one is given."""
        weight = self.weight(f"{name}.weight", (rows, columns), order)
        y = self.op("MatMul", [x, self.op("Transpose", [weight], {"perm": [1, 0]})])
        if bias:
            y = self.op("Add", [y, self.weight(f"{name}.bias", (rows,), order)])
        return y

    def norm(self, x: ir.Value, name: str, width: int) -> ir.Value:
        """Write the family's kind of norm over the last axis."""
        weight = self._norm_weight(f"{name}.weight", width)
        epsilon = {"axis": -1, "epsilon": self.config.norm_epsilon}
        if self.arch.family.norm == "rms":
            return self.op("RMSNormalization", [x, weight], epsilon)
        return self.op("LayerNormalization", [x, weight, self.weight(f"{name}.bias", (width,))], epsilon)

    def _norm_weight(self, name: str, width: int) -> ir.Value:
        if name not in self.weights:
            weight = self.checkpoint.take(name, (width,))
            assert isinstance(weight, Dense), "the weight of a norm is a vector, which no grid holds"
            if self.arch.norm_offset:
                weight = shifted(weight, self.arch.norm_offset)
            self.weights[name] = self.stored(name, weight)
        return self.weights[name]

    def weight(self, name: str, shape: tuple[int, ...], order: list[int] | None = None) -> ir.Value:
        """Return a weight, its rows in `order` if one is given."""
        if name not in self.weights:
            weight = self.checkpoint.take(name, shape)
            self.weights[name] = self.stored(name, weight if order is None else selected(weight, order))
        return self.weights[name]

    def stored(self, name: str, weight: Weight) -> ir.Value:
        """Return the value of a weight, dequantized if it lies on a grid."""
        if isinstance(weight, Dense):
            return self._initializer(name, weight.tensor)
        return self._grid(name, weight)

    def _grid(self, name: str, grid: Grid) -> ir.Value:
        operands = [self._initializer(f"{name}.q", grid.q), self._initializer(f"{name}.scale", grid.scale)]
        if grid.offset is not None:
            operands.append(self._initializer(f"{name}.offset", grid.offset))
        node = make_node(
            "BlockDequantize", operands, {"zero_point": grid.zero_point, "block_size": grid.block_size}
        )
        self.nodes.append(node)
        node.outputs[0].name = name
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        """Return a constant, added once by its name."""
        if name not in self.initializers:
            self._initializer(name, ir.tensor(np.asarray(array), name=name))
        return self.initializers[name]

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        tensor.name = name
        value = ir.Value(
            name=name, shape=ir.Shape(static(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.initializers[name] = value
        return value


def typed_value(name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
    """Return a value of a type and shape."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def annotate(value: ir.Value, dtype: ir.DataType, shape: tuple[int | str, ...]) -> None:
    """Give a value its type and shape."""
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
