"""The Triton functions of `embedding`."""

import triton
import triton.language as tl


@triton.jit
def embedding(table, input_ids, info, out, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    """Copy one block of columns of one token's row."""
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(info):
        return
    row = tl.load(input_ids + token).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < HIDDEN
    values = tl.load(table + row * HIDDEN + column, mask=inside, other=0.0)
    tl.store(out + token * HIDDEN + column, values.to(tl.float32), mask=inside)


@triton.jit
def grid_row(
    weight, scale, offset, input_ids, info, out,
    HIDDEN: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, SCALE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Dequantize one block of columns of one token's row; `offset` None: the grid is symmetric."""
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(info):
        return
    row = tl.load(input_ids + token).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < HIDDEN
    if BITS == 4:
        # A group's quarters 0 and 1 lie in the nibbles of its even bytes, 2 and 3 in those of the odd ones.
        quarter = column % GROUP // (GROUP // 4)
        byte = column // GROUP * (GROUP // 2) + column % (GROUP // 4) * 2 + quarter // 2
        packed = tl.load(weight + row * (HIDDEN // 2) + byte, mask=inside, other=0).to(tl.int32)
        code = (packed >> (quarter % 2 * 4)) & 0xF
        if offset is None:
            code -= 8
    else:
        code = tl.load(weight + row * HIDDEN + column, mask=inside, other=0).to(tl.int32)
    group = (column // GROUP).to(tl.int64) * SCALE_STRIDE + row
    values = code.to(tl.float32) * tl.load(scale + group, mask=inside, other=0.0).to(tl.float32)
    if offset is not None:
        values += tl.load(offset + group, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * HIDDEN + column, values, mask=inside)


@triton.jit
def quant_embedding(
    weight, scale, input_ids, info, out,
    HIDDEN: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, SCALE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Dequantize rows of a symmetric grid."""
    grid_row(weight, scale, None, input_ids, info, out, HIDDEN, BITS, GROUP, SCALE_STRIDE, BLOCK)


@triton.jit
def quant_embedding_offset(
    weight, scale, offset, input_ids, info, out,
    HIDDEN: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, SCALE_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Dequantize rows of a grid with offsets."""
    grid_row(weight, scale, offset, input_ids, info, out, HIDDEN, BITS, GROUP, SCALE_STRIDE, BLOCK)
