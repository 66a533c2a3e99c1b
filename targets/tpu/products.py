"""A product with a weight on a grid as a Pallas kernel: codes are dequantized in the chip's own memory.

XLA alone writes the scales, spread over their groups in float32, to HBM before it multiplies: sixteen times
the bytes of four-bit codes. Here a step of the kernel reads codes and scales as they lie and spreads them in
VMEM: ``y[m, n] = sum_k x[m, k] * (code[k, n] * scale[k / block, n] (+ offset[k / block, n]))``.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tokc.targets.tpu.step import MODEL_AXIS

Array = Any
COLUMNS_AT_ONCE, MOST_COLUMNS = 512, 1024
DEPTH_AT_ONCE, MOST_DEPTH = 2048, 4096
SUBLANES = 8  # rows of float32 that a tile has: blocks of scales begin at multiples of it
VMEM_BYTES = 64 << 20


def depth_of(width: int, block: int) -> int | None:
    """Return how many of `width` rows the kernel takes at once, None if it cannot cut them into blocks."""
    if width % block or block % SUBLANES:
        return None
    if width <= MOST_DEPTH:
        return width
    step = block * SUBLANES
    fitting = [depth for depth in range(step, DEPTH_AT_ONCE + 1, step) if width % depth == 0]
    return max(fitting, default=None)


def columns_of(width: int) -> int:
    """Return how many of `width` columns the kernel takes at once; the last block may be short."""
    return width if width <= MOST_COLUMNS else COLUMNS_AT_ONCE


def kernel(x: Any, q: Any, scale: Any, *rest: Any) -> None:
    """Add one block of rows to the sums of one block of columns; refs, see the module."""
    offset, y = (rest[0], rest[1]) if len(rest) > 1 else (None, rest[0])

    def clear() -> None:
        y[...] = jnp.zeros_like(y)

    pl.when(pl.program_id(1) == 0)(clear)
    depth, columns = q.shape
    groups = scale.shape[0]
    weight = q[...].astype(jnp.float32).reshape(groups, depth // groups, columns)
    weight *= scale[...][:, None, :]
    if offset is not None:
        weight += offset[...][:, None, :]
    weight = weight.reshape(depth, columns).astype(x.dtype)
    y[...] += jnp.dot(x[...], weight, preferred_element_type=jnp.float32)


def grid_product(x: Array, q: Array, scale: Array, offset: Array | None, block: int) -> Array:
    """Return ``x @ w``: x bf16 [m, k], q int4, uint4 or int8 [k, n], scale and offset f32 [k / block, n]."""
    tokens, width = x.shape
    columns = columns_of(q.shape[1])
    depth = depth_of(width, block)
    assert depth is not None, f"{width} rows of groups of {block} are not cut into blocks"
    per_group = pl.BlockSpec((depth // block, columns), lambda n, k: (k, n))
    tables = [scale] if offset is None else [scale, offset]
    result: Array = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((tokens, q.shape[1]), jnp.float32),
        grid=(pl.cdiv(q.shape[1], columns), width // depth),
        in_specs=[
            pl.BlockSpec((tokens, depth), lambda _, k: (0, k)),
            pl.BlockSpec((depth, columns), lambda n, k: (k, n)),
            *(per_group for _ in tables),
        ],
        out_specs=pl.BlockSpec((tokens, columns), lambda n, _: (0, n)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        name="grid_product",
    )(x, q, *tables)
    return result


def cut_product(  # noqa: PLR0913, PLR0917 - a product and how it is cut
    mesh: Any, cut: str, x: Array, q: Array, scale: Array, offset: Array | None, block: int
) -> Array:
    """Return the product over a mesh, the weight cut by "columns", by "rows" (summed after), or "whole"."""
    if mesh is None or mesh.size == 1:
        return grid_product(x, q, scale, offset, block)
    spec = jax.sharding.PartitionSpec
    inner, outer = {
        "columns": (spec(), spec(None, MODEL_AXIS)),
        "rows": (spec(None, MODEL_AXIS), spec(MODEL_AXIS, None)),
        "whole": (spec(), spec()),
    }[cut]
    tables = [scale] if offset is None else [scale, offset]

    def part(x: Array, q: Array, scale: Array, *rest: Array) -> Array:
        y = grid_product(x, q, scale, rest[0] if rest else None, block)
        return jax.lax.psum(y, MODEL_AXIS) if cut == "rows" else y

    call = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(inner, outer, *(outer for _ in tables)),
        out_specs=outer if cut == "columns" else spec(),
        check_vma=False,
    )
    return call(x, q, *tables)
