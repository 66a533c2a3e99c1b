"""The Triton functions of `paged_attention` and of its reduction over splits."""

import triton
import triton.language as tl

NONE = tl.constexpr(float("-inf"))


@triton.jit
def merged(top, mass, top_part, mass_part):
    """Join two parts of a softmax, of maxima (scaled, base 2) and sums; return also the factors of both.

    The multiply-adds of a merge are spelled out, for a compiler that chose which product to fuse could
    choose otherwise in another kernel. A part that saw nothing (-inf, 0, 0), on either side, leaves the
    other bit for bit.
    """
    top_both = tl.maximum(top, top_part)
    top_safe = tl.where(top_both == NONE, 0.0, top_both)
    old = tl.exp2(top - top_safe)
    new = tl.exp2(top_part - top_safe)
    return top_both, tl.fma(mass, old, mass_part * new), old[:, None], new[:, None]


@triton.jit
def scores(
    query,
    cache_key,
    key_scale,
    page,
    paged,
    token,
    position,
    tree_start,
    tree_bits,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    INT8: tl.constexpr,
    TREE: tl.constexpr,
):
    """Return query times key a row and cached token, unscaled; -inf where the row does not see the token."""
    column = tl.arange(0, COLUMNS)
    slot = token % PAGE
    at = tl.max_constancy(page.to(tl.int64) * (KV_HEADS * DIM * PAGE), PAGE)
    key_at = (cache_key + at)[None, :] + (slot[None, :] + (column * PAGE)[:, None])
    key = tl.load(key_at, mask=paged[None, :] & (column < DIM)[:, None], other=0.0)
    if INT8:
        key = tl.reshape(tl.reshape(key, (COLUMNS // 2, 2, BLOCK)).to(tl.float16), (COLUMNS, BLOCK))
    score = tl.dot(query, key.to(tl.float16))
    if INT8:
        score *= tl.load(
            key_scale + tl.max_constancy(page * (KV_HEADS * PAGE), PAGE) + slot, mask=paged, other=0.0
        )[None, :]
    if TREE:
        bit = token[None, :] - tree_start[:, None]
        in_tree = (tree_bits[:, None] >> tl.minimum(tl.maximum(bit, 0), 31)) & 1
        seen = (token[None, :] <= position[:, None]) & ((bit < 0) | (in_tree == 1))
    else:
        seen = token[None, :] <= position[:, None]
    if WINDOW:
        seen = seen & (token[None, :] > position[:, None] - WINDOW)
    return tl.where(seen, score, NONE)


@triton.jit
def values(
    cache_value,
    value_scale,
    page,
    known,
    token,
    column,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    INT8: tl.constexpr,
):
    """Return some columns of the values of a block, f16; 0 for a token that no row sees."""
    slot = token % PAGE
    at = tl.max_constancy(page.to(tl.int64) * (KV_HEADS * DIM * PAGE), PAGE)
    value_at = (cache_value + at)[:, None] + ((slot * DIM)[:, None] + column[None, :])
    value = tl.load(value_at, mask=known[:, None] & (column < DIM)[None, :], other=0.0)
    if INT8:
        scale_at = tl.max_constancy(page * (KV_HEADS * PAGE), PAGE) + slot
        factor = tl.load(value_scale + scale_at, mask=known, other=0.0)
        pairs = tl.reshape(value, (BLOCK // 2, 2, column.shape[0])).to(tl.float32)
        pairs *= tl.reshape(factor, (BLOCK // 2, 2))[:, :, None]
        value = tl.reshape(pairs.to(tl.float16), (BLOCK, column.shape[0]))
    return value


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
    HALVES: tl.constexpr,
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
    """Attend from one tile, for the query heads of one key head; over one split unless WIDE.

    A block that a row does not see leaves its (top, mass, acc) bit for bit: its maximum stays, so that the
    old sums are multiplied by exp2(0) = 1, and zeros are added to them. So it does not matter which further
    blocks the other rows of a tile need.
    """
    tile = tl.program_id(0)
    if tile >= tl.load(info + TILES):
        return
    head = tl.program_id(1)
    first = tl.load(query_tiles + tile * 2)
    count = tl.load(query_tiles + tile * 2 + 1)
    own = tl.load(positions + first)
    last = own + count - 1
    # The first cached token that any row sees, and the block that holds it.
    oldest = tl.maximum(own - WINDOW + 1, 0) if WINDOW else 0
    start = oldest // BLOCK * BLOCK
    stop = last + 1
    if not WIDE:
        split = tl.program_id(2)
        start = tl.maximum(start, split * SPLIT)
        stop = tl.minimum(stop, split * SPLIT + SPLIT)
        if start >= stop:
            return
    row = tl.arange(0, ROWS)
    inside = row // GROUP < count
    token = (first + row // GROUP).to(tl.int64)
    query_head = head * GROUP + row % GROUP
    column = tl.arange(0, COLUMNS)
    place = (token * (KV_HEADS * GROUP) + query_head)[:, None] * DIM + column[None, :]
    query = tl.load(q + place, mask=inside[:, None] & (column < DIM)[None, :], other=0.0)
    # Rows of padding see what the first token sees, so that their softmax has a value.
    position = own + tl.where(inside, row // GROUP, 0)
    tree_start = position
    tree_bits = position
    if TREE:
        tree_start = tl.load(tree + token * 2, mask=inside, other=0)
        tree_bits = tl.load(tree + token * 2 + 1, mask=inside, other=-1)
    table = block_tables + tl.load(sequences + first).to(tl.int64) * tl.load(info + BLOCKS)
    half = tl.arange(0, COLUMNS // HALVES)
    top = tl.full((ROWS,), NONE, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, COLUMNS // HALVES), tl.float32)
    acc_right = acc
    all_top = top
    all_mass = mass
    all_acc = acc
    all_right = acc
    for begin in range(start, stop, BLOCK):
        cached = begin + tl.arange(0, BLOCK)
        block = cached // PAGE
        # Whole pages are masked, so that the 16 tokens of a page stay one vector; what lies in them out of
        # sight of every row may be anything: its scores are replaced and its values are not loaded.
        paged = block <= last // PAGE
        known = cached <= last
        if WINDOW:
            paged = paged & (block >= oldest // PAGE)
            known = known & (cached >= oldest)
        page = tl.load(table + block, mask=paged, other=0)
        score = scores(
            query,
            cache_key + head * (DIM * PAGE),
            key_scale + head * PAGE,
            page,
            paged,
            cached,
            position,
            tree_start,
            tree_bits,
            KV_HEADS,
            DIM,
            COLUMNS,
            PAGE,
            BLOCK,
            WINDOW,
            INT8,
            TREE,
        )
        if WIDE:  # noqa: SIM102
            # Not at the end of an iteration: there Triton 3.9 lets a branch read what wgmma still writes.
            if begin % SPLIT == 0:
                all_top, all_mass, before, after = merged(all_top, all_mass, top, mass)
                all_acc = tl.fma(all_acc, before, acc * after)
                top = tl.full((ROWS,), NONE, tl.float32)
                mass = tl.zeros((ROWS,), tl.float32)
                acc = tl.zeros((ROWS, COLUMNS // HALVES), tl.float32)
                if HALVES == 2:
                    all_right = tl.fma(all_right, before, acc_right * after)
                    acc_right = tl.zeros((ROWS, COLUMNS // HALVES), tl.float32)
        top_new = tl.maximum(top, tl.max(score, 1) * SCALE)
        top_safe = tl.where(top_new == NONE, 0.0, top_new)
        weight = tl.exp2(tl.fma(score, SCALE, -top_safe[:, None]))
        old = tl.exp2(top - top_safe)
        mass = tl.fma(mass, old, tl.sum(weight, 1))
        weight = weight.to(tl.float16)
        values_at = cache_value + head * (DIM * PAGE)
        scales_at = value_scale + head * PAGE
        value = values(values_at, scales_at, page, known, cached, half, KV_HEADS, DIM, PAGE, BLOCK, INT8)
        acc = tl.dot(weight, value, acc=acc * old[:, None])
        if HALVES == 2:
            right = COLUMNS // 2 + half
            value = values(values_at, scales_at, page, known, cached, right, KV_HEADS, DIM, PAGE, BLOCK, INT8)
            acc_right = tl.dot(weight, value, acc=acc_right * old[:, None])
        top = top_new
    if WIDE:
        all_top, all_mass, before, after = merged(all_top, all_mass, top, mass)
        all_acc = tl.fma(all_acc, before, acc * after)
        if HALVES == 2:
            all_right = tl.fma(all_right, before, acc_right * after)
    # Read again, so that no address need be held in registers through the loop.
    first = tl.load(query_tiles + tile * 2, volatile=True)
    count = tl.load(query_tiles + tile * 2 + 1, volatile=True)
    inside = row // GROUP < count
    mask = inside[:, None] & (half < DIM)[None, :]
    mask_right = inside[:, None] & (COLUMNS // 2 + half < DIM)[None, :]
    place = (first + row // GROUP).to(tl.int64) * (KV_HEADS * GROUP) + query_head
    if WIDE:
        inverse = (1.0 / all_mass)[:, None]
        at = y + place[:, None] * DIM + half[None, :]
        tl.store(at, (all_acc * inverse).to(tl.float16), mask=mask)
        if HALVES == 2:
            tl.store(at + COLUMNS // 2, (all_right * inverse).to(tl.float16), mask=mask_right)
    else:
        part = place * SPLITS + tl.program_id(2)
        at = partials + part[:, None] * DIM + half[None, :]
        tl.store(at, acc, mask=mask)
        if HALVES == 2:
            tl.store(at + COLUMNS // 2, acc_right, mask=mask_right)
        tl.store(statistics + part * 2, top, mask=inside)
        tl.store(statistics + part * 2 + 1, mass, mask=inside)


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
        top, mass, before, after = merged(top, mass, top_part, mass_part)
        acc = tl.fma(acc, before, acc_part * after)
    place = (token * HEADS + head)[:, None] * DIM + column[None, :]
    tl.store(y + place, (acc * (1.0 / mass)[:, None]).to(tl.float16), mask=mask)
