"""The Triton functions of `fp8_linear` and `int8_linear`.

The operands are swapped as in `linear`: a tile of the weight comes first and the rows of x are its columns.
"""

import triton
import triton.language as tl

from tokc.targets.gpu.functions.linear import finish


@triton.jit
def operand_tile(
    pointer, row, row_inside, column, STRIDE: tl.constexpr, K: tl.constexpr, MASKED: tl.constexpr
):
    """Load [rows, columns] of a matrix whose rows lie STRIDE apart; zero past the rows and past K."""
    at = pointer + row[:, None] * STRIDE + column[None, :]
    if MASKED:
        return tl.load(at, mask=row_inside[:, None] & (column < K)[None, :], other=0.0)
    return tl.load(at, mask=row_inside[:, None], other=0.0)


@triton.jit
def scaled_linear(weight, scale, x, x_scale, info, bias, y,
                  N: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr, BLOCK_SCALES: tl.constexpr,
                  EXACT: tl.constexpr, F16: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Compute a tile [ROWS, BLOCK_N] of y; without a bias, its pointer is a constant, None.

    EXACT: products are summed in i32. Else a tile of columns is summed by the matrix unit, whose sums of fp8
    products keep fewer bits than f32, and the tiles are added in f32.
    """
    count = tl.load(info + COUNT)
    first_row = tl.program_id(0) * ROWS
    if first_row >= count:
        return
    first_n = tl.program_id(1) * BLOCK_N
    row = tl.arange(0, ROWS)
    n = tl.arange(0, BLOCK_N)
    row_inside = row < count - first_row
    n_inside = n < N - first_n
    MASKED: tl.constexpr = K % BLOCK_K != 0
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    # Within a tile 32 bits address everything; its first element may lie further away.
    weight += first_n.to(tl.int64) * K
    x += first_row.to(tl.int64) * X_STRIDE
    y += first_row.to(tl.int64) * N + first_n
    acc = tl.zeros((BLOCK_N, ROWS), tl.int32 if EXACT else tl.float32)
    for k in range(0, K, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        w = operand_tile(weight, n, n_inside, column, K, K, MASKED)
        part = tl.trans(operand_tile(x, row, row_inside, column, X_STRIDE, K, MASKED))
        if EXACT:
            acc = tl.dot(w, part, acc=acc, out_dtype=tl.int32)
        elif BLOCK_SCALES:
            block = k // BLOCK_K
            by = tl.load(scale + first_n // BLOCK_K * BLOCKS + block)
            x_by = tl.load(x_scale + (first_row + row) * BLOCKS + block, mask=row_inside, other=0.0)
            acc += tl.dot(w, part) * (x_by * by)[None, :]
        else:
            acc += tl.dot(w, part)
    total = acc.to(tl.float32)
    if not BLOCK_SCALES:
        by = tl.load(scale + first_n + n, mask=n_inside, other=0.0)
        total = total * by[:, None] * tl.load(x_scale + first_row + row, mask=row_inside, other=0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + first_n + n, mask=n_inside, other=0.0)[:, None]
    finish(total, y, n, n_inside, row, row_inside, N, F16)
