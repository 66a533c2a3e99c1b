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
    # Pair j of bytes of a group holds column j of each of its PARTS, the later ones in higher bits.
    PARTS: tl.constexpr = 16 // BITS
    bit = column % GROUP // (GROUP // PARTS) * BITS
    byte = column // GROUP * (GROUP * BITS // 8) + column % (GROUP // PARTS) * 2 + bit // 8
    packed = tl.load(weight + row * (HIDDEN * BITS // 8) + byte, mask=inside, other=0).to(tl.int32)
    code = (packed >> (bit % 8)) & (0xF if BITS == 4 else 0xFF)
    if offset is None:
        code -= 8 if BITS == 4 else 128
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
