"""Layers of experts: what a configuration says of them, and their part of the graph.

Each token goes through the few experts that a router chooses (Shazeer et al. 2017, arXiv:1701.06538; Fedus et
al. 2021, arXiv:2101.03961), and in some families through a shared one too, times a gate of its own. A layer
is five nodes:

    experts, weights = MoeRouter(x, router)
    gate_up = MoeLinear(x, every expert's gate and up rows, experts)
    y = MoeCombine(MoeLinear(GatedActivation(gate_up), every expert's down rows, experts), weights, shared)

The weights of all experts are one matrix [experts * rows, columns], so that grids, which lie along columns,
and everything that knows of them, hold for it as for any other. It is put together when it is read; the
parts that it is made of, one an expert, are kept beside it for who reads part by part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import Checkpoint, Dense, F32Array, Grid, Weight, dequantized, lazy, static
from tokc.importers.expert_keys import ExpertKeys
from tokc.importers.family import Config, integer
from tokc.ir.ops import make_node
from tokc.ir.program import ModelConfig
from tokc.ir.rewrite import PARTS, stored_alike

COUNT, LOCAL_COUNT = "num_experts", "num_local_experts"
ROUTER, SHARED_GATE = "gate.weight", "shared_expert_gate.weight"


@dataclass(frozen=True)
class Experts:
    """State the experts of a decoder: how many, how many a token takes, and the layers that have them.

    `width` is an expert's intermediate size, `shared_width` that of the shared one, 0 where there is none.
    `normalize` says that the weights of the chosen are made to add up to one.
    """

    count: int
    top_k: int
    width: int
    shared_width: int
    normalize: bool
    layers: frozenset[int]


def experts_of(keys: ExpertKeys, config: Config, layers: int) -> Experts | None:
    """Return the experts that a configuration describes, None if no layer has any.

    Raises: ImportRefused if a value is missing or contradictory.
    """
    count = integer({**config, COUNT: config.get(COUNT, config.get(LOCAL_COUNT))}, COUNT)
    top_k = integer(config, "num_experts_per_tok", keys.top_k)
    dense, every = config.get("mlp_only_layers") or [], integer(config, "decoder_sparse_step", 1)
    if not isinstance(dense, list):
        raise ImportRefused(f"'mlp_only_layers' is '{dense}', not a list", hint="correct config.json")
    sparse = frozenset(layer for layer in range(layers) if layer not in dense and (layer + 1) % every == 0)
    if count < 1 or not sparse:
        return None
    if not 0 < top_k <= count:
        raise ImportRefused(
            f"'num_experts_per_tok' is {top_k}, but there are {count} experts", hint="correct config.json"
        )
    normalize = bool(config.get("norm_topk_prob", False)) if keys.normalize is None else keys.normalize
    return Experts(
        count=count,
        top_k=top_k,
        width=integer(config, keys.width),
        shared_width=integer(config, "shared_expert_intermediate_size") if keys.shared else 0,
        normalize=normalize,
        layers=sparse,
    )


class Builder(Protocol):
    """What the decoder's builder offers to write a layer with."""

    config: ModelConfig
    checkpoint: Checkpoint
    nodes: list[ir.Node]

    def stored(self, name: str, weight: Weight) -> ir.Value:
        """Return the value of a weight, dequantized if it lies on a grid."""
        ...

    def feed_forward(self, h: ir.Value, prefix: str, width: int) -> ir.Value:
        """Write a dense feed-forward block."""
        ...


def expert_layer(builder: Builder, h: ir.Value, prefix: str, experts: Experts, activation: str) -> ir.Value:
    """Write the feed-forward block of a layer of experts; `prefix` is that of its weights.

    Raises: ImportRefused if a weight is missing or misshapen.
    """
    if activation not in {"silu", "gelu_tanh"}:
        raise ImportRefused(f"experts with the activation '{activation}' are not supported")
    layer = _Layer(builder, prefix, experts)
    # The ops' functions look at ranks, and nobody has worked out shapes yet.
    h.type, h.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", "seq", builder.config.hidden])
    shared = int(experts.shared_width > 0)
    routing = {"top_k": experts.top_k, "normalize": int(experts.normalize), "shared": shared}
    chosen, weights = layer.node("MoeRouter", [h, layer.router()], routing)
    count = {"experts": experts.count}
    (gate_up,) = layer.node("MoeLinear", [h, layer.gate_up(), chosen], count)
    (gated,) = layer.node("GatedActivation", [gate_up], {"activation": activation})
    (y,) = layer.node("MoeLinear", [gated, layer.down(), chosen], count)
    operands = [y, weights]
    if shared:
        operands.append(builder.feed_forward(h, f"{prefix}shared_expert.", experts.shared_width))
    (combined,) = layer.node("MoeCombine", operands, {})
    return combined


class _Layer:
    """Takes the weights of one layer's experts, one tensor an expert or one for all."""

    def __init__(self, builder: Builder, prefix: str, experts: Experts) -> None:
        self.builder, self.prefix, self.experts = builder, prefix, experts
        self.hidden = builder.config.hidden

    def node(
        self, name: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int | float | str]
    ) -> Sequence[ir.Value]:
        node = make_node(name, inputs, attributes)
        self.builder.nodes.append(node)
        return node.outputs

    def router(self) -> ir.Value:
        """Return the router's weight; a shared expert's gate is its last row."""
        rows = [self._take(ROUTER, self.experts.count)]
        if self.experts.shared_width:
            rows.append(self._take(SHARED_GATE, 1))
        return self.builder.stored(f"{self.prefix}{ROUTER}", _dense(rows))

    def gate_up(self) -> ir.Value:
        name, width = "experts.gate_up_proj", self.experts.width
        if f"{self.prefix}{name}.0" in self.builder.checkpoint:
            parts = [self._take(f"{name}.{i}", 2 * width) for i in range(self.experts.count)]
        else:
            pairs = [
                [self._take(f"experts.{i}.{half}_proj.weight", width) for half in ("gate", "up")]
                for i in range(self.experts.count)
            ]
            parts = [stacked(pair) for pair in pairs]
        return self.builder.stored(f"{self.prefix}{name}.weight", stacked(parts))

    def down(self) -> ir.Value:
        name, shape = "experts.down_proj", (self.hidden, self.experts.width)
        whole = f"{self.prefix}{name}.0" in self.builder.checkpoint
        names = [
            f"{name}.{i}" if whole else f"experts.{i}.down_proj.weight" for i in range(self.experts.count)
        ]
        parts = [self.builder.checkpoint.take(self.prefix + each, shape) for each in names]
        return self.builder.stored(f"{self.prefix}{name}.weight", stacked(parts))

    def _take(self, name: str, rows: int) -> Weight:
        return self.builder.checkpoint.take(self.prefix + name, (rows, self.hidden))


def stacked(parts: Sequence[Weight]) -> Weight:
    """Return weights one above the other, read when asked for; on one grid if all are on the same."""
    grids = [part for part in parts if isinstance(part, Grid)]
    if len(grids) == len(parts) and len({_kind(grid) for grid in grids}) == 1:
        offsets = [grid.offset for grid in grids if grid.offset is not None]
        return replace(
            grids[0],
            q=_rows([grid.q for grid in grids]),
            scale=_rows([grid.scale for grid in grids]),
            offset=_rows(offsets) if offsets else None,
        )
    return _dense(parts)


def _kind(grid: Grid) -> tuple[object, ...]:
    """Return what grids must have in common to be one."""
    offset = None if grid.offset is None else grid.offset.dtype
    return grid.q.dtype, grid.scale.dtype, offset, replace(grid, q=_NONE, scale=_NONE, offset=None)


_NONE = ir.tensor(np.zeros(0, np.float32))


def _dense(parts: Sequence[Weight]) -> Dense:
    """Return weights one above the other in f32."""
    return Dense(_rows([part.tensor if isinstance(part, Dense) else _values(part) for part in parts]))


def _values(grid: Grid) -> ir.LazyTensor:
    def values() -> F32Array:
        return dequantized(grid)

    return lazy(values, ir.DataType.FLOAT, grid.shape)


def _rows(parts: Sequence[ir.TensorProtocol]) -> ir.LazyTensor:
    shapes = [static(part) for part in parts]
    shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    whole = lazy(lambda: np.concatenate([np.asarray(part.numpy()) for part in parts]), parts[0].dtype, shape)
    whole.meta[PARTS] = tuple(parts)
    return stored_alike(whole, parts)
