"""The Triton functions of `sampling`."""

import triton
import triton.language as tl

NONE = tl.constexpr(float("-inf"))


@triton.jit
def arg_max(
    logits,
    info,
    tokens,
    VOCAB: tl.constexpr,
    X_STRIDE: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the index of a row's largest logit."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + COUNT):
        return
    column = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), NONE, tl.float32)
    at = column
    for begin in tl.range(0, VOCAB, BLOCK, num_stages=STAGES):
        inside = begin + column < VOCAB
        value = tl.load(logits + row * X_STRIDE + begin + column, mask=inside, other=NONE)
        # Each lane walks upwards, so that it keeps the first of equal logits; NaN is larger than nothing.
        larger = value > best
        best = tl.where(larger, value, best)
        at = tl.where(larger, begin + column, at)
    first = tl.min(tl.where(best == tl.max(best, 0), at, VOCAB), 0)
    tl.store(tokens + row, first)
