"""The Triton functions of `paged_attention` and of its reduction over splits."""

import triton
import triton.language as tl

NONE = tl.constexpr(float("-inf"))


@triton.jit
def merge(top, mass, acc, top_part, mass_part, acc_part):
    """Join two parts of a softmax: maxima (scaled, base 2), sums and weighted values of some rows.

    The multiply-adds are spelled out, for a compiler that chose which product to fuse could choose otherwise
    in another kernel. A part that saw nothing (-inf, 0, 0), on either side, leaves the other bit for bit.
    """
    top_both = tl.maximum(top, top_part)
    top_safe = tl.where(top_both == NONE, 0.0, top_both)
    old = tl.exp2(top - top_safe)
    new = tl.exp2(top_part - top_safe)
    mass_both = tl.fma(mass, old, mass_part * new)
    acc_both = tl.fma(acc, old[:, None], acc_part * new[:, None])
    return top_both, mass_both, acc_both


@triton.jit
def attend_split(
    query,
    cache_key,
    cache_value,
    key_scale,
    value_scale,
    table,
    head,
    start,
    stop,
    oldest,
    last,
    position,
    tree_start,
    tree_bits,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    INT8: tl.constexpr,
    TREE: tl.constexpr,
):
    """Return (top, mass, acc) of one split: an online softmax over blocks of cached tokens from `start`.

    A block that a row does not see leaves its (top, mass, acc) bit for bit: its maximum stays, so that the
    old sums are multiplied by exp2(0) = 1, and zeros are added to them. So it does not matter which further
    blocks the other rows of a tile need.
    """
    top = tl.full((ROWS,), NONE, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    column = tl.arange(0, COLUMNS)
    whole = column < DIM
    for begin in range(start, stop, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        block = token // PAGE
        # Whole pages are masked, so that the 16 tokens of a page stay one vector; what lies in them out of
        # sight of every row may be anything: its scores are replaced and its values are not loaded.
        paged = block <= last // PAGE
        known = token <= last
        if WINDOW:
            paged = paged & (block >= oldest // PAGE)
            known = known & (token >= oldest)
        page = tl.load(table + block, mask=paged, other=0)
        at = (tl.max_constancy(page, PAGE).to(tl.int64) * KV_HEADS + head) * (DIM * PAGE)
        slot = token % PAGE
        key_at = at[None, :] + slot[None, :] + (column * PAGE)[:, None]
        key = tl.load(cache_key + key_at, mask=paged[None, :] & whole[:, None], other=0.0)
        score = tl.dot(query, key.to(tl.float16))
        scale_at = (tl.max_constancy(page, PAGE) * KV_HEADS + head) * PAGE + slot
        if INT8:
            score *= tl.load(key_scale + scale_at, mask=paged, other=0.0)[None, :]
        if TREE:
            bit = token[None, :] - tree_start[:, None]
            in_tree = (tree_bits[:, None] >> tl.minimum(tl.maximum(bit, 0), 31)) & 1
            seen = (token[None, :] <= position[:, None]) & ((bit < 0) | (in_tree == 1))
        else:
            seen = token[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (token[None, :] > position[:, None] - WINDOW)
        score = tl.where(seen, score, NONE)
        top_new = tl.maximum(top, tl.max(score, 1) * SCALE)
        top_safe = tl.where(top_new == NONE, 0.0, top_new)
        weight = tl.exp2(tl.fma(score, SCALE, -top_safe[:, None]))
        old = tl.exp2(top - top_safe)
        mass = tl.fma(mass, old, tl.sum(weight, 1))
        value_at = at[:, None] + (slot * DIM)[:, None] + column[None, :]
        value = tl.load(cache_value + value_at, mask=known[:, None] & whole[None, :], other=0.0)
        if INT8:
            factor = tl.load(value_scale + scale_at, mask=known, other=0.0)
            value = (value.to(tl.float32) * factor[:, None]).to(tl.float16)
        acc = tl.dot(weight.to(tl.float16), value, acc=acc * old[:, None])
        top = top_new
    return top, mass, acc


@triton.jit
def paged_attention(
    q,
    cache_key,
    cache_value,
    key_scale,
    value_scale,
    positions,
    sequences,
    block_tables,
    query_tiles,
    tree,
    info,
    y,
    partials,
    statistics,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    INT8: tl.constexpr,
    TREE: tl.constexpr,
    WIDE: tl.constexpr,
    TILES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Attend from one tile, for the query heads of one key head; over one split unless WIDE."""
    tile = tl.program_id(0)
    if tile >= tl.load(info + TILES):
        return
    head = tl.program_id(1)
    first = tl.load(query_tiles + tile * 2)
    count = tl.load(query_tiles + tile * 2 + 1)
    own = tl.load(positions + first)
    last = own + count - 1
    # The first cached token that any row sees.
    oldest = tl.maximum(own - WINDOW + 1, 0) if WINDOW else 0
    if WIDE:
        begin_split = oldest // SPLIT
        end_split = last // SPLIT + 1
    else:
        begin_split = tl.program_id(2)
        end_split = begin_split + 1
        if (begin_split * SPLIT > last) | (end_split * SPLIT <= oldest):
            return
    row = tl.arange(0, ROWS)
    inside = row // GROUP < count
    token = (first + row // GROUP).to(tl.int64)
    query_head = head * GROUP + row % GROUP
    column = tl.arange(0, COLUMNS)
    place = (token * (KV_HEADS * GROUP) + query_head)[:, None] * DIM + column[None, :]
    mask = inside[:, None] & (column < DIM)[None, :]
    query = tl.load(q + place, mask=mask, other=0.0)
    # Rows of padding see what the first token sees, so that their softmax has a value.
    position = own + tl.where(inside, row // GROUP, 0)
    tree_start = position
    tree_bits = position
    if TREE:
        tree_start = tl.load(tree + token * 2, mask=inside, other=0)
        tree_bits = tl.load(tree + token * 2 + 1, mask=inside, other=-1)
    table = block_tables + tl.load(sequences + first).to(tl.int64) * tl.load(info + BLOCKS)
    top = tl.full((ROWS,), NONE, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for split in range(begin_split, end_split):
        # Blocks are counted from the start of their split, whatever the window leaves out before them.
        start = split * SPLIT + tl.maximum(oldest - split * SPLIT, 0) // BLOCK * BLOCK
        stop = tl.minimum((split + 1) * SPLIT, last + 1)
        top_part, mass_part, acc_part = attend_split(
            query,
            cache_key,
            cache_value,
            key_scale,
            value_scale,
            table,
            head,
            start,
            stop,
            oldest,
            last,
            position,
            tree_start,
            tree_bits,
            KV_HEADS,
            DIM,
            COLUMNS,
            PAGE,
            ROWS,
            BLOCK,
            WINDOW,
            SCALE,
            INT8,
            TREE,
        )
        if WIDE:
            top, mass, acc = merge(top, mass, acc, top_part, mass_part, acc_part)
        else:
            part = (token * (KV_HEADS * GROUP) + query_head) * SPLITS + split
            tl.store(partials + part[:, None] * DIM + column[None, :], acc_part, mask=mask)
            tl.store(statistics + part * 2, top_part, mask=inside)
            tl.store(statistics + part * 2 + 1, mass_part, mask=inside)
    if WIDE:
        tl.store(y + place, (acc * (1.0 / mass)[:, None]).to(tl.float16), mask=mask)


@triton.jit
def paged_attention_reduce(
    partials,
    statistics,
    positions,
    info,
    y,
    HEADS: tl.constexpr,
    HEADS_A_PROGRAM: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Merge the splits of some heads of one token, in ascending order."""
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(info):
        return
    head = tl.program_id(1) * HEADS_A_PROGRAM + tl.arange(0, HEADS_A_PROGRAM)
    inside = head < HEADS
    column = tl.arange(0, COLUMNS)
    mask = inside[:, None] & (column < DIM)[None, :]
    own = tl.load(positions + token)
    oldest = tl.maximum(own - WINDOW + 1, 0) if WINDOW else 0
    top = tl.full((HEADS_A_PROGRAM,), NONE, tl.float32)
    mass = tl.zeros((HEADS_A_PROGRAM,), tl.float32)
    acc = tl.zeros((HEADS_A_PROGRAM, COLUMNS), tl.float32)
    for split in tl.range(oldest // SPLIT, own // SPLIT + 1, num_stages=STAGES):
        part = (token * HEADS + head) * SPLITS + split
        top_part = tl.load(statistics + part * 2, mask=inside, other=0.0)
        mass_part = tl.load(statistics + part * 2 + 1, mask=inside, other=1.0)
        acc_part = tl.load(partials + part[:, None] * DIM + column[None, :], mask=mask, other=0.0)
        top, mass, acc = merge(top, mass, acc, top_part, mass_part, acc_part)
    place = (token * HEADS + head)[:, None] * DIM + column[None, :]
    tl.store(y + place, (acc * (1.0 / mass)[:, None]).to(tl.float16), mask=mask)
