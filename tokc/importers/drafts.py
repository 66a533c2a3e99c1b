"""Heads and their backbone become a Draft in batch form, spelled in standard ops.

Embedding and vocabulary projection are the backbone's own tensors, some rows of them where the draft has a
vocabulary of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.architecture import Architecture, architecture_of
from tokc.importers.checkpoint import Checkpoint, Dense, Grid, Weight, lazy, selected
from tokc.importers.decoder import (
    EMBEDDING,
    HEAD,
    HEAD_BIAS,
    DecoderBuilder,
    annotate,
    typed_value,
)
from tokc.importers.families import family_of
from tokc.importers.heads import FC, Heads
from tokc.ir.head import FEATURES, FEATURES_OUT
from tokc.ir.ops import make_node
from tokc.ir.program import IR_VERSION, Draft, ModelConfig, Program
from tokc.ir.rewrite import made_by

ROOT = "draft."
LAYER = "layers.0."
F32 = ir.DataType.FLOAT


def draft_of(heads: Heads, backbone: Program) -> Draft:
    """Return the draft of `heads` for a backbone in batch form.

    Raises: ImportRefused if a tensor is missing, or does not fit the backbone or the others.
    """
    builders = {"eagle": _EagleBuilder, "medusa": _MedusaBuilder}
    builder = builders[heads.kind](heads, backbone)
    graph = builder.build()
    left = [name for name in builder.checkpoint.left() if name.startswith(ROOT)]
    if left:
        raise ImportRefused(
            f"tensor '{left[0].removeprefix(ROOT)}' has no place in {heads.kind} heads", where=str(heads.path)
        )
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="tokc")
    return Draft(
        kind=heads.kind,
        program=Program(model, builder.config),
        vocabulary=heads.vocabulary,
        heads=heads.heads,
        acceptance=heads.acceptance,
        trained_on=heads.metadata.get("weights_sha256"),
        file=heads.path.name,
        file_sha256=heads.sha256,
    )


class _DraftBuilder(DecoderBuilder):
    """Write a draft's graph: the weights of heads under `ROOT`, beside those that it shares."""

    root = ROOT

    def __init__(self, heads: Heads, backbone: Program) -> None:
        self.heads = heads
        own = {f"{ROOT}{name}": weight for name, weight in heads.weights.items()}
        shared = _shared_weights(backbone)
        self.tied = HEAD not in shared
        super().__init__(
            self.architecture(_architecture_of(backbone, heads)),
            Checkpoint(str(heads.path), {**shared, **own}),
        )
        hidden = typed_value(FEATURES, F32, ("batch", "seq", self.config.hidden))
        self.inputs[FEATURES] = hidden

    def architecture(self, backbone: Architecture) -> Architecture:
        """Return the draft's own architecture."""
        return replace(backbone, config=replace(backbone.config, layers=0))

    def shared_logits(self, x: ir.Value) -> ir.Value:
        """Return logits by the backbone's head: all of it, or the rows of the draft's vocabulary."""
        table, name = self._table, EMBEDDING if self.tied else HEAD
        own = self.heads.vocabulary
        bias = HEAD_BIAS if HEAD_BIAS in self.checkpoint else None
        if own is None:
            head = self.weight(name, table)
            return self.projected(x, head, None if bias is None else self.weight(bias, table[:1]))
        rows = self._rows_of(f"{ROOT}{HEAD}", name, table)
        if bias is None:
            return self.projected(x, rows, None)
        return self.projected(x, rows, self._rows_of(f"{ROOT}{HEAD_BIAS}", bias, table[:1]))

    def _rows_of(self, own: str, name: str, shape: tuple[int, ...]) -> ir.Value:
        """Return the rows of a weight of the backbone's that the draft has a vocabulary of, stored once."""
        if own not in self.weights:
            assert self.heads.vocabulary is not None, "the draft has a vocabulary of its own"
            picked = selected(self.checkpoint.take(name, shape), self.heads.vocabulary.tolist())
            self.weights[own] = self.stored(own, picked)
        return self.weights[own]

    def refuse(self, problem: str) -> ImportRefused:
        """Return the error of heads that do not fit."""
        return ImportRefused(problem, where=str(self.heads.path))


class _EagleBuilder(_DraftBuilder):
    """Write EAGLE's draft: ``x = fc([embedding; feature])``, one decoder layer, the backbone's head.

    The layer is Llama's whatever the backbone is, without a norm before attention in published files. Its
    output is the next feature, and goes to the head as it is.
    Source: Li et al. 2024, arXiv:2401.15077, and its model/cnets.py.
    """

    def architecture(self, backbone: Architecture) -> Architecture:
        if not all(backbone.rotated) or backbone.local_rope != backbone.rope:
            name = backbone.family.name
            raise self.refuse(f"an eagle needs the same rotary positions in all layers, '{name}' has others")
        family = replace(backbone.family, norm="rms", gated=True, qk_norm=False, wide_qk_norm=False)
        return replace(
            backbone,
            family=family,
            config=self._sizes(backbone),
            activation="silu",
            windows=(0,),
            rotated=(True,),
            attention_scale=backbone.config.head_dim**-0.5,
            scales=replace(backbone.scales, score_cap=0.0),
            norm_offset=0.0,
            qkv_bias=f"{LAYER}self_attn.q_proj.bias" in self.heads.weights,
            attention_bias=False,
            mlp_bias=False,
            experts=None,
        )

    def _sizes(self, backbone: Architecture) -> ModelConfig:
        config, dim = backbone.config, backbone.config.head_dim
        rows = {}
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"):
            weight = self.heads.weights.get(f"{LAYER}{name}.weight")
            if weight is None:
                raise self.refuse(f"tensor '{LAYER}{name}.weight' is missing")
            rows[name] = weight.shape[0]
        queries, keys = rows["self_attn.q_proj"], rows["self_attn.k_proj"]
        if queries % dim or keys % dim or not keys or queries % keys:
            raise self.refuse(f"{queries} rows of queries and {keys} of keys do not cut into heads of {dim}")
        return replace(
            config, layers=1, heads=queries // dim, kv_heads=keys // dim, intermediate=rows["mlp.gate_proj"]
        )

    def build(self) -> ir.Graph:
        """Return the graph."""
        x = self._fused()
        normed = f"{ROOT}{LAYER}input_layernorm"
        h = self.norm(x, normed, self.config.hidden) if f"{normed}.weight" in self.checkpoint else x
        attended = self.op("Add", [x, self.attention(h, 0)])
        h = self.norm(attended, f"{ROOT}{LAYER}post_attention_layernorm", self.config.hidden)
        out = self.op("Add", [attended, self.feed_forward(h, f"{ROOT}{LAYER}mlp.", self.config.intermediate)])
        out.name = FEATURES_OUT
        annotate(out, F32, ("batch", "seq", self.config.hidden))
        logits = self.shared_logits(out)
        logits.name = "logits"
        return self.graph([logits, *self.presents, out], "eagle")

    def _fused(self) -> ir.Value:
        """Write fc as two products that are added, so that nothing is concatenated."""
        hidden, name = self.config.hidden, f"{ROOT}{FC}"
        whole = self.checkpoint.take(name, (hidden, 2 * hidden))
        assert isinstance(whole, Dense), "heads are stored in floats"
        embedded = self.op(
            "Gather", [self.weight(EMBEDDING, self._table), self.inputs["input_ids"]], {"axis": 0}
        )
        parts = []
        for part, source, first in (("embedding", embedded, 0), ("feature", self.inputs[FEATURES], hidden)):
            weight = self.stored(f"{ROOT}fc.{part}.weight", _columns(whole, first, first + hidden))
            turned = self.op("Transpose", [weight], {"perm": [1, 0]})
            parts.append(self.op("MatMul", [source, turned]))
        bias = f"{ROOT}fc.bias"
        if bias in self.checkpoint:
            parts[1] = self.op("Add", [parts[1], self.weight(bias, (hidden,))])
        return self.op("Add", parts)


class _MedusaBuilder(_DraftBuilder):
    """Write Medusa's heads: blocks ``x + silu(W x + b)`` on the feature, then a projection, their own or not.

    Heads of one block on the backbone's head go through it in one product, so that its weights are read once.
    Source: Cai et al. 2024, arXiv:2401.10774, sec. 2.1.1; medusa_num_layers of its code are the blocks.
    """

    def build(self) -> ir.Graph:
        """Return the graph."""
        del self.inputs["input_ids"], self.inputs["position_ids"]
        own = [self._projection(head) in self.checkpoint for head in range(self.heads.heads)]
        if any(own) and not all(own):
            missing = self._projection(own.index(False)).removeprefix(ROOT)
            raise self.refuse(f"tensor '{missing}' is missing, which other heads have")
        if own[0] or self.heads.blocks > 1:
            logits = self._apart(own=own[0])
        else:
            logits = self.shared_logits(self._first_blocks(range(self.heads.heads)))
        logits.name = "logits"
        return self.graph([logits], "medusa")

    def _projection(self, head: int) -> str:
        return f"{ROOT}{head}.{self.heads.blocks}.weight"

    def _apart(self, *, own: bool) -> ir.Value:
        """Write each head by itself; return [batch, seq, heads, vocabulary]."""
        rows = self.config.vocab if self.heads.vocabulary is None else len(self.heads.vocabulary)
        parts = []
        for head in range(self.heads.heads):
            x = self._first_blocks([head])
            for block in range(1, self.heads.blocks):
                x = self._block(x, f"{head}.{block}")
            if own:
                weight = self.weight(self._projection(head), (rows, self.config.hidden))
                parts.append(self.op("MatMul", [x, self.op("Transpose", [weight], {"perm": [1, 0]})]))
            else:
                parts.append(self.shared_logits(x))
            parts[-1].name = f"logits.{head}"
        return self.op("Concat", parts, {"axis": -2})

    def _first_blocks(self, heads: Sequence[int]) -> ir.Value:
        """Write the first blocks of some heads as one product; return [batch, seq, heads, hidden]."""
        hidden, features = self.config.hidden, self.inputs[FEATURES]
        name = f"{ROOT}heads" if len(heads) == self.heads.heads else f"{ROOT}heads.{heads[0]}"
        weight, bias = (
            self.stored(
                f"{name}.{part}", self._stacked([f"{ROOT}{head}.0.linear.{part}" for head in heads], shape)
            )
            for part, shape in (("weight", (hidden, hidden)), ("bias", (hidden,)))
        )
        y = self.op("MatMul", [features, self.op("Transpose", [weight], {"perm": [1, 0]})])
        y = self.op("Add", [y, bias])
        annotate(y, F32, ("batch", "seq", len(heads) * hidden))
        return self._residual(features, y, joint=1)

    def _block(self, x: ir.Value, name: str) -> ir.Value:
        """Write a further block of one head, on [batch, seq, 1, hidden]."""
        hidden = self.config.hidden
        weight = self.weight(f"{ROOT}{name}.linear.weight", (hidden, hidden))
        y = self.op("MatMul", [x, self.op("Transpose", [weight], {"perm": [1, 0]})])
        y = self.op("Add", [y, self.weight(f"{ROOT}{name}.linear.bias", (hidden,))])
        return self._residual(x, y, joint=0)

    def _residual(self, x: ir.Value, y: ir.Value, *, joint: int) -> ir.Value:
        node = make_node("ResidualSilu", [x, y], {"joint": joint})
        self.nodes.append(node)
        return node.outputs[0]

    def _stacked(self, names: Sequence[str], shape: tuple[int, ...]) -> Dense:
        parts = [self.checkpoint.take(name, shape) for name in names]
        tensors = [part.tensor for part in parts if isinstance(part, Dense)]
        whole = (len(names) * shape[0], *shape[1:])
        return Dense(lazy(lambda: np.concatenate([one.numpy() for one in tensors]), F32, whole))


def _columns(weight: Dense, first: int, last: int) -> Dense:
    tensor = weight.tensor
    return Dense(
        lazy(
            lambda: np.ascontiguousarray(tensor.numpy()[:, first:last]), F32, (weight.shape[0], last - first)
        )
    )


def _architecture_of(backbone: Program, heads: Heads) -> Architecture:
    """Return the backbone's architecture.

    Raises: ImportRefused if the backbone does not say what it was built by.
    """
    source = backbone.assets.source_config
    if not source:
        raise ImportRefused("the backbone does not state its configuration", where=str(heads.path))
    return architecture_of(family_of(source, "config.json"), source, backbone.config.context, "config.json")


def _shared_weights(backbone: Program) -> Mapping[str, Weight]:
    """Return the backbone's embedding, head and the head's bias, as its graph has them."""
    found: dict[str, Weight] = {}
    initializers = backbone.graph.initializers
    made = {str(value.name): value for node in backbone.graph for value in node.outputs}
    for name in (EMBEDDING, HEAD, HEAD_BIAS):
        node = made_by(made.get(name), "BlockDequantize", "tokc")
        if node is not None:
            found[name] = _grid(node)
        elif name in initializers and (tensor := initializers[name].const_value) is not None:
            found[name] = Dense(tensor)
    return found


def _grid(node: ir.Node) -> Grid:
    tensors = [None if value is None else value.const_value for value in (*node.inputs, None)[:3]]
    q, scale, offset = tensors
    assert q is not None, "codes are constants"
    assert scale is not None, "scales are constants"
    return Grid(
        q, scale, offset, node.attributes.get_int("zero_point", 0), node.attributes.get_int("block_size", 32)
    )
