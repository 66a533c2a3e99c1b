"""The meaning of every op in JAX, a row each; imported only where JAX is.

Rows work on [tokens, width] in float32. What multiplies is cast to the step's `compute` dtype and summed in
float32, so that "float32" answers as the IR does and "bfloat16" feeds a TPU's matrix unit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tokc.targets.tpu import attention
from tokc.targets.tpu.products import cut_product, depth_of
from tokc.targets.tpu.step import Node, Step

Array = Any  # jax.Array, or a tracer of one
NIBBLE = 4
FEWEST_ROWS = 8  # that are gathered at once


@dataclass
class Run:
    """What the rows of one step share: the batch, and the cache as it is after the nodes so far."""

    step: Step
    positions: Array
    sequences: Array
    block_tables: Array
    caches: list[tuple[Array, ...]]
    mesh: Any = None
    values: dict[str, Array] = field(default_factory=dict)

    @property
    def compute(self) -> Any:
        """Return the dtype of what is multiplied."""
        return jnp.dtype(self.step.compute)


def product(run: Run, x: Array, weight: Array, axis: int) -> Array:
    """Return ``x @ weight`` over the weight's `axis`, operands in the compute dtype, sums in float32."""
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    precision = lax.Precision.HIGHEST if run.compute == jnp.float32 else None
    return lax.dot_general(
        x.astype(run.compute),
        weight.astype(run.compute),
        dims,
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def codes(weight: Array, *, signed: bool) -> Array:
    """Return the integers of a grid; a uint8 weight holds two of them a byte, see `Weight`."""
    if weight.dtype != jnp.uint8:
        return weight
    if signed:
        byte = lax.bitcast_convert_type(weight, jnp.int8)
        pair = (lax.shift_left(byte, jnp.int8(NIBBLE)), byte)
        parts = [lax.shift_right_arithmetic(part, jnp.int8(NIBBLE)) for part in pair]
    else:
        parts = [weight & jnp.uint8(15), lax.shift_right_logical(weight, jnp.uint8(NIBBLE))]
    return jnp.concatenate(parts, axis=-1)


def dequantized(node: Node, q: Array, scale: Array, offset: Array | None, axis: int) -> Array:
    """Return ``(code - zero_point) * scale (+ offset)``, f32, the scales a block of `axis`."""
    values = codes(q, signed=bool(node.attributes["signed"])).astype(jnp.float32)
    block = int(node.attributes["block_size"])  # type: ignore[arg-type]
    width = values.shape[axis]

    def spread(per_block: Array) -> Array:
        wide = jnp.repeat(per_block.astype(jnp.float32), block, axis=axis)
        return lax.slice_in_dim(wide, 0, width, axis=axis)

    values *= spread(scale)
    return values if offset is None else values + spread(offset)


def linear(run: Run, node: Node, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``y = x @ weight.T (+ bias)``; weight [n, k]."""
    del node
    y = product(run, x, weight, 1)
    return y if bias is None else y + bias


def quant_linear(run: Run, node: Node, x: Array, q: Array, scale: Array, *rest: Array | None) -> Array:
    """Multiply by a weight on a grid, dequantized as it is read: [k, n], or [n, k] of a table."""
    offset, bias = (*rest, None, None)[:2]
    axis = 0 if node.attributes["transposed"] else 1
    block = int(node.attributes["block_size"])  # type: ignore[arg-type]
    cut = str(node.attributes.get("cut", "whole"))
    width = x.shape[1] // (run.step.chips if cut == "rows" else 1)
    if run.step.products == "pallas" and axis == 0 and depth_of(width, block) is not None:
        y = cut_product(run.mesh, cut, x.astype(run.compute), q, scale, offset, block)
    else:
        y = product(run, x, dequantized(node, q, scale, offset, axis), axis)
    return y if bias is None else y + bias


def matmul(run: Run, node: Node, x: Array, weight: Array) -> Array:
    """``y = x @ weight``."""
    del node
    return product(run, x, weight, 0)


def block_dequantize(run: Run, node: Node, q: Array, scale: Array, offset: Array | None = None) -> Array:
    """``w = (q - zero_point) * scale (+ offset)`` a block of the last axis."""
    del run
    return dequantized(node, q, scale, offset, 1)


def quant_embedding(
    run: Run, node: Node, ids: Array, q: Array, scale: Array, offset: Array | None = None
) -> Array:
    """Gather rows of a table on a grid, then dequantize them."""
    del run
    # XLA for TPUs lays a whole table out anew to slice one row from it, but not to gather some.
    some = jnp.concatenate([ids, jnp.zeros(FEWEST_ROWS - 1, ids.dtype)]) if len(ids) == 1 else ids
    rest = None if offset is None else offset[some]
    return dequantized(node, q[some], scale[some], rest, 1)[: len(ids)]


def gather(run: Run, node: Node, table: Array, ids: Array) -> Array:
    """Gather rows: token embedding, or the rows whose logits are wanted."""
    del run, node
    return table[ids].astype(jnp.float32)


def normed(x: Array, weight: Array, epsilon: float) -> Array:
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last axis."""
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def rms_norm(run: Run, node: Node, x: Array, weight: Array) -> Array:
    """Normalize each token's row."""
    del run
    return normed(x, weight, float(node.attributes.get("epsilon", 1e-5)))  # type: ignore[arg-type]


def add_rms_norm(run: Run, node: Node, x: Array, residual: Array, weight: Array) -> tuple[Array, Array]:
    """``sum = x + residual; normed = RMSNorm(sum) * weight``."""
    total = x + residual
    return total, rms_norm(run, node, total, weight)


def gated_activation(run: Run, node: Node, gate_up: Array) -> Array:
    """``act(gate) * up``."""
    del run
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return (jax.nn.silu(gate) if node.attributes["activation"] == "silu" else jax.nn.gelu(gate)) * up


def gelu(run: Run, node: Node, x: Array) -> Array:
    """Gelu, exact or by tanh."""
    del run
    return jax.nn.gelu(x, approximate=node.attributes.get("approximate", "none") == "tanh")


def split(run: Run, node: Node, x: Array) -> tuple[Array, ...]:
    """Cut the last axis at constant widths."""
    del run
    widths: Any = node.attributes["widths"]
    stops = [sum(widths[: at + 1]) for at in range(len(widths))]
    return tuple(lax.slice_in_dim(x, stop - w, stop, axis=-1) for w, stop in zip(widths, stops, strict=True))


def elementwise(compute: Callable[..., Array]) -> Callable[..., Array]:
    """Return the row of an op that computes each element from those at the same place."""

    def row(run: Run, node: Node, *operands: Array) -> Array:
        del run, node
        return compute(*operands)

    return row


def rope_write_kv(run: Run, node: Node, q: Array, k: Array, v: Array, *rest: Array) -> Array:
    """Rotate queries and keys, and write each token's key and value into its page."""
    cos, sin = rest[:2]
    q_norm, k_norm = rest[2:4] if len(rest) > 2 else (None, None)
    at = jnp.maximum(run.positions, 0)
    turns = (cos[at][:, None, :], sin[at][:, None, :])

    def heads(x: Array, name: str, norm: Array | None) -> Array:
        split_heads = x.reshape(x.shape[0], int(node.attributes[name]), -1)  # type: ignore[arg-type]
        if norm is not None:
            split_heads = normed(split_heads, norm, float(node.attributes["epsilon"]))  # type: ignore[arg-type]
        return attention.rotated(split_heads, *turns)

    keys = heads(k, "kv_heads", k_norm)
    layer = int(node.attributes["layer"])  # type: ignore[arg-type]
    run.caches[layer] = attention.written(
        run.caches[layer],
        keys,
        v.reshape(keys.shape),
        (run.positions, run.sequences, run.block_tables),
    )
    return heads(q, "heads", q_norm).reshape(q.shape)


def paged_attention(run: Run, node: Node, q: Array) -> Array:
    """Let each token attend to the pages of its own sequence, up to its own position."""
    cache = run.caches[int(node.attributes["layer"])]  # type: ignore[arg-type]
    heads = q.reshape(q.shape[0], int(node.attributes["heads"]), -1)  # type: ignore[arg-type]
    attend = attention.ATTENTION[run.step.attention]
    query = attention.Query(
        heads=heads,
        kv_heads=int(node.attributes["kv_heads"]),  # type: ignore[arg-type]
        scale=float(node.attributes["scale"]),  # type: ignore[arg-type]
        window=int(node.attributes.get("window", 0)),  # type: ignore[arg-type]
        positions=run.positions,
        sequences=run.sequences,
        block_tables=run.block_tables,
        compute=run.compute,
        mesh=run.mesh,
    )
    return attend(query, cache).reshape(q.shape)


ROWS: Mapping[str, Callable[..., Any]] = {
    "Add": elementwise(lambda a, b: a + b),
    "AddRmsNorm": add_rms_norm,
    "BlockDequantize": block_dequantize,
    "Cast": elementwise(lambda x: x),
    "Div": elementwise(lambda a, b: a / b),
    "GatedActivation": gated_activation,
    "Gather": gather,
    "Gelu": gelu,
    "Identity": elementwise(lambda x: x),
    "Linear": linear,
    "MatMul": matmul,
    "Mul": elementwise(lambda a, b: a * b),
    "PagedAttention": paged_attention,
    "QuantEmbedding": quant_embedding,
    "QuantLinear": quant_linear,
    "RMSNormalization": rms_norm,
    "RopeWriteKV": rope_write_kv,
    "Sigmoid": elementwise(jax.nn.sigmoid),
    "Split": split,
    "Sub": elementwise(lambda a, b: a - b),
    "Tanh": elementwise(jnp.tanh),
}
