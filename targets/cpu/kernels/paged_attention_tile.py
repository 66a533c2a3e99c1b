"""The two products of PagedAttention over one block of 64 positions: scores, and weighted values.

Both variants do the same operations for a row; they differ in how many rows share a vector of the cache.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.paged_attention import BLOCK, BLOCK_PAGES, PagedAttention
from tokc.targets.cpu.kernels.paged_attention_softmax import MASKED, power, weights_of, whole_parts
from tokc.targets.cpu.kernels.rope_write_kv import PAGE
from tokc.targets.cpu.kernels.tir import Buffer, Expr, Registers, prefetch, splat
from tokc.targets.cpu.kernels.vector_math import (
    I32,
    LANES,
    constant,
    fma,
    keep,
    largest,
    load,
    multiply,
    store,
    tanh,
    vectors,
    widen,
)

ITEM_BYTES = {"f32": 4, "f16": 2, "int8": 1, "int4": 1}
LINE_BYTES = 64
ALWAYS = T.int32(0) < T.int32(1)
Pages = tuple[Expr, Expr]
Rows = tuple[Expr, int]


@dataclass(frozen=True)
class Source:
    """The cache, the block tables and a thread's scratch."""

    spec: PagedAttention
    keys: Buffer
    values: Buffer
    scales: Mapping[str, Buffer]
    block_tables: Buffer
    scratch: Buffer
    at: Mapping[str, Expr]

    def block(self, table: Expr, page: Expr, kv_head: Expr) -> Expr:
        """Return the index of a (page, head) pair, in 64 bits: a cache may exceed 2 GiB."""
        index = T.Cast("int64", self.block_tables[table + page])
        return keep(index * T.int64(self.spec.kv_heads) + T.Cast("int64", kv_head))

    def cached(self, buffer: Buffer, start: Expr, offset: Expr) -> list[Expr]:
        """Return 16 items at start + offset as f32; `start` in 64 bits.

        An int4 cache has two codes an item, so two vectors: elements of the head's first and second half.
        """
        vector = buffer[T.Ramp(start + T.Cast("int64", offset), T.int64(1), LANES)]
        if self.spec.kv_dtype == "f32":
            return [keep(vector)]
        if self.spec.kv_dtype == "int4":
            codes = keep(T.Cast(I32, vector))
            low, high = codes & splat(15, LANES), codes >> splat(4, LANES)
            return [widen(code - splat(8, LANES)) for code in (low, high)]
        return [widen(vector)]

    def widened(self, item: Expr) -> list[Expr]:
        """Return the elements that one item of keys or values holds as f32, in the order of `cached`."""
        if self.spec.kv_dtype != "int4":
            return [T.Cast("float32", item)]
        code = T.Cast("int32", item)
        return [T.Cast("float32", one - 8) for one in (code & 15, code >> 4)]

    def scale(self, name: str, block: Expr) -> Expr:
        """Return the 16 scales of a page."""
        scales = self.scales[name][T.Ramp(block * T.int64(PAGE), T.int64(1), LANES)]
        return widen(scales) if self.spec.kv_dtype == "int4" else keep(scales)

    @property
    def line(self) -> int:
        """Return how many items a cache line holds."""
        return LINE_BYTES // ITEM_BYTES[self.spec.kv_dtype]

    def fetch(self, buffer: Buffer, block: Expr, offset: Expr) -> None:
        """Ask for the cache line of an item of a (page, head) pair's keys or values."""
        prefetch(buffer[block * T.int64(self.spec.stored_dim * PAGE) + T.Cast("int64", offset)])

    def fetch_scales(self, block: Expr) -> None:
        """Ask for the scales of a (page, head) pair."""
        for scales in self.scales.values():
            prefetch(scales[block * T.int64(PAGE)])


@dataclass(frozen=True)
class Place:
    """Where a sequence's block of positions lies: its row of the block table, its pages, the cache's head."""

    table: Expr
    pages: Pages
    kv_head: Expr


def split(count: int, most: int) -> list[tuple[int, int]]:
    """Cut range(count) into nearly equal pieces of at most `most`, as (first, size)."""
    pieces = -(-count // most)
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [(first, end - first) for first, end in pairwise(edges)]


class Walk:
    """One block of a run of tokens: what both variants know."""

    def __init__(self, source: Source, count: Expr) -> None:
        """Keep the run; the blocks of its pages, and of those to be read next, change."""
        self.source, self.spec, self.scratch, self.at = source, source.spec, source.scratch, source.at
        self.count = count
        self.blocks = T.alloc_buffer((BLOCK_PAGES,), "int64", scope="global")
        self.ahead = T.alloc_buffer((BLOCK_PAGES,), "int64", scope="global")

    def find(self, block: Expr, here: Place, ahead: Place) -> None:
        """Look up the pages of this block and of the next; one out of range repeats one that is not."""
        for i in range(BLOCK_PAGES):
            page = keep(T.min(T.max(block * BLOCK_PAGES + i, here.pages[0]), here.pages[1] - 1))
            T.buffer_store(self.blocks, self.source.block(here.table, page, here.kv_head), [i])
            page = keep(T.min(ahead.pages[0] + i, ahead.pages[1] - 1))
            T.buffer_store(self.ahead, self.source.block(ahead.table, page, ahead.kv_head), [i])
            self.source.fetch_scales(self.ahead[i])

    def start(self, index: Expr) -> Expr:
        """Return where the keys or values of the block's page `index` begin."""
        return self.blocks[index] * T.int64(self.spec.stored_dim * PAGE)

    def copy_value_scales(self, present: Pages, end: Expr) -> None:
        """Put the scales of the block's values side by side, 0 where no position was written."""
        if not self.spec.scaled:
            return
        with T.serial(*present) as index:
            scales = self.source.scale("value_scale", self.blocks[index])
            written = T.Ramp(index * PAGE, 1, LANES) < splat(end, LANES)
            scales = T.Select(written, scales, constant(0.0))
            store(self.scratch, self.at["value_scales"] + index * PAGE, scales)

    def write_scores(self, row: Expr, index: Expr, score: Expr) -> None:
        """Write a row's scores of the block's page `index`."""
        if self.spec.scaled:
            score = multiply(score, self.key_scales(index))
        if self.spec.softcap:  # scores are in powers of two here
            cap = self.spec.softcap / math.log(2)
            score = multiply(tanh(multiply(score, constant(1 / cap))), constant(cap))
        store(self.scratch, self.at["weights"] + row * BLOCK + index * PAGE, score)

    def key_scales(self, index: Expr) -> Expr:
        """Return the scales of the keys of the block's page `index`."""
        return self.source.scale("key_scale", self.blocks[index])

    def mask(self, row: Expr, limit: Expr) -> None:
        """Mask a row's scores of positions that it does not attend to; `limit` is the last that it does."""
        for page in range(BLOCK_PAGES):
            place = self.at["weights"] + row * BLOCK + page * PAGE
            index = T.Ramp(T.int32(page * PAGE), 1, LANES)
            mask = index <= splat(limit, LANES)
            if self.spec.window:
                mask = T.And(mask, index > splat(limit - self.spec.window, LANES))
            store(self.scratch, place, T.Select(mask, load(self.scratch, place), constant(MASKED)))

    def softmax(self, row: Expr) -> None:
        """Turn a row's scores of the block into weights; leave what its results so far are multiplied by."""
        spec, scratch = self.spec, self.scratch
        weights = keep(self.at["weights"] + row * BLOCK)
        scores = [load(scratch, weights + page * PAGE) for page in range(BLOCK_PAGES)]
        wholes, peak = whole_parts(scores)
        before = load(scratch, self.at["peak"] + row * LANES)
        now = keep(T.max(before, splat(largest(peak), LANES)))
        store(scratch, self.at["peak"] + row * LANES, now)
        decay = power(before - now)
        store(scratch, self.at["decay"] + row * LANES, decay)
        shares = weights_of(scores, wholes, now)
        block_sum = keep(keep(shares[0] + shares[1]) + keep(shares[2] + shares[3]))
        place = self.at["sum"] + row * LANES
        store(scratch, place, fma(load(scratch, place), decay, block_sum))
        for page, share in enumerate(shares):
            if spec.scaled:
                scales = load(scratch, self.at["value_scales"] + page * PAGE)
                store(scratch, weights + page * PAGE, multiply(share, scales))
            else:
                store(scratch, weights + page * PAGE, share)

    def accumulators(self, row: Expr, rows: int, columns: tuple[int, int], results: Registers) -> None:
        """Load the results of a tile, decayed."""
        first, size = columns
        for i in range(rows):
            decay = load(self.scratch, self.at["decay"] + (row + i) * LANES)
            for j in range(size):
                place = self.at["result"] + (row + i) * self.spec.dim + (first + j) * LANES
                results[i * size + j] = multiply(load(self.scratch, place), decay)

    def store_results(self, row: Expr, rows: int, columns: tuple[int, int], results: Registers) -> None:
        """Store the results of a tile."""
        first, size = columns
        for i in range(rows):
            for j in range(size):
                place = self.at["result"] + (row + i) * self.spec.dim + (first + j) * LANES
                store(self.scratch, place, results[i * size + j])

    def fetch_next(self, buffer: Buffer) -> None:
        """Ask for the next block's keys or values."""
        with T.serial(0, self.spec.stored_dim * PAGE // self.source.line) as line:
            for i in range(BLOCK_PAGES):
                self.source.fetch(buffer, self.ahead[i], line * self.source.line)

    def fetch_rest(self, span: Pages) -> None:
        """Ask for the next block's values where the positions [*span) that asked for some were not all."""
        with T.If(T.Or(span[0] > 0, span[1] < BLOCK)), T.Then():
            self.fetch_next(self.source.values)

    def score_tile(
        self, rows: Rows, indexes: Sequence[Expr], *, copied: bool, fetch: Expr | None = None
    ) -> None:
        """Write the scores of some rows for some pages of the block; `fetch`: when to ask for the next."""
        spec, (row, count) = self.spec, rows
        sums = vectors(count * len(indexes))
        for i in range(count * len(indexes)):
            sums[i] = constant(0.0)
        starts = [] if copied else [keep(self.start(index)) for index in indexes]
        together = self.source.line // LANES
        with T.serial(0, spec.stored_dim // together) as line:
            if fetch is not None:
                with T.If(fetch), T.Then():
                    for index in indexes:
                        self.source.fetch(self.source.keys, self.ahead[index], line * self.source.line)
            for step in range(together):
                item = keep(line * together + step)
                dims = range(0, spec.dim, spec.stored_dim)
                if copied:
                    places = [self.at["keys"] + item * BLOCK + index * PAGE for index in indexes]
                    keys = [[load(self.scratch, at + d * BLOCK) for d in dims] for at in places]
                else:
                    keys = [self.source.cached(self.source.keys, start, item * PAGE) for start in starts]
                for i, (part, d) in itertools.product(range(count), enumerate(dims)):
                    q = splat(self.scratch[self.at["q"] + (row + i) * spec.dim + item + d], LANES)
                    for j, key in enumerate(keys):
                        sums[i * len(keys) + j] = fma(q, key[part], sums[i * len(keys) + j])
        for i in range(count):
            for j, index in enumerate(indexes):
                self.write_scores(row + i, index, sums[i * len(indexes) + j])

    def value_tile(
        self, rows: Rows, present: Pages, span: Pages, *, copied: bool, fetch: Expr | None = None
    ) -> None:
        """Add the block's positions [*span), one by one, to the results of some rows; `fetch` as above."""
        spec, (row, count) = self.spec, rows
        for columns in split(spec.dim // LANES, max(1, spec.vectors // count)):
            first, size = columns
            results = vectors(count * size)
            self.accumulators(row, count, columns, results)
            with T.serial(*present) as index:
                start, before = keep(self.start(index)), keep(index * PAGE)
                begin = keep(T.max(span[0] - before, 0))
                with T.serial(begin, T.min(span[1] - before, PAGE)) as slot:
                    if fetch is not None and first == 0:
                        with T.If(fetch), T.Then():
                            for offset in range(0, spec.stored_dim, self.source.line):
                                place = slot * spec.stored_dim + offset
                                self.source.fetch(self.source.values, self.ahead[index], place)
                    if copied:
                        place = keep(self.at["values"] + (before + slot) * spec.dim + first * LANES)
                        values = [load(self.scratch, place + j * LANES) for j in range(size)]
                    else:
                        values = self.values(start, keep(slot * spec.stored_dim), columns)
                    for i in range(count):
                        at = self.at["weights"] + (row + i) * BLOCK + before + slot
                        weight = splat(self.scratch[at], LANES)
                        for j, value in enumerate(values):
                            results[i * size + j] = fma(weight, value, results[i * size + j])
            self.store_results(row, count, columns, results)

    def values(self, start: Expr, place: Expr, columns: tuple[int, int]) -> list[Expr]:
        """Return vectors [first, first + size) of the head's values that begin at `place`."""
        a_half = self.spec.stored_dim // LANES
        found: dict[int, list[Expr]] = {}
        vectors = []
        for column in range(columns[0], columns[0] + columns[1]):
            item = column % a_half
            if item not in found:
                found[item] = self.source.cached(self.source.values, start, place + item * LANES)
            vectors.append(found[item][column // a_half])
        return vectors


class Decode(Walk):
    """One token: the heads of the group share each vector, which is widened where it is read."""

    def scores(self, present: Pages, limit: Expr, edge: Expr) -> None:
        """Leave the weights of the block; `limit` is the last index that the token attends to."""
        del present
        spec = self.spec
        for head, heads in split(spec.group, spec.vectors):
            at_once = max(size for size in (1, 2, 4) if size * heads <= max(spec.vectors, heads))
            for first in range(0, BLOCK_PAGES, at_once):
                indexes = range(first, first + at_once)
                self.score_tile((head, heads), indexes, copied=False, fetch=ALWAYS if head == 0 else None)
        with T.If(edge), T.Then():
            for head in range(spec.group):
                self.mask(head, limit)
        for head in range(spec.group):
            self.softmax(head)

    def weighted_values(self, present: Pages, span: Pages) -> None:
        """Add the block's positions to the results."""
        for piece in split(self.spec.group, self.spec.vectors):
            self.value_tile(piece, present, span, copied=False, fetch=None if piece[0] else ALWAYS)
        self.fetch_rest(span)


class Prefill(Walk):
    """Several tokens: tiles of rows take turns, over a widened copy of the block if that pays."""

    @property
    def tiles(self) -> Expr:
        """Return how many tiles cover the rows."""
        return (self.count * self.spec.group + self.spec.tile_rows - 1) // self.spec.tile_rows

    def scores(self, present: Pages, limit: Expr, edge: Expr) -> None:
        """Leave the weights of the block; `limit` is the last index that the first token attends to."""
        spec = self.spec
        if spec.copies:
            self.copy_keys(present)
        at_once = spec.vectors // spec.tile_rows
        whole = keep(T.And(present[0] == 0, present[1] == BLOCK_PAGES))
        with T.If(T.Not(whole)), T.Then():
            self.fetch_next(self.source.keys)
        with T.serial(0, self.tiles) as tile:
            row = keep(tile * spec.tile_rows)
            rows = row, spec.tile_rows
            with T.If(whole):
                with T.Then():
                    for first in range(0, BLOCK_PAGES, at_once):
                        indexes = range(first, first + at_once)
                        self.score_tile(rows, indexes, copied=spec.copies, fetch=tile == 0)
                with T.Else(), T.serial(*present) as index:
                    self.score_tile(rows, [index], copied=spec.copies)
            with T.If(edge), T.Then(), T.serial(0, spec.tile_rows) as i:
                self.mask(row + i, self.limit(row + i, limit))
            for i in range(spec.tile_rows):
                self.softmax(row + i)

    def limit(self, row: Expr, first: Expr) -> Expr:
        """Return the last index that a row attends to; `first` is that of the first token."""
        return first + row // self.spec.group

    def copy_keys(self, present: Pages) -> None:
        """Widen the block's keys."""
        with T.serial(*present) as index:
            start = keep(self.start(index))
            with T.serial(0, self.spec.stored_dim) as item:
                place = keep(self.at["keys"] + item * BLOCK + index * PAGE)
                for part, key in enumerate(self.source.cached(self.source.keys, start, item * PAGE)):
                    store(self.scratch, place + part * self.spec.stored_dim * BLOCK, key)

    def weighted_values(self, present: Pages, span: Pages) -> None:
        """Add the block's positions to the results."""
        spec = self.spec
        if spec.copies:
            self.copy_values(present, span)
        with T.serial(0, self.tiles) as tile:
            rows = keep(tile * spec.tile_rows), spec.tile_rows
            self.value_tile(rows, present, span, copied=spec.copies, fetch=tile == 0)
        self.fetch_rest(span)

    def copy_values(self, present: Pages, span: Pages) -> None:
        """Widen the positions [*span) of the block; others may be unwritten."""
        spec = self.spec
        columns = spec.stored_dim // LANES
        with T.serial(*present) as index:
            start, before = keep(self.start(index)), keep(index * PAGE)
            begin = keep(T.max(span[0] - before, 0) * columns)
            with T.serial(begin, T.min(span[1] - before, PAGE) * columns) as i:
                slot, column = keep(before + i // columns), keep(i % columns)
                place = keep(self.at["values"] + slot * spec.dim + column * LANES)
                for part, value in enumerate(self.source.cached(self.source.values, start, i * LANES)):
                    store(self.scratch, place + part * spec.stored_dim, value)
