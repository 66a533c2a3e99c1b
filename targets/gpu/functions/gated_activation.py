"""The Triton function of `gated_activation`."""

import triton
import triton.language as tl


@triton.jit
def gated_activation(
    gate_up,
    info,
    y,
    WIDTH: tl.constexpr,
    X_STRIDE: tl.constexpr,
    SLOTS: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one block of columns of one row: of a token, or of one of its slots."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info) * SLOTS:
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up + row * X_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * X_STRIDE + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        act = gate / (1.0 + tl.exp(-gate))
    else:
        # gelu_tanh(x) = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))
        act = gate / (1.0 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
    product = tl.minimum(tl.maximum(act * up, -65504.0), 65504.0)
    tl.store(y + row * WIDTH + column, product.to(tl.float16), mask=inside)
