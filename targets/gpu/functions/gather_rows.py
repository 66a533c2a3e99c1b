"""The Triton function of `gather_rows`."""

import triton
import triton.language as tl

ROWS: tl.constexpr = tl.constexpr(1)  # the entry of info that counts logit rows


@triton.jit
def gather_rows(x, logit_rows, info, out, WIDTH: tl.constexpr, X_STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Copy one block of columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + ROWS):
        return
    source = tl.load(logit_rows + row).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    values = tl.load(x + source * X_STRIDE + column, mask=inside, other=0.0)
    tl.store(out + row * WIDTH + column, values, mask=inside)
