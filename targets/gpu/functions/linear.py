"""The Triton functions of `linear`.

The product is taken with its operands swapped: a tile of the weight, [BLOCK_N, BLOCK_K], is the first operand
of the matrix unit and stays in registers once it is dequantized; the rows of x are its columns. So the
matrix unit is filled along its long side even for one token, and narrow and wide steps differ in nothing but
the number of columns.
"""

import triton
import triton.language as tl


@triton.jit
def code_pairs(words, BITS: tl.constexpr, ZERO: tl.constexpr):
    """Turn the lowest bits of the halves of u32 [n, columns / 2] into f16(code - ZERO) [n, columns].

    Exact: f16 numbers from 1024 to 2047 are one apart, so that a code is the mantissa of 1024 + code. Two at
    once take an `and`, an `or` and a subtraction, since the halves of the word are a pair of f16 as they
    stand; a conversion takes more, at a quarter of the rate or less.
    """
    pairs = (words & (0x000F000F if BITS == 4 else 0x00FF00FF)) | 0x64006400
    low = (pairs & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    high = (pairs >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
    joined = tl.reshape(tl.join(low, high), (words.shape[0], 2 * words.shape[1]))
    return joined - (1024.0 + ZERO)


@triton.jit
def weight_tile(weight, n, n_inside, column, STRIDE: tl.constexpr, MASKED: tl.constexpr):
    """Load [BLOCK_N, columns] of rows of STRIDE elements."""
    at = weight + n[:, None] * STRIDE + column[None, :]
    if MASKED:
        return tl.load(at, mask=n_inside[:, None] & (column < STRIDE)[None, :], other=0)
    return tl.load(at)


@triton.jit
def row_tile(x, row, row_inside, column, STRIDE: tl.constexpr, K: tl.constexpr, MASKED: tl.constexpr):
    """Load a tile of x, turned: [columns, rows]."""
    at = x + row[None, :] * STRIDE + column[:, None]
    if MASKED:
        return tl.load(at, mask=row_inside[None, :] & (column < K)[:, None], other=0.0)
    return tl.load(at, mask=row_inside[None, :], other=0.0)


@triton.jit
def spread_groups(values, k, n, n_inside, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
                  MASKED: tl.constexpr):  # fmt: skip
    """Load scales or offsets of the groups of columns k.. and repeat each SPAN times.

    Stored [K / GROUP, N up to a multiple of 16]; returns [BLOCK_N, groups * SPAN]. Every value is fetched
    once, and repeated by naming its register again.
    """
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    STRIDE: tl.constexpr = (N + 15) // 16 * 16
    group = k // GROUP + tl.arange(0, GROUPS)
    at = values + group[:, None] * STRIDE + n[None, :]
    if MASKED:
        loaded = tl.load(at, mask=(group < K // GROUP)[:, None] & n_inside[None, :], other=0.0)
    else:
        loaded = tl.load(at)
    turned = tl.permute(loaded, (1, 0))[:, :, None]
    return tl.reshape(tl.broadcast_to(turned, (BLOCK_N, GROUPS, SPAN)), (BLOCK_N, GROUPS * SPAN))


@triton.jit
def accumulate(acc, first, last, weight, scale, offset, x, n, n_inside, row, row_inside,
               N: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr, BITS: tl.constexpr,
               GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
               MASKED: tl.constexpr):  # fmt: skip
    """Add the products of columns [first, last) to acc f32[BLOCK_N, rows], in ascending tiles."""
    for k in range(first, last, BLOCK_K):
        if BITS == 16:
            column = k + tl.arange(0, BLOCK_K)
            w = weight_tile(weight, n, n_inside, column, K, MASKED)
            part = row_tile(x, row, row_inside, column, X_STRIDE, K, MASKED)
            acc = tl.dot(w, part, acc=acc)
        else:
            # A word holds columns of one group, two neighbours of each of its PARTS. The parts take the same
            # scales, and are a product each, so that nothing has to be moved between threads.
            PARTS: tl.constexpr = 16 // BITS
            SPAN: tl.constexpr = GROUP // PARTS
            ZERO: tl.constexpr = 128 if BITS == 8 else 8 if offset is None else 0
            PER_WORD: tl.constexpr = 32 // BITS
            words = weight.to(tl.pointer_type(tl.uint32), bitcast=True)
            word = k // PER_WORD + tl.arange(0, BLOCK_K // PER_WORD)
            codes = weight_tile(words, n, n_inside, word, K // PER_WORD, MASKED)
            by = spread_groups(scale, k, n, n_inside, N, K, GROUP, BLOCK_N, BLOCK_K, SPAN, MASKED)
            if offset is not None:
                plus = spread_groups(offset, k, n, n_inside, N, K, GROUP, BLOCK_N, BLOCK_K, SPAN, MASKED)
            j = tl.arange(0, BLOCK_K // PARTS)
            for piece in tl.static_range(PARTS):
                column = k + j // SPAN * GROUP + piece * SPAN + j % SPAN
                part = row_tile(x, row, row_inside, column, X_STRIDE, K, MASKED)
                w = code_pairs(codes >> (BITS * piece), BITS, ZERO) * by
                if offset is not None:
                    w += plus
                acc = tl.dot(w, part, acc=acc)
    return acc


@triton.jit
def finish(acc, y, n, n_inside, row, row_inside, N: tl.constexpr, F16: tl.constexpr):
    """Write acc [BLOCK_N, rows] to y [rows, N]; f16 is held within its range."""
    at = y + row[None, :] * N + n[:, None]
    inside = row_inside[None, :] & n_inside[:, None]
    if F16:
        tl.store(at, tl.minimum(tl.maximum(acc, -65504.0), 65504.0).to(tl.float16), mask=inside)
    else:
        tl.store(at, acc, mask=inside)


@triton.jit
def linear(weight, scale, offset, x, info, bias, y, partials, counters,
           N: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr, BITS: tl.constexpr,
           GROUP: tl.constexpr, F16: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr,
           BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """Compute a tile [ROWS, BLOCK_N] of y; a pointer that the form does not take is a constant, None.

    The columns are summed in SPLITS ranges, whose sums are added in order. With `partials` a program takes
    one range, and the program that comes last to its tile adds up; without, a program takes them all.
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
    MASKED: tl.constexpr = N % BLOCK_N != 0 or K % BLOCK_K != 0
    SHARE: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    # Within a tile 32 bits address everything; its first element may lie further away.
    weight += first_n.to(tl.int64) * (K // 2 if BITS == 4 else K)  # in elements: bytes, or f16
    x += first_row.to(tl.int64) * X_STRIDE
    y += first_row.to(tl.int64) * N + first_n
    if scale is not None:
        scale += first_n
    if offset is not None:
        offset += first_n
    if bias is not None:
        bias += first_n
    acc = tl.zeros((BLOCK_N, ROWS), tl.float32)
    if partials is not None:
        split = tl.program_id(2)
        last = tl.minimum(split * SHARE + SHARE, K)
        acc = accumulate(acc, split * SHARE, last, weight, scale, offset, x, n, n_inside, row, row_inside,
                         N, K, X_STRIDE, BITS, GROUP, BLOCK_N, BLOCK_K, MASKED)  # fmt: skip
        at = partials + first_n + row[None, :] * N + n[:, None]
        inside = row_inside[None, :] & n_inside[:, None]
        tl.store(at + split * (ROWS * N), acc, mask=inside)
        # Every thread's part must have been written before the program counts itself in.
        tl.debug_barrier()
        if tl.atomic_add(counters + tl.program_id(1), 1, sem="acq_rel", scope="gpu") < SPLITS - 1:
            return
        tl.debug_barrier()
        acc = tl.zeros((BLOCK_N, ROWS), tl.float32)
        for each in range(SPLITS):
            acc += tl.load(at + each * (ROWS * N), mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(counters + tl.program_id(1), 0)
    elif SPLITS == 1:
        acc = accumulate(acc, 0, K, weight, scale, offset, x, n, n_inside, row, row_inside,
                         N, K, X_STRIDE, BITS, GROUP, BLOCK_N, BLOCK_K, MASKED)  # fmt: skip
    else:
        for split in range(SPLITS):
            last = tl.minimum(split * SHARE + SHARE, K)
            part = tl.zeros((BLOCK_N, ROWS), tl.float32)
            acc += accumulate(part, split * SHARE, last, weight, scale, offset, x, n, n_inside, row,
                              row_inside, N, K, X_STRIDE, BITS, GROUP, BLOCK_N, BLOCK_K, MASKED)  # fmt: skip
    if bias is not None:
        acc += tl.load(bias + n, mask=n_inside, other=0.0)[:, None]
    finish(acc, y, n, n_inside, row, row_inside, N, F16)
