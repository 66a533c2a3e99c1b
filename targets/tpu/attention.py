"""Rotation, the paged cache, and attention over it, in JAX; imported only where JAX is.

A layer's cache is [pages + 1, page, 2 * kv_heads, dim], keys and values of a head side by side; with int8, a
second array holds one f32 scale a token and head. Padding tokens have position -1: they write into the last
page, which no sequence owns, and attend to nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tokc.targets.tpu.step import MODEL_AXIS

Array = Any
Batch = tuple[Array, Array, Array]  # positions, sequences, block_tables
CHUNK_TOKENS = 128  # cached tokens that are attended to at once
MOST_GATHERED = 1 << 14  # by all tokens of a step together, where each gathers its own
INT8_MOST = 127.0
NEGATIVE = -1e30  # for masked scores; minus infinity would make NaN of a row that sees nothing


@dataclass(frozen=True)
class Query:
    """What attends: heads f32 [tokens, heads, dim], `window` 0 for the whole past."""

    heads: Array
    kv_heads: int
    scale: float
    window: int
    positions: Array
    sequences: Array
    block_tables: Array
    compute: Any
    mesh: Any = None


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate halves of each head [tokens, heads, dim] by cos and sin [tokens, 1, dim / 2]."""
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def written(cache: tuple[Array, ...], keys: Array, values: Array, batch: Batch) -> tuple[Array, ...]:
    """Return the cache with each token's key and value [tokens, kv_heads, dim] at its place."""
    positions, sequences, tables = batch
    pages = cache[0]
    page = pages.shape[1]
    block = tables[sequences, jnp.maximum(positions, 0) // page]
    place = (jnp.where(positions < 0, pages.shape[0] - 1, block), positions % page)
    rows = jnp.stack([keys, values], axis=2)  # [tokens, kv_heads, 2, dim]
    if pages.dtype == jnp.int8:
        scale = jnp.max(jnp.abs(rows), axis=-1, keepdims=True) / INT8_MOST
        rows = jnp.round(rows * (1.0 / jnp.where(scale == 0.0, 1.0, scale)))
        scales = _set(cache[1], place, scale[..., 0].reshape(len(positions), -1))
        return _set(pages, place, _padded(rows, pages)), scales
    return (_set(pages, place, _padded(rows, pages)),)


def _set(pages: Array, place: tuple[Array, Array], rows: Array) -> Array:
    if rows.shape[1] != pages.shape[2]:
        rows = jnp.pad(rows, ((0, 0), (0, pages.shape[2] - rows.shape[1])))
    return pages.at[place].set(rows.astype(pages.dtype), mode="promise_in_bounds")


def _padded(rows: Array, pages: Array) -> Array:
    """Return rows [tokens, kv_heads, 2, dim] as the cache has them: [tokens, 2 * kv_heads, dim], padded."""
    tokens, heads, pair, dim = rows.shape
    extra = (pages.shape[2] // 2 - heads, pages.shape[3] - dim)
    wide = jnp.pad(rows, ((0, 0), (0, extra[0]), (0, 0), (0, extra[1])))
    return wide.reshape(tokens, pair * (heads + extra[0]), pages.shape[3])


def by_chunks(query: Query, cache: tuple[Array, ...]) -> Array:
    """Attend in plain XLA: a loop over chunks of the cached tokens with a running softmax.

    Shapes: returns f32 [tokens, heads, dim]. Each token gathers the pages of its own sequence; where the step
    has one sequence, all share one gather. The loop ends with the furthest token, so that a short context is
    cheap in a long table.
    Source: Milakov and Gimelshein 2018, arXiv:1805.02867, for the running softmax.
    """
    tokens, heads, dim = query.heads.shape
    pages = cache[0]
    page, group = pages.shape[1], heads // query.kv_heads
    q = (query.heads * query.scale).reshape(tokens, query.kv_heads, group, dim).astype(query.compute)
    one = query.block_tables.shape[0] == 1
    at_once = CHUNK_TOKENS if one else min(CHUNK_TOKENS, MOST_GATHERED // tokens)
    count = max(1, at_once // page)
    width = count * page
    tables = query.block_tables if one else query.block_tables[query.sequences]
    tables = jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % count)))
    own = query.positions[:, None, None, None]
    furthest = jnp.max(query.positions) if one else query.positions[:, None]

    def chunk(at: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        most, total, found = state
        ids = lax.dynamic_slice_in_dim(tables, at * count, count, axis=1)
        keys, values = _read(cache, ids, query, dim)  # [tokens or 1, width, kv_heads, dim]
        kind = "tkgd,skd->tkgs" if one else "tkgd,tskd->tkgs"
        scores = _einsum(kind, q, keys[0] if one else keys)
        index = at * width + jnp.arange(width)
        seen = index <= own
        if query.window:
            seen &= index > own - query.window
        scores = jnp.where(seen, scores, NEGATIVE)
        # Nothing times what no token of the sequence has written yet may be NaN.
        values = jnp.where((index <= furthest)[..., None, None], values, 0)
        highest = jnp.maximum(most, scores.max(axis=-1))
        share = jnp.where(seen, jnp.exp(scores - highest[..., None]), 0.0)
        keep = jnp.exp(most - highest)
        kind = "tkgs,skd->tkgd" if one else "tkgs,tskd->tkgd"
        more = _einsum(kind, share.astype(query.compute), values[0] if one else values)
        return highest, total * keep + share.sum(axis=-1), found * keep[..., None] + more

    shape = (tokens, query.kv_heads, group)
    start = (jnp.full(shape, NEGATIVE), jnp.zeros(shape), jnp.zeros((*shape, dim)))
    first = 0
    if query.window:
        earliest = jnp.min(jnp.where(query.positions < 0, jnp.iinfo(jnp.int32).max, query.positions))
        first = jnp.maximum(earliest - query.window + 1, 0) // width
    last = jnp.max(query.positions) // width + 1
    _, total, found = lax.fori_loop(first, last, chunk, start)
    return (found / jnp.where(total == 0.0, 1.0, total)[..., None]).reshape(tokens, heads, dim)


def _read(cache: tuple[Array, ...], ids: Array, query: Query, dim: int) -> tuple[Array, Array]:
    """Return keys and values [rows, tokens of the pages, kv_heads, dim] of pages `ids` [rows, count]."""
    pages = cache[0].at[ids].get(mode="promise_in_bounds")
    rows, count, page, combined, _ = pages.shape
    both = pages.reshape(rows, count * page, combined // 2, 2, -1)[:, :, : query.kv_heads, :, :dim]
    if len(cache) > 1:
        scales = cache[1].at[ids].get(mode="promise_in_bounds")
        scales = scales.reshape(rows, count * page, combined // 2, 2, 1)[:, :, : query.kv_heads]
        both = both.astype(jnp.float32) * scales
    both = both.astype(query.compute)
    return both[:, :, :, 0], both[:, :, :, 1]


def _einsum(kind: str, left: Array, right: Array) -> Array:
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(kind, left, right, precision=precision, preferred_element_type=jnp.float32)


def by_pallas(query: Query, cache: tuple[Array, ...]) -> Array:
    """Attend by JAX's ragged paged attention kernel, over heads as the cache pads them.

    Needs the tokens of each sequence together, sequences 0, 1, ... in order, padding at the end, and the
    positions of one sequence's tokens consecutive, as the executor lays them out.
    Source: jax.experimental.pallas.ops.tpu.ragged_paged_attention.
    """
    spec = jax.sharding.PartitionSpec
    tokens, heads, dim = query.heads.shape
    pages = cache[0]
    kv_heads, group = pages.shape[2] // 2, heads // query.kv_heads
    q = query.heads.reshape(tokens, query.kv_heads, group, dim)
    q = jnp.pad(q, ((0, 0), (0, kv_heads - query.kv_heads), (0, 0), (0, pages.shape[3] - dim)))
    q = q.reshape(tokens, kv_heads * group, pages.shape[3]).astype(pages.dtype)
    seqs = query.block_tables.shape[0]
    real = query.positions >= 0
    mine = jnp.arange(seqs)[:, None] == query.sequences[None]  # [seqs, tokens]
    counts = jnp.sum(mine & real, axis=1, dtype=jnp.int32)
    lengths = jnp.max(jnp.where(mine, query.positions + 1, 0), axis=1).astype(jnp.int32)
    ends = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    running = jnp.sum(counts > 0, dtype=jnp.int32)[None]
    attend = _kernel(query, tokens)
    if query.mesh is not None and query.mesh.size > 1:
        cut = spec(None, None, MODEL_AXIS, None)
        attend = jax.shard_map(
            attend,
            mesh=query.mesh,
            in_specs=(spec(None, MODEL_AXIS, None), cut, spec(), spec(), spec(), spec()),
            out_specs=spec(None, MODEL_AXIS, None),
            check_vma=False,
        )
    y = attend(q, pages, lengths, query.block_tables, ends, running).astype(jnp.float32)
    y = y.reshape(tokens, kv_heads, group, -1)[:, : query.kv_heads, :, :dim].reshape(tokens, heads, dim)
    return jnp.where(real[:, None, None], y, 0.0)


def _kernel(query: Query, tokens: int) -> Callable[..., Array]:
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    blocks = query.block_tables.shape[1]

    def attend(*operands: Array) -> Array:
        return ragged_paged_attention(
            *operands,
            sm_scale=query.scale,
            sliding_window=query.window or None,
            num_kv_pages_per_block=min(PAGES_AT_ONCE, blocks),
            num_queries_per_block=min(QUERIES_AT_ONCE, tokens),
            vmem_limit_bytes=VMEM_BYTES,
        )

    return attend


# Blocks of the kernel, given so that it asks no device for a tuned table; 64 MiB is half of a v5e's VMEM.
PAGES_AT_ONCE, QUERIES_AT_ONCE, VMEM_BYTES = 8, 32, 64 << 20

ATTENTION: Mapping[str, Callable[[Query, tuple[Array, ...]], Array]] = {
    "xla": by_chunks,
    "pallas": by_pallas,
}
