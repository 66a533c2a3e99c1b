"""The Triton functions of `moe`."""

import triton
import triton.language as tl

NONE = tl.constexpr(float("-inf"))


@triton.jit
def moe_scores(
    x,
    weight,
    info,
    scores,
    WIDTH: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Score COLUMNS experts for ROWS tokens, in f32 throughout."""
    count = tl.load(info)
    first = tl.program_id(0) * ROWS
    if first >= count:
        return
    token = first + tl.arange(0, ROWS)
    expert = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, WIDTH, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        tokens_inside = (token < count)[:, None] & (column < WIDTH)[None, :]
        left = tl.load(x + token[:, None] * X_STRIDE + column[None, :], mask=tokens_inside, other=0.0)
        experts_inside = (expert < EXPERTS)[None, :] & (column < WIDTH)[:, None]
        right = tl.load(weight + expert[None, :] * WIDTH + column[:, None], mask=experts_inside, other=0.0)
        acc = tl.dot(left, right, acc=acc, input_precision="ieee")
    inside = (token < count)[:, None] & (expert < EXPERTS)[None, :]
    tl.store(scores + token[:, None] * EXPERTS + expert[None, :], acc, mask=inside)


@triton.jit
def moe_route(
    scores,
    info,
    experts,
    weights,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Choose and weigh the experts of one token."""
    token = tl.program_id(0)
    if token >= tl.load(info):
        return
    expert = tl.arange(0, BLOCK)
    slot = tl.arange(0, SLOTS)
    row = scores + token * (EXPERTS + SHARED)
    score = tl.load(row + expert, mask=expert < EXPERTS, other=NONE)
    score = tl.where(score == score, score, NONE)  # noqa: PLR0124 - NaN is not itself
    free = expert < EXPERTS
    best = tl.full((SLOTS,), NONE, tl.float32)
    chosen = tl.zeros((SLOTS,), tl.int32)
    for each in tl.static_range(TOP_K):
        largest = tl.max(tl.where(free, score, NONE), 0)
        at = tl.min(tl.where(free & (score == largest), expert, BLOCK), 0)
        free = free & (expert != at)
        best = tl.where(slot == each, largest, best)
        chosen = tl.where(slot == each, at, chosen)
    peak = tl.max(best, 0)
    part = tl.exp(best - peak)
    whole = tl.sum(part if NORMALIZE else tl.exp(score - peak), 0)
    tl.store(experts + token * TOP_K + slot, chosen, mask=slot < TOP_K)
    own = weights + token * (TOP_K + SHARED)
    tl.store(own + slot, part / whole, mask=slot < TOP_K)
    if SHARED:
        tl.store(own + TOP_K, 1.0 / (1.0 + tl.exp(-tl.load(row + EXPERTS))))


@triton.jit
def moe_group(experts, info, starts, order, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """Find one expert's slots: count those of lower experts, then place its own in ascending order."""
    expert = tl.program_id(0)
    slots = tl.load(info) * TOP_K
    at = tl.arange(0, BLOCK)
    lower = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, slots, BLOCK):
        lower += (tl.load(experts + first + at, mask=first + at < slots, other=EXPERTS) < expert).to(tl.int32)
    place = tl.sum(lower, 0)
    tl.store(starts + expert, place)
    for first in range(0, slots, BLOCK):
        mine = tl.load(experts + first + at, mask=first + at < slots, other=EXPERTS) == expert
        rank = tl.cumsum(mine.to(tl.int32), 0)
        tl.store(order + place + rank - 1, first + at, mask=mine)
        place += tl.sum(mine.to(tl.int32), 0)
    if expert == EXPERTS - 1:
        tl.store(starts + EXPERTS, place)


@triton.jit
def moe_combine(
    y,
    weights,
    shared,
    info,
    out,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    SHARED_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum one block of columns of a token's slots, and of the shared expert at last."""
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(info):
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    COUNT: tl.constexpr = TOP_K if shared is None else TOP_K + 1
    total = tl.zeros((BLOCK,), tl.float32)
    for each in tl.static_range(TOP_K):
        value = tl.load(y + (token * TOP_K + each) * WIDTH + column, mask=inside, other=0.0)
        total += tl.load(weights + token * COUNT + each) * value
    if shared is not None:
        value = tl.load(shared + token * SHARED_STRIDE + column, mask=inside, other=0.0)
        total += tl.load(weights + token * COUNT + TOP_K) * value
    tl.store(out + token * WIDTH + column, total, mask=inside)
