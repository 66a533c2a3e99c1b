"""The Triton functions of `ranks`."""

import triton
import triton.language as tl


@triton.jit
def rank_sum(
    x,
    info,
    y,
    RANKS: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add one block of columns of one row of every rank, in the order of ranks."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + COUNT):
        return
    step = tl.load(info + PADDED).to(tl.int64) * WIDTH
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.load(x + row * WIDTH + column, mask=inside, other=0.0)
    for rank in tl.static_range(1, RANKS):
        total += tl.load(x + rank * step + row * WIDTH + column, mask=inside, other=0.0)
    tl.store(y + row * WIDTH + column, total, mask=inside)


@triton.jit
def rank_join(
    x,
    info,
    y,
    RANKS: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy one block of columns of one row of one rank to where the whole row has it."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(info + COUNT):
        return
    rank = tl.program_id(2)
    step = tl.load(info + PADDED).to(tl.int64) * WIDTH
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    values = tl.load(x + rank * step + row * WIDTH + column, mask=inside, other=0.0)
    tl.store(y + (row * RANKS + rank) * WIDTH + column, values, mask=inside)
