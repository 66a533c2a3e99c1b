"""The Triton functions of `elementwise`."""

import triton
import triton.language as tl


@triton.jit
def store(y, place, value, inside):
    """Write f32 values in the dtype of y, held within f16's range where that is f16."""
    if y.dtype.element_ty == tl.float16:
        value = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def pair(
    a,
    b,
    info,
    y,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    A_STRIDE: tl.constexpr,
    B_STRIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Add or multiply one block of columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + COUNT):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    left = tl.load(a + row * A_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(b + row * B_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    value = left * right if PRODUCT else left + right
    store(y, row * WIDTH + column, value, inside)


@triton.jit
def scale(
    x,
    info,
    y,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    X_STRIDE: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Multiply one block of columns of one row by a constant."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + COUNT):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row * X_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    store(y, row * WIDTH + column, value * FACTOR, inside)


@triton.jit
def activate(
    x,
    info,
    y,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    X_STRIDE: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    """Apply sigmoid or the tanh form of GELU to one block of columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + COUNT):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row * X_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    if SIGMOID:
        act = 1.0 / (1.0 + tl.exp(-value))
    else:
        # gelu_tanh(x) = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))
        act = value / (1.0 + tl.exp(-1.5957691216057308 * (value + 0.044715 * value * value * value)))
    store(y, row * WIDTH + column, act, inside)
