"""A cache of 4 bits: the ops mean what their layout says; numpy is the judge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.test_ops import (
    DIM,
    F32,
    HEADS,
    KV_HEADS,
    PAGE,
    PAGES,
    POSITIONS,
    RNG,
    SEQUENCES,
    TABLES,
    random,
    run_op,
)
from tests.targets.cpu.paged import codes_of, hadamard, nibbled_heads

BATCH = {"positions": POSITIONS, "sequences": SEQUENCES, "block_tables": TABLES}


def empty() -> dict[str, np.ndarray]:
    """Return pages that hold nothing."""
    return {
        "cache_key": np.zeros((PAGES, KV_HEADS, DIM // 2, PAGE), np.uint8),
        "cache_value": np.zeros((PAGES, KV_HEADS, PAGE, DIM // 2), np.uint8),
        "key_scale": np.zeros((PAGES, KV_HEADS, PAGE), np.float16),
        "value_scale": np.zeros((PAGES, KV_HEADS, PAGE), np.float16),
    }


def written(q: F32, k: F32, v: F32) -> dict[str, np.ndarray]:
    """Return what RopeWriteKV makes where no angle turns a head."""
    still = {"cos": np.ones((10, DIM // 2), np.float32), "sin": np.zeros((10, DIM // 2), np.float32)}
    attributes = {"heads": HEADS, "kv_heads": KV_HEADS, "epsilon": 1e-5, "dtype": "int4"}
    return run_op("RopeWriteKV", {"q": q, "k": k, "v": v, **still, **BATCH, **empty()}, attributes)


def test_keys_and_values_are_written_two_codes_a_byte_with_an_f16_scale() -> None:
    q, k, v = random(4, HEADS * DIM), random(4, KV_HEADS * DIM), random(4, KV_HEADS * DIM)
    v[2] = 0
    made, mixed = written(q, k, v), hadamard(DIM).astype(np.float32)
    np.testing.assert_allclose(made["q_rot"], (q.reshape(4, HEADS, DIM) @ mixed).reshape(4, -1), atol=1e-5)
    heads = {"key": k.reshape(4, KV_HEADS, DIM) @ mixed, "value": v.reshape(4, KV_HEADS, DIM)}
    for token in range(4):
        page, slot = TABLES[SEQUENCES[token], POSITIONS[token] // PAGE], POSITIONS[token] % PAGE
        found = {
            "key": made["cache_key_out"][page, :, :, slot],
            "value": made["cache_value_out"][page, :, slot],
        }
        for part, codes in found.items():
            expected, scale = nibbled_heads(heads[part][token])
            np.testing.assert_allclose(made[f"{part}_scale_out"][page, :, slot], scale, rtol=1e-3)
            assert np.abs(codes_of(codes) - codes_of(expected)).max() <= 1
            step = np.abs(scale.astype(np.float32))[:, None]
            kept = codes_of(codes) * made[f"{part}_scale_out"][page, :, slot, None].astype(np.float32)
            furthest = codes_of(codes) == 7  # one side ends a step before the other
            assert (np.abs(kept - heads[part][token]) <= step * (0.51 + 0.5 * furthest)).all()
    assert np.count_nonzero(made["key_scale_out"]) == 4 * KV_HEADS


@given(st.integers(0, 2**31), st.floats(1e-3, 1e6))
def test_turned_keys_and_queries_have_the_products_they_had(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 96)) * size
    mixed = hadamard(96)
    assert np.isclose(x @ y, (x @ mixed) @ (y @ mixed), rtol=1e-9, atol=1e-9 * size**2)
    assert np.isclose(np.linalg.norm(x @ mixed), np.linalg.norm(x))


def test_values_beyond_fp16_stay_finite() -> None:
    huge = np.full((4, KV_HEADS * DIM), 3e38, np.float32)
    made = written(random(4, HEADS * DIM), huge / DIM, -huge)
    assert np.isfinite(made["key_scale_out"].astype(np.float32)).all()
    assert np.isfinite(made["value_scale_out"].astype(np.float32)).all()


@pytest.mark.parametrize("window", [0, 3])
def test_attention_reads_the_codes(window: int) -> None:
    cache = {name: RNG.integers(0, 256, one.shape).astype(np.uint8) for name, one in empty().items()}
    for name in ("key_scale", "value_scale"):
        cache[name] = (random(PAGES, KV_HEADS, PAGE) / 20).astype(np.float16)
    q = random(4, HEADS * DIM)
    inputs = {"q": q, **cache, **BATCH}
    attributes = {"heads": HEADS, "kv_heads": KV_HEADS, "scale": 0.3, "window": window, "bits": 4}
    y = run_op("PagedAttention", inputs, attributes)["y"].reshape(4, HEADS, DIM)
    for token, position in enumerate(POSITIONS):
        seen = np.arange(max(0, position - window + 1) if window else 0, position + 1)
        pages, slots = TABLES[SEQUENCES[token], seen // PAGE], seen % PAGE
        for head in range(HEADS):
            place = pages, head // 2
            key_scale, value_scale = (cache[name][(*place, slots)] for name in ("key_scale", "value_scale"))
            keys = codes_of(cache["cache_key"][pages, head // 2, :, slots]) * key_scale[:, None]
            values = codes_of(cache["cache_value"][pages, head // 2, slots]) * value_scale[:, None]
            scores = keys @ q.reshape(4, HEADS, DIM)[token, head] * 0.3
            weights = np.exp(scores - scores.max())
            expected = weights / weights.sum() @ values
            np.testing.assert_allclose(y[token, head], expected, rtol=1e-3, atol=1e-4)
