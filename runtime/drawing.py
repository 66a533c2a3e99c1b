"""Draws the tokens of many sequences at once, by what the step found of each block of their logits.

A token that is drawn here is the one that `sampler.draw` finds in the whole row, or none: sums over a row are
known to a relative error, and where a bound lies that near to a sum the row is left to `draw`. The logits
that matter are looked at themselves, with the same f32 operations, in blocks whose largest logit says so.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.base import Float32s, LogitBlocks
from tokc.runtime.sequence import SamplingParams

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Drawn = tuple[Int64s, Bools]  # a token each, and whether `draw` would find it too

SUMS_DIFFER = 2e-6  # relative; twice the error of the blocks' sums
ORDERS_DIFFER = 1e-11  # relative, of f64 sums in another order
LOGITS_DIFFER = 1e-5  # of a logit that belongs to a weight, in its logarithm
# A nucleus is looked for among the tokens of at least one of these shares of the likeliest one's probability.
CUTS = tuple(np.float32(2.0**-power) for power in (5, 7, 9, 11, 13, 16))
TRIES = 2
SURPLUS = 0.5  # of what a nucleus leaves, that blocks with its tokens may leave
MOST_CANDIDATES = 4096  # of a row; beyond them `draw` is as fast
ONE, WEIGHT_BITS, ID_BITS, ROW_BITS = 0x3F80_0000, 30, 24, 10  # the bits of f32 1.0, and of a key's parts


class Rows(NamedTuple):
    """Rows that are drawn from; row `at[i]` of logits f32[rows, blocks, width] has element i of the others.

    `top_k` 0, `top_p` 1 and `min_p` 0 are off.
    """

    logits: Float32s
    at: Int64s
    maxima: Float32s
    sums: Float32s
    largest: Float32s
    scales: Float32s
    uniforms: Float64s
    top_k: Int64s
    top_p: Float64s
    min_p: Float32s

    def take(self, places: Int64s) -> "Rows":
        """Return some of the rows."""
        if len(places) == len(self.at):
            return self
        taken: Iterator[Any] = (one[places] for one in self[1:])
        return Rows(self.logits, *taken)


class Candidates(NamedTuple):
    """Tokens of all rows that hold, of each usable one, all of at least some weight.

    Row by row, the likeliest first where top-k or top-p asks for it, else in the order of ids.
    Shapes: ids i64[tokens], weights f32[tokens], rows i64[tokens]; starts i64[n] and counts i64[n] of each
    row; sums f64[tokens] of all weights up to here; usable bool[n].
    """

    ids: Int64s
    weights: Float32s
    rows: Int64s
    starts: Int64s
    counts: Int64s
    sums: Float64s
    usable: Bools

    def before(self, places: Int64s) -> Float64s:
        """Return the sum of all weights before some places."""
        return np.where(places > 0, self.sums[places - 1], 0.0)


def draw_together(
    logits: Float32s,
    blocks: LogitBlocks,
    at: Items[int],
    params: Items[SamplingParams],
    uniforms: Items[float],
) -> list[int | None]:
    """Return a token for each row `at` of logits f32[rows, vocab], None where `draw` must look at all."""
    if len(at) > 1 << ROW_BITS or logits.shape[1] > 1 << ID_BITS:
        return [None] * len(at)
    rows = _rows(logits, blocks, at, params, uniforms)
    narrowed = (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0)
    tokens: list[int | None] = [None] * len(at)
    for places, draw in ((~narrowed).nonzero()[0], _from_all), (narrowed.nonzero()[0], _from_candidates):
        if len(places):
            drawn, sure = draw(rows.take(places))
            for place, token in zip(places[sure].tolist(), drawn[sure].tolist(), strict=True):
                tokens[place] = token
    return tokens


def _rows(
    logits: Float32s,
    blocks: LogitBlocks,
    at: Items[int],
    params: Items[SamplingParams],
    uniforms: Items[float],
) -> Rows:
    places, vocab = np.array(at), logits.shape[1]
    maxima = blocks.maxima[places]
    return Rows(
        logits.reshape(len(logits), maxima.shape[1], -1),
        places,
        maxima,
        blocks.sums[places],
        maxima.max(axis=1),
        np.array([one.scale for one in params], np.float32),
        np.array(uniforms),
        np.array([one.top_k if one.top_k is not None and one.top_k < vocab else 0 for one in params]),
        np.array([one.top_p for one in params], np.float64),
        np.array([one.min_p for one in params], np.float32),
    )


def _from_all(rows: Rows) -> Drawn:
    """Find the block in which each number falls, then the token in it."""
    ends = np.cumsum(rows.sums, axis=1, dtype=np.float64)
    totals = ends[:, -1]
    goals = rows.uniforms * totals
    block = np.minimum((ends <= goals[:, None]).sum(axis=1), ends.shape[1] - 1)
    begins = np.where(block > 0, ends[np.arange(len(block)), block - 1], 0.0)
    weights = np.exp((rows.logits[rows.at, block] - rows.largest[:, None]) * rows.scales[:, None])
    bounds = np.cumsum(weights, axis=1, dtype=np.float64) + begins[:, None]
    place = (bounds <= goals[:, None]).sum(axis=1)
    nearest = np.minimum(np.abs(bounds - goals[:, None]).min(axis=1), np.abs(begins - goals))
    sure = (place < bounds.shape[1]) & (nearest > SUMS_DIFFER * totals) & np.isfinite(rows.largest)
    return block * bounds.shape[1] + place, sure


def _from_candidates(rows: Rows) -> Drawn:
    """Look among the likeliest tokens, once more among more of them for a nucleus that they do not hold."""
    tokens, sure = np.zeros(len(rows.at), np.int64), np.zeros(len(rows.at), np.bool_)
    nucleus = (rows.top_p < 1) & (rows.top_k == 0)
    levels = np.where(nucleus, _levels(rows), 0)
    left = np.arange(len(rows.at))
    for _ in range(TRIES):
        cuts = np.array(CUTS)[np.minimum(levels[left], len(CUTS) - 1)]
        tokens[left], sure[left] = _drawn(rows.take(left), cuts)
        left = left[~sure[left] & nucleus[left]]
        if not len(left):
            break
        levels = levels + 1
    return tokens, sure


def _levels(rows: Rows) -> Int64s:
    """Return the index of the cut i64[n] whose tokens seem to hold the nucleus, by the blocks they are in."""
    wanted = (1 - SURPLUS * (1 - rows.top_p)) * rows.sums.sum(axis=1, dtype=np.float64)
    levels = np.zeros(len(rows.at), np.int64)
    for cut in CUTS[:-1]:
        near = rows.maxima >= (rows.largest + np.log(cut) / rows.scales)[:, None]
        short = np.einsum("rb,rb->r", near.astype(np.float32), rows.sums) < wanted
        if not short.any():
            break
        levels += short
    return levels


def _drawn(rows: Rows, cuts: Float32s) -> Drawn:
    """Draw as `draw` does from tokens whose weight is at least the cut, or what top-k and min-p ask for."""
    found = _candidates(rows, _floors(rows, cuts))
    if not len(found.ids):
        return np.zeros(len(rows.at), np.int64), np.zeros(len(rows.at), np.bool_)
    sizes, sure = _sizes(rows, found)
    begins = found.before(found.starts)
    ends = found.before(found.starts + sizes)
    goals = begins + rows.uniforms * (ends - begins)
    places = np.searchsorted(found.sums, goals, side="right")
    places = np.minimum(np.maximum(places, found.starts), found.starts + np.maximum(sizes, 1) - 1)
    places = np.minimum(places, len(found.ids) - 1)
    nearest = np.minimum(np.abs(found.before(places) - goals), np.abs(found.sums[places] - goals))
    return found.ids[places], sure & (nearest > ORDERS_DIFFER * found.sums[-1])


def _sizes(rows: Rows, found: Candidates) -> tuple[Int64s, Bools]:
    """Return how many of a row's leading candidates are drawn from, and where that is certain."""
    by_k, nucleus = rows.top_k > 0, rows.top_p < 1
    most = np.where(by_k, rows.top_k, found.counts)
    usable = found.usable & (most > 0) & (most <= found.counts)
    most = np.minimum(most, found.counts)
    begins = found.before(found.starts)
    totals = np.where(
        by_k, found.before(found.starts + most) - begins, rows.sums.sum(axis=1, dtype=np.float64)
    )
    slack = ORDERS_DIFFER * found.sums[-1] + np.where(by_k, 0.0, SUMS_DIFFER * totals)
    goals = begins + rows.top_p * totals
    low, high = (np.searchsorted(found.sums, goals + side * slack) + 1 - found.starts for side in (-1, 1))
    sizes = np.where(nucleus, low, most)
    usable &= ~nucleus | ((low == high) & (high <= most))
    heavy = np.bincount(found.rows, found.weights >= rows.min_p[found.rows], len(most)).astype(np.int64)
    ranked = by_k | nucleus  # where heavy ones come first; others have no lighter ones among them
    return np.where(usable & ranked, np.minimum(sizes, heavy), np.where(usable, sizes, 0)), usable


def _floors(rows: Rows, cuts: Float32s) -> Float32s:
    """Return the least weight f32[n] that a token must have to be looked at; of the likeliest it is 1."""
    floors = np.where(rows.top_p < 1, cuts, rows.min_p)
    for k in np.unique(rows.top_k).tolist():
        if 0 < k <= rows.maxima.shape[1]:  # k blocks have a token each that is as large as the k-th of them
            these = rows.top_k == k
            kth = np.partition(rows.maxima[these], -k, axis=1)[:, -k]
            floors[these] = np.exp((kth - rows.largest[these]) * rows.scales[these])
    return floors


def _candidates(rows: Rows, floors: Float32s) -> Candidates:
    """Return every token whose weight is at least its row's floor."""
    with np.errstate(divide="ignore"):
        logs = np.log(floors)
    slack = LOGITS_DIFFER * (1 - logs) / rows.scales + LOGITS_DIFFER * np.abs(rows.largest)
    limits = rows.largest + logs / rows.scales - slack
    usable = np.isfinite(limits) & (rows.top_k <= rows.maxima.shape[1])
    row, block = ((rows.maxima >= limits[:, None]) & usable[:, None]).nonzero()
    values = rows.logits[rows.at[row], block]
    width = values.shape[1]
    hits = np.flatnonzero(values >= limits[row][:, None])
    hit = hits // width
    row, ids = row[hit], block[hit] * width + hits % width
    weights = np.exp((values.reshape(-1)[hits] - rows.largest[row]) * rows.scales[row])
    kept = weights >= floors[row]
    return _ordered(rows, row[kept], ids[kept], weights[kept], usable)


def _ordered(rows: Rows, row: Int64s, ids: Int64s, weights: Float32s, usable: Bools) -> Candidates:
    """Return the tokens in order, by a sort of numbers that hold row, weight and id; few rows have many."""
    counts = np.bincount(row, minlength=len(usable))
    many = counts > MOST_CANDIDATES
    if many.any():
        few = ~many[row]
        row, ids, weights = row[few], ids[few], weights[few]
        usable, counts = usable & ~many, np.where(many, 0, counts)
    ranked = ((rows.top_k > 0) | (rows.top_p < 1))[row]
    lightness = np.uint64(ONE) - weights.view(np.uint32)  # bits of f32 from 0 to 1 ascend as they do
    keys = row.astype(np.uint64) << np.uint64(ID_BITS + WEIGHT_BITS) | ids.astype(np.uint64)
    keys = np.sort(keys | np.where(ranked, lightness, np.uint64(0)) << np.uint64(ID_BITS))
    sorted_bits = np.uint64(ONE) - (keys >> np.uint64(ID_BITS) & np.uint64((1 << WEIGHT_BITS) - 1))
    # The rows stay where they are, and those that are not ranked as they are.
    weights = np.where(ranked, sorted_bits.astype(np.uint32).view(np.float32), weights)
    return Candidates(
        (keys & np.uint64((1 << ID_BITS) - 1)).astype(np.int64),
        weights,
        row,
        np.cumsum(counts) - counts,
        counts,
        np.cumsum(weights, dtype=np.float64),
        usable,
    )
