"""The Triton function of `round_rows`."""

import triton
import triton.language as tl

LARGEST: tl.constexpr = tl.constexpr(448.0)
LEAST_EXPONENT: tl.constexpr = tl.constexpr(-6)
SHIFT: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: a sum with it has no bits below 1


@triton.jit
def round_rows(x, info, y, y_scale,
               WIDTH: tl.constexpr, X_STRIDE: tl.constexpr, UNIT: tl.constexpr, COUNT: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """Round one row to e4m3, whose codes are put together in integers: not every device can cast to it.

    UNIT: how many of the device's numbers make the number of the same code in 'fn'.
    """
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + COUNT):
        return
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row * X_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    top = tl.max(tl.abs(value), 0)
    scale = tl.where(top > 0.0, top / LARGEST, 1.0)
    size = tl.minimum(tl.abs(value) / scale, LARGEST)
    exponent = tl.maximum((size.to(tl.int32, bitcast=True) >> 23) - 127, LEAST_EXPONENT)
    inverse_step = ((130 - exponent) << 23).to(tl.float32, bitcast=True)  # 2 ** (3 - exponent)
    steps = ((size * inverse_step + SHIFT) - SHIFT).to(tl.int32)  # 8 to 16, or subnormal; ties to even
    code = ((exponent + 7) << 3) + steps - 8
    negative = (value < 0.0) & (code > 0)  # the other form has NaN for -0
    tl.store(y + row * WIDTH + column, tl.where(negative, code + 128, code).to(tl.uint8), mask=inside)
    tl.store(y_scale + row, scale * UNIT)
