"""The paged cache and attention in JAX against their definitions in f64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.targets.tpu.interpreted import interpret_kernels
from tokc.targets.tpu import attention

PAGE, BLOCKS, PAGES = 16, 6, 24
Array = Any


def step(seed: int = 0) -> tuple[Array, Array, Array]:
    """Return positions, sequences, tables of a prefill, two decodes and two padding tokens."""
    rng = np.random.default_rng(seed)
    positions = np.array([37, 38, 39, 70, 5, 0, 1, 2, -1, -1], np.int32)
    sequences = np.array([0, 0, 0, 1, 2, 3, 3, 3, 0, 0], np.int32)
    return positions, sequences, rng.permutation(PAGES)[: 4 * BLOCKS].reshape(4, BLOCKS).astype(np.int32)


def filled(rng: np.random.Generator, heads: int, dim: int, batch: Any, dtype: str = "float32") -> Any:
    """Return a cache that holds NaN where no token of a sequence lies, and normal numbers elsewhere."""
    positions, sequences, tables = batch
    cache = np.full((PAGES + 1, PAGE, 2 * heads, dim), np.nan, np.float32)
    for sequence, table in enumerate(tables):
        length = positions[sequences == sequence].max() + 1
        for position in range(length):
            cache[table[position // PAGE], position % PAGE] = rng.normal(size=(2 * heads, dim))
    return jnp.asarray(cache).astype(dtype)


def attended(q: Array, cache: Array, batch: Any, kv_heads: int, scale: float, window: int) -> Array:
    """Return attention by its definition, in f64, for every token that is no padding."""
    positions, sequences, tables = batch
    pages = np.asarray(cache, np.float64)
    result = np.zeros(q.shape)
    group = q.shape[1] // kv_heads
    for token, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        first = max(0, position - window + 1) if window else 0
        rows = [pages[tables[sequence][at // PAGE], at % PAGE] for at in range(first, position + 1)]
        if not rows:
            continue
        past = np.stack(rows)
        for head in range(q.shape[1]):
            keys, values = past[:, 2 * (head // group)], past[:, 2 * (head // group) + 1]
            scores = keys[:, : q.shape[2]] @ q[token, head].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            result[token, head] = weights @ values[:, : q.shape[2]] / weights.sum()
    return result


def query(q: Array, batch: Any, kv_heads: int, window: int, compute: str = "float32") -> attention.Query:
    positions, sequences, tables = (jnp.asarray(each) for each in batch)
    scale = q.shape[2] ** -0.5
    return attention.Query(
        jnp.asarray(q), kv_heads, scale, window, positions, sequences, tables, jnp.dtype(compute)
    )


@pytest.mark.parametrize("window", [0, 7, 64])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 3, 8)])
def test_attention_over_pages_is_attention(heads: int, kv_heads: int, dim: int, window: int) -> None:
    rng, batch = np.random.default_rng(1), step()
    q = rng.normal(size=(10, heads, dim)).astype(np.float32)
    cache = filled(rng, kv_heads, dim, batch)
    found = attention.by_chunks(query(q, batch, kv_heads, window), (cache,))
    expected = attended(q, cache, batch, kv_heads, dim**-0.5, window)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("window", [0, 5])
def test_one_sequence_shares_its_reads(window: int) -> None:
    rng = np.random.default_rng(2)
    batch = (
        np.array([30, 31, 32, 33, -1], np.int32),
        np.zeros(5, np.int32),
        rng.permutation(PAGES)[:BLOCKS].reshape(1, BLOCKS).astype(np.int32),
    )
    q = rng.normal(size=(5, 4, 16)).astype(np.float32)
    cache = filled(rng, 2, 16, batch)
    found = attention.by_chunks(query(q, batch, 2, window), (cache,))
    np.testing.assert_allclose(found, attended(q, cache, batch, 2, 0.25, window), atol=2e-6)


def test_padding_attends_to_nothing_and_writes_to_the_last_page_alone() -> None:
    rng, batch = np.random.default_rng(3), step()
    cache = jnp.asarray(rng.normal(size=(PAGES + 1, PAGE, 4, 8)).astype(np.float32))
    keys, values = (rng.normal(size=(10, 2, 8)).astype(np.float32) for _ in range(2))
    (found,) = attention.written((cache,), keys, values, batch)
    positions, sequences, tables = batch
    expected = np.array(cache)
    for token in range(8):
        place = tables[sequences[token]][positions[token] // PAGE], positions[token] % PAGE
        expected[place] = np.stack([keys[token], values[token]], axis=1).reshape(4, 8)
    np.testing.assert_array_equal(found[:PAGES], expected[:PAGES])
    assert not np.array_equal(found[PAGES], cache[PAGES])
    q = rng.normal(size=(10, 4, 8)).astype(np.float32)
    y = attention.by_chunks(query(q, batch, 2, 0), (found,))
    np.testing.assert_array_equal(y[8:], 0)


def test_int8_pages_hold_codes_and_their_scales() -> None:
    rng, batch = np.random.default_rng(4), step()
    keys, values = (rng.normal(size=(10, 2, 8)).astype(np.float32) * 3 for _ in range(2))
    keys[1, 0] = 0.0
    empty = (jnp.zeros((PAGES + 1, PAGE, 4, 8), jnp.int8), jnp.zeros((PAGES + 1, PAGE, 4), jnp.float32))
    codes, scales = attention.written(empty, keys, values, batch)
    positions, sequences, tables = batch
    for token in range(8):
        page, slot = tables[sequences[token]][positions[token] // PAGE], positions[token] % PAGE
        rows = np.stack([keys[token], values[token]], axis=1).reshape(4, 8)
        np.testing.assert_allclose(scales[page, slot], np.abs(rows).max(-1) / 127, rtol=1e-6)
        near = np.asarray(codes[page, slot], np.float32) * np.asarray(scales[page, slot])[:, None]
        assert np.abs(near - rows).max() <= np.asarray(scales[page, slot]).max() * 0.5001
    q = rng.normal(size=(10, 4, 8)).astype(np.float32)
    plain = np.asarray(codes, np.float32) * np.asarray(scales)[..., None]
    found = attention.by_chunks(query(q, batch, 2, 0), (codes, scales))
    np.testing.assert_allclose(found[:8], attended(q, plain, batch, 2, 8**-0.5, 0)[:8], atol=2e-6)


def test_heads_are_padded_as_the_cache_is() -> None:
    rng, batch = np.random.default_rng(5), step()
    keys, values = (rng.normal(size=(10, 3, 8)).astype(np.float32) for _ in range(2))
    (found,) = attention.written((jnp.ones((PAGES + 1, PAGE, 8, 16)),), keys, values, batch)
    row = np.asarray(found)[batch[2][1][70 // PAGE], 70 % PAGE]
    np.testing.assert_array_equal(row[:6, :8].reshape(3, 2, 8)[:, 0], keys[3])
    assert not row[6:].any()
    assert not row[:, 8:].any()


@pytest.mark.parametrize("window", [pytest.param(0, marks=pytest.mark.slow), 7])
def test_the_pallas_kernel_interpreted_answers_as_the_definition(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX's kernel runs in Pallas' interpreter, over padded heads and bfloat16 pages, as on a TPU."""
    interpret_kernels(monkeypatch)
    rng, batch = np.random.default_rng(6), step()
    q = rng.normal(size=(10, 6, 64)).astype(np.float32)
    cache = np.nan_to_num(np.array(filled(rng, 4, 128, batch)))
    cache[:, :, 6:], cache[..., 64:] = 0, 0
    pages = jnp.asarray(cache).astype(jnp.bfloat16)
    attend = jax.jit(lambda x: attention.by_pallas(query(x, batch, 3, window, "bfloat16"), (pages,)))
    expected = attended(q, pages.astype(jnp.float32), batch, 3, 0.125, window)
    np.testing.assert_allclose(attend(q), expected, atol=0.02)
    np.testing.assert_array_equal(attend(q)[8:], 0)


def test_halves_of_a_head_are_rotated() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(5, 2, 8)).astype(np.float32)
    angle = rng.normal(size=(5, 1, 4))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
    found = attention.rotated(jnp.asarray(x), np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), atol=1e-6)
