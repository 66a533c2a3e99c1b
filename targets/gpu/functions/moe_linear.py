"""The Triton function of `moe_linear`; a tile's arithmetic is that of `linear`."""

import triton
import triton.language as tl

from tokc.targets.gpu.functions.linear import accumulate, finish


@triton.jit
def moe_linear(
    weight,
    scale,
    offset,
    x,
    starts,
    order,
    y,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BY_TOKEN: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    F16: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Compute a tile [at most ROWS, BLOCK_N] of one expert's rows of y.

    The tiles of rows are counted expert by expert; a program finds its own from `starts`, and none past the
    last does anything.
    """
    tile = tl.program_id(0)
    each = tl.arange(0, BLOCK_E)
    begins = tl.load(starts + each, mask=each < EXPERTS, other=0)
    ends = tl.load(starts + 1 + each, mask=each < EXPERTS, other=0)
    tiles = tl.cumsum((ends - begins + ROWS - 1) // ROWS, 0)
    expert = tl.sum((tiles <= tile).to(tl.int32), 0)
    if expert >= EXPERTS:
        return
    earlier = tl.max(tl.where(tiles <= tile, tiles, 0), 0)
    first = tl.load(starts + expert) + (tile - earlier) * ROWS
    row = tl.arange(0, ROWS)
    row_inside = row < tl.load(starts + expert + 1) - first
    slot = tl.load(order + first + row, mask=row_inside, other=0)
    first_n = tl.program_id(1) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    n_inside = n < N - first_n
    MASKED: tl.constexpr = N % BLOCK_N != 0 or K % BLOCK_K != 0
    at = expert * N + first_n
    weight += at.to(tl.int64) * (K // 2 if BITS == 4 else K)  # in elements: bytes, or f16
    if scale is not None:
        scale += at
    if offset is not None:
        offset += at
    acc = tl.zeros((BLOCK_N, ROWS), tl.float32)
    acc = accumulate(acc, 0, K, weight, scale, offset, x, n, n_inside, slot // TOP_K if BY_TOKEN else slot,
                     row_inside, EXPERTS * N, K, X_STRIDE, BITS, GROUP, BLOCK_N, BLOCK_K, MASKED)  # fmt: skip
    finish(acc, y + first_n, n, n_inside, slot, row_inside, N, F16)
