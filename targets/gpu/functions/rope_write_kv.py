"""The Triton function of `rope_write_kv`."""

import triton
import triton.language as tl

# The largest f16, and what added to a small f32 leaves no room for its fraction: 1.5 * 2^23.
F16_MAX = tl.constexpr(65504.0)
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def to_half(x):
    """Round to f16, held within its range."""
    return tl.minimum(tl.maximum(x, -F16_MAX), F16_MAX).to(tl.float16)


@triton.jit
def codes(x, inverse):
    """Return int8 codes of x, rounded half to even, as every device's rounding of a sum does."""
    return ((x * inverse + ROUNDER) - ROUNDER).to(tl.int8)


@triton.jit
def inverse_of(scale):
    """Return 1 / scale; 1 for a row of zeros, whose codes are 0."""
    return tl.div_rn(1.0, tl.where(scale == 0.0, 1.0, scale))


@triton.jit
def rotated_query(
    q,
    q_norm,
    q_out,
    cos,
    sin,
    column,
    whole,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    DIM: tl.constexpr,
    NORM: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Rotate the query heads of one key head: q and q_out point at the first of them."""
    head = tl.arange(0, GROUP_ROWS)[:, None]
    place = head * DIM + column[None, :]
    inside = (head < GROUP) & whole[None, :]
    first = tl.load(q + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(q + place + DIM // 2, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / DIM
        factor = tl.rsqrt(mean + EPSILON)[:, None]
        first *= factor * tl.load(q_norm + column, mask=whole, other=0.0)[None, :]
        second *= factor * tl.load(q_norm + DIM // 2 + column, mask=whole, other=0.0)[None, :]
    tl.store(q_out + place, to_half(first * cos[None, :] - second * sin[None, :]), mask=inside)
    tl.store(q_out + place + DIM // 2, to_half(first * sin[None, :] + second * cos[None, :]), mask=inside)


@triton.jit
def rotated_key(
    k, k_norm, cos, sin, column, whole, DIM: tl.constexpr, NORM: tl.constexpr, EPSILON: tl.constexpr
):
    """Return both halves of the rotated key head that k points at, f32."""
    first = tl.load(k + column, mask=whole, other=0.0).to(tl.float32)
    second = tl.load(k + DIM // 2 + column, mask=whole, other=0.0).to(tl.float32)
    if NORM:
        factor = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / DIM + EPSILON)
        first *= factor * tl.load(k_norm + column, mask=whole, other=0.0)
        second *= factor * tl.load(k_norm + DIM // 2 + column, mask=whole, other=0.0)
    return first * cos - second * sin, first * sin + second * cos


@triton.jit
def write_row(
    cache,
    scales,
    scale_at,
    at,
    first,
    second,
    column,
    whole,
    STEP: tl.constexpr,
    DIM: tl.constexpr,
    INT8: tl.constexpr,
):
    """Write a row's halves, STEP elements between its columns, and its scale where it is int8."""
    place = at + column * STEP
    if INT8:
        largest = tl.maximum(tl.max(tl.abs(first), 0), tl.max(tl.abs(second), 0))
        scale = tl.div_rn(largest, 127.0)
        inverse = inverse_of(scale)
        tl.store(cache + place, codes(first, inverse), mask=whole)
        tl.store(cache + place + DIM // 2 * STEP, codes(second, inverse), mask=whole)
        tl.store(scales + scale_at, scale)
    else:
        tl.store(cache + place, to_half(first), mask=whole)
        tl.store(cache + place + DIM // 2 * STEP, to_half(second), mask=whole)


@triton.jit
def rope_write_kv(
    q,
    k,
    v,
    cos,
    sin,
    positions,
    sequences,
    block_tables,
    info,
    q_norm,
    k_norm,
    q_out,
    cache_key,
    cache_value,
    key_scale,
    value_scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    DIM: tl.constexpr,
    HALF_COLUMNS: tl.constexpr,
    PAGE: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    EPSILON: tl.constexpr,
    INT8: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Rotate one token's key head and its queries; write the key and the value."""
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(info):
        return
    head = tl.program_id(1)
    position = tl.load(positions + token)
    table = block_tables + tl.load(sequences + token) * tl.load(info + BLOCKS)
    page = tl.load(table + position // PAGE).to(tl.int64)
    slot = position % PAGE
    column = tl.arange(0, HALF_COLUMNS)
    whole = column < DIM // 2
    angle = position * (DIM // 2) + column
    c = tl.load(cos + angle, mask=whole, other=0.0)
    s = tl.load(sin + angle, mask=whole, other=0.0)
    rotated_query(
        q + token * Q_STRIDE + head * (GROUP * DIM),
        q_norm,
        q_out + (token * KV_HEADS + head) * (GROUP * DIM),
        c,
        s,
        column,
        whole,
        GROUP,
        GROUP_ROWS,
        DIM,
        Q_NORM,
        EPSILON,
    )
    first, second = rotated_key(
        k + token * K_STRIDE + head * DIM, k_norm, c, s, column, whole, DIM, K_NORM, EPSILON
    )
    at = (page * KV_HEADS + head) * (DIM * PAGE)
    scale_at = (page * KV_HEADS + head) * PAGE + slot
    write_row(cache_key, key_scale, scale_at, at + slot, first, second, column, whole, PAGE, DIM, INT8)
    value = v + token * V_STRIDE + head * DIM + column
    first = tl.load(value, mask=whole, other=0.0).to(tl.float32)
    second = tl.load(value + DIM // 2, mask=whole, other=0.0).to(tl.float32)
    write_row(cache_value, value_scale, scale_at, at + slot * DIM, first, second, column, whole, 1, DIM, INT8)
