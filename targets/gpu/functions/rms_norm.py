"""The Triton function of `rms_norm`."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(
    x,
    residual,
    total,
    weight,
    info,
    y_float,
    y,
    WIDTH: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EPSILON: tl.constexpr,
    COUNT: tl.constexpr,
    ADD: tl.constexpr,
    KEEP_FLOAT: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalize one row, after adding the residual to it if asked."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + COUNT):
        return
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = row * X_STRIDE + column
    value = tl.load(x + place, mask=inside, other=0.0)
    if ADD:
        value += tl.load(residual + place, mask=inside, other=0.0)
        tl.store(total + place, value, mask=inside)
    mean = tl.sum(value * value, 0) / WIDTH
    value = value * tl.rsqrt(mean + EPSILON) * tl.load(weight + column, mask=inside, other=0.0)
    if KEEP_FLOAT:
        tl.store(y_float + row * WIDTH + column, value, mask=inside)
    if HALF:
        held = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
        tl.store(y + row * WIDTH + column, held.to(tl.float16), mask=inside)
