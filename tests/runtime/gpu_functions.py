"""Triton functions of a small model: what it answers depends on every input that a step has."""

# Constexprs are capitals, and a kernel takes as many pointers as it reads.
# ruff: noqa: N803, PLR0917
import triton
import triton.language as tl


@triton.jit
def embed(input_ids, info, table, x, WIDTH: tl.constexpr):
    """Copy a token's row of the table."""
    token = tl.program_id(0)
    if token >= tl.load(info):
        return
    column = tl.arange(0, WIDTH)
    row = tl.load(input_ids + token)
    tl.store(x + token * WIDTH + column, tl.load(table + row * WIDTH + column))


@triton.jit
def remember(
    input_ids, positions, sequences, block_tables, query_tiles, info, kv,
    TILE: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Write a tile's tokens into their sequence's pages."""
    tile = tl.program_id(0)
    if tile >= tl.load(info + 4):
        return
    first = tl.load(query_tiles + tile * 2)
    within = tl.arange(0, TILE)
    mask = within < tl.load(query_tiles + tile * 2 + 1)
    position = tl.load(positions + first + within, mask=mask, other=0)
    sequence = tl.load(sequences + first)
    page = tl.load(block_tables + sequence * tl.load(info + 3) + position // PAGE, mask=mask, other=0)
    token = tl.load(input_ids + first + within, mask=mask, other=0)
    tl.store(kv + page * PAGE + position % PAGE, token, mask=mask)


@triton.jit
def recall(
    positions, sequences, block_tables, logit_rows, info, kv, parts,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Sum the ids of one split of a row's context."""
    row = tl.program_id(0)
    if row >= tl.load(info + 1):
        return
    split = tl.program_id(1)
    if split >= tl.load(info + 5):
        return
    token = tl.load(logit_rows + row)
    position = split * SPLIT + tl.arange(0, SPLIT)
    mask = position <= tl.load(positions + token)
    table = block_tables + tl.load(sequences + token) * tl.load(info + 3)
    page = tl.load(table + position // PAGE, mask=mask, other=0)
    found = tl.load(kv + page * PAGE + position % PAGE, mask=mask, other=0)
    tl.store(parts + row * SPLITS + split, tl.sum(found))


@triton.jit
def head(
    y, parts, logit_rows, info, bias, logits,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, LOGITS_STRIDE: tl.constexpr,
):  # fmt: skip
    """Add what a row remembers and a bias to its activations."""
    row = tl.program_id(0)
    if row >= tl.load(info + 1):
        return
    column = tl.arange(0, WIDTH)
    split = tl.arange(0, SPLITS)
    total = tl.sum(tl.load(parts + row * SPLITS + split, mask=split < tl.load(info + 5), other=0))
    own = tl.load(y + tl.load(logit_rows + row) * WIDTH + column).to(tl.float32)
    sums = own + tl.load(bias + column) + total.to(tl.float32)
    tl.store(logits + row * LOGITS_STRIDE + column, sums)
