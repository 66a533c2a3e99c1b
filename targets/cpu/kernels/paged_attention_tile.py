"""The two products of PagedAttention over one block of 64 positions: scores, and weighted values.

Both variants do the same operations for a row; they differ in how many rows share a vector of the cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.paged_attention import BLOCK, BLOCK_PAGES, PagedAttention
from tokc.targets.cpu.kernels.rope_write_kv import PAGE
from tokc.targets.cpu.kernels.tir import Buffer, Expr, Registers, splat
from tokc.targets.cpu.kernels.vector_math import (
    LANES,
    constant,
    fma,
    keep,
    load,
    multiply,
    store,
    vectors,
    widen,
)

Pages = tuple[Expr, Expr]


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

    def cached(self, buffer: Buffer, start: Expr, offset: Expr) -> Expr:
        """Return 16 elements at start + offset as f32; `start` in 64 bits."""
        vector = buffer[T.Ramp(start + T.Cast("int64", offset), T.int64(1), LANES)]
        return keep(vector) if self.spec.kv_dtype == "f32" else widen(vector)

    def scale(self, name: str, block: Expr) -> Expr:
        """Return the 16 scales of a page."""
        return keep(self.scales[name][T.Ramp(block * T.int64(PAGE), T.int64(1), LANES)])


def split(count: int, most: int) -> list[tuple[int, int]]:
    """Cut range(count) into nearly equal pieces of at most `most`, as (first, size)."""
    pieces = -(-count // most)
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [(first, end - first) for first, end in pairwise(edges)]


class Walk:
    """What both variants know: the run's block table, its head of the cache and its number of tokens."""

    def __init__(self, source: Source, table: Expr, kv_head: Expr, count: Expr) -> None:
        """Keep the run."""
        self.source, self.spec, self.scratch, self.at = source, source.spec, source.scratch, source.at
        self.table, self.kv_head, self.count = table, kv_head, count

    def block(self, page: Expr) -> Expr:
        """Return the index of the page's (page, head) pair."""
        return self.source.block(self.table, page, self.kv_head)

    def copy_value_scales(self, block: Expr, pages: Pages) -> None:
        """Put the scales of the block's values side by side."""
        if self.spec.kv_dtype != "int8":
            return
        with T.serial(*pages) as page:
            place = self.at["value_scales"] + (page - block * BLOCK_PAGES) * PAGE
            store(self.scratch, place, self.source.scale("value_scale", self.block(page)))

    def write_scores(self, row: Expr, index: int, score: Expr, block: Expr) -> None:
        """Write a row's scores of the block's page `index`, whose (page, head) pair is `block`."""
        if self.spec.kv_dtype == "int8":
            score = multiply(score, self.source.scale("key_scale", block))
        store(self.scratch, self.at["weights"] + row * BLOCK + index * PAGE, score)

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


class Decode(Walk):
    """One token: the heads of the group share each vector, which is widened where it is read."""

    def scores(self, block: Expr, pages: Pages) -> None:
        """Write the scores of every page of the block; a page out of range repeats one that is not."""
        self.copy_value_scales(block, pages)
        for head, heads in split(self.spec.group, self.spec.vectors):
            at_once = max(size for size in (1, 2, 4) if size * heads <= max(self.spec.vectors, heads))
            for first in range(0, BLOCK_PAGES, at_once):
                self.score_pages(block, pages, (head, heads), range(first, first + at_once))

    def score_pages(self, block: Expr, pages: Pages, heads: tuple[int, int], indexes: range) -> None:
        """Write the scores of some heads for some pages of the block."""
        spec, dim = self.spec, self.spec.dim
        head, count = heads
        blocks = []
        for index in indexes:
            page = T.min(T.max(block * BLOCK_PAGES + index, pages[0]), pages[1] - 1)
            blocks.append(self.block(keep(page)))
        starts = [keep(each * T.int64(dim * PAGE)) for each in blocks]
        sums = vectors(count * len(indexes))
        for i in range(count * len(indexes)):
            sums[i] = constant(0.0)
        with T.serial(0, dim) as d:
            keys = [self.source.cached(self.source.keys, start, d * PAGE) for start in starts]
            for i in range(count):
                q = splat(self.scratch[self.at["q"] + (head + i) * spec.dim + d], LANES)
                for j, key in enumerate(keys):
                    sums[i * len(keys) + j] = fma(q, key, sums[i * len(keys) + j])
        for i in range(count):
            for j, index in enumerate(indexes):
                self.write_scores(head + i, index, sums[i * len(indexes) + j], blocks[j])

    def weighted_values(self, block: Expr, pages: Pages, begin: Expr, end: Expr) -> None:
        """Add the block's positions [begin, end), one by one, to the results."""
        spec = self.spec
        for head, heads in split(spec.group, spec.vectors):
            for columns in split(spec.dim // LANES, max(1, spec.vectors // heads)):
                results = vectors(heads * columns[1])
                self.accumulators(head, heads, columns, results)
                with T.serial(*pages) as page:
                    start = keep(self.block(page) * T.int64(spec.dim * PAGE))
                    index = keep((page - block * BLOCK_PAGES) * PAGE)
                    first = keep(T.max(begin - index, 0))
                    with T.serial(first, T.min(end - index, PAGE)) as slot:
                        self.add_position((head, heads), columns, (start, slot, index + slot), results)
                self.store_results(head, heads, columns, results)

    def add_position(
        self,
        heads: tuple[int, int],
        columns: tuple[int, int],
        place: tuple[Expr, Expr, Expr],
        results: Registers,
    ) -> None:
        """Add one position; `place` is its (page, head) start, its slot, and its index in the block."""
        start, slot, index = place
        (head, count), (first, size) = heads, columns
        values = [
            self.source.cached(self.source.values, start, slot * self.spec.dim + (first + j) * LANES)
            for j in range(size)
        ]
        for i in range(count):
            weight = splat(self.scratch[self.at["weights"] + (head + i) * BLOCK + index], LANES)
            for j, value in enumerate(values):
                results[i * size + j] = fma(weight, value, results[i * size + j])


class Prefill(Walk):
    """Several tokens: the block is widened into the scratch once, and tiles of rows read it from there."""

    @property
    def tiles(self) -> Expr:
        """Return how many tiles cover the rows."""
        return (self.count * self.spec.group + self.spec.tile_rows - 1) // self.spec.tile_rows

    def scores(self, block: Expr, pages: Pages) -> None:
        """Write the scores of the block's pages."""
        spec = self.spec
        self.copy_value_scales(block, pages)
        with T.serial(*pages) as page:
            start = keep(self.block(page) * T.int64(spec.dim * PAGE))
            index = keep(page - block * BLOCK_PAGES)
            with T.serial(0, spec.dim) as d:
                key = self.source.cached(self.source.keys, start, d * PAGE)
                store(self.scratch, self.at["keys"] + d * BLOCK + index * PAGE, key)
        at_once = spec.vectors // spec.tile_rows
        with T.serial(0, self.tiles) as tile:
            for first in range(0, BLOCK_PAGES, at_once):
                self.score_tile(keep(tile * spec.tile_rows), block, pages, range(first, first + at_once))

    def score_tile(self, row: Expr, block: Expr, pages: Pages, indexes: range) -> None:
        """Write the scores of a tile of rows for some pages of the block, present or not."""
        spec = self.spec
        sums = vectors(spec.tile_rows * len(indexes))
        for i in range(spec.tile_rows * len(indexes)):
            sums[i] = constant(0.0)
        with T.serial(0, spec.dim) as d:
            place = self.at["keys"] + d * BLOCK
            keys = [load(self.scratch, place + index * PAGE) for index in indexes]
            for i in range(spec.tile_rows):
                q = splat(self.scratch[self.at["q"] + (row + i) * spec.dim + d], LANES)
                for j, key in enumerate(keys):
                    sums[i * len(keys) + j] = fma(q, key, sums[i * len(keys) + j])
        for j, index in enumerate(indexes):
            page = keep(T.min(T.max(block * BLOCK_PAGES + index, pages[0]), pages[1] - 1))
            pair = self.block(page)
            for i in range(spec.tile_rows):
                self.write_scores(row + i, index, sums[i * len(indexes) + j], pair)

    def weighted_values(self, block: Expr, pages: Pages, begin: Expr, end: Expr) -> None:
        """Add the block's positions [begin, end), one by one, to the results."""
        spec = self.spec
        self.copy_values(block, pages, begin, end)
        with T.serial(0, self.tiles) as tile:
            row = keep(tile * spec.tile_rows)
            for columns in split(spec.dim // LANES, spec.vectors // spec.tile_rows):
                results = vectors(spec.tile_rows * columns[1])
                self.accumulators(row, spec.tile_rows, columns, results)
                with T.serial(begin, end) as index:
                    self.add_position(row, columns, index, results)
                self.store_results(row, spec.tile_rows, columns, results)

    def copy_values(self, block: Expr, pages: Pages, begin: Expr, end: Expr) -> None:
        """Widen the positions [begin, end) of the block; others may be unwritten."""
        spec = self.spec
        with T.serial(*pages) as page:
            start = keep(self.block(page) * T.int64(spec.dim * PAGE))
            index = keep((page - block * BLOCK_PAGES) * PAGE)
            first = keep(T.max(begin - index, 0) * (spec.dim // LANES))
            with T.serial(first, T.min(end - index, PAGE) * (spec.dim // LANES)) as i:
                value = self.source.cached(self.source.values, start, i * LANES)
                store(self.scratch, self.at["values"] + index * spec.dim + i * LANES, value)

    def add_position(self, row: Expr, columns: tuple[int, int], index: Expr, results: Registers) -> None:
        """Add one position of the block to a tile of rows."""
        spec = self.spec
        first, size = columns
        place = self.at["values"] + index * spec.dim + first * LANES
        values = [load(self.scratch, place + j * LANES) for j in range(size)]
        for i in range(spec.tile_rows):
            weight = splat(self.scratch[self.at["weights"] + (row + i) * BLOCK + index], LANES)
            for j, value in enumerate(values):
                results[i * size + j] = fma(weight, value, results[i * size + j])
