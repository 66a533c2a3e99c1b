"""The bodies of the kernels that read or write the paged cache."""

import math
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.paged_attention import PagedAttention
from tokc.targets.cpu.kernels.row_bodies import GROUP, GroupWriter
from tokc.targets.cpu.kernels.tir import Arguments, Buffer, Expr, function, intrinsic, ramp, registers, splat
from tokc.targets.cpu.kernels.vector_math import (
    F32,
    LANES,
    constant,
    exponential,
    fma,
    keep,
    largest,
    load,
    multiply,
    store,
    total,
)

STORED = {"f32": "float32", "f16": "float16", "int8": "int8"}
ACCUMULATORS = 16


class Batch:
    """The integer inputs that say where a token's keys and values lie."""

    def __init__(self, arguments: Arguments) -> None:
        """Declare them."""
        self.positions = arguments.buffer("positions", "int32")
        self.sequences = arguments.buffer("sequences", "int32")
        self.tables = arguments.buffer("block_tables", "int32")
        self.info = arguments.buffer("info", "int32")

    def page(self, row: Expr, block: Expr) -> Expr:
        """Return the page that holds block `block` of the row's sequence, as int64."""
        return T.Cast("int64", self.tables[self.sequences[row] * self.info[3] + block])


def paged_attention(spec: PagedAttention) -> Any:
    """Return the PrimFunc of PagedAttention."""
    return function(spec.symbol, spec.args, lambda arguments: AttentionBody(spec, arguments).emit())


class AttentionBody:
    """Builds the statements of PagedAttention; `page` is 16, the lanes of a vector."""

    def __init__(self, spec: PagedAttention, arguments: Arguments) -> None:
        """Declare the buffers."""
        self.spec, self.arguments, self.batch = spec, arguments, Batch(arguments)
        self.q, self.scratch = arguments.buffer("q", "float32"), arguments.buffer("scratch", "float32")
        self.key = arguments.buffer("cache_key", STORED[spec.kv_dtype])
        self.value = arguments.buffer("cache_value", STORED[spec.kv_dtype])
        self.key_scale = self.value_scale = None
        if spec.kv_dtype == "int8":
            self.key_scale = arguments.buffer("key_scale", "float32")
            self.value_scale = arguments.buffer("value_scale", "float32")
        self.writer = GroupWriter(
            arguments, spec.heads * spec.dim, keep_float=spec.keep_float, quantize=spec.quantize
        )
        self.score_stride = spec.scratch_bytes // 4 // spec.group

    def emit(self) -> None:
        """Walk (row, key head) pairs, or single query heads where there are too few pairs for the threads."""
        spec, arguments = self.spec, self.arguments
        if spec.group == 1:
            return self.items(spec.heads, 1)
        few = arguments.rows * spec.kv_heads < arguments.threads * 4
        with T.If(few):
            with T.Then():
                self.items(spec.heads, 1)
            with T.Else():
                self.items(spec.kv_heads, spec.group)
        return None

    def items(self, per_row: int, count: int) -> None:
        """Compute this thread's share, `count` query heads at a time."""
        spec = self.spec
        with self.arguments.share(self.arguments.rows * per_row) as item:
            row, first = keep(item // per_row), keep(item % per_row * count)
            kv_head = keep(first // spec.group)
            last = keep(self.batch.positions[row])
            begin = keep(T.max(last - (spec.window - 1), 0)) if spec.window else T.int32(0)
            self.heads(row, first, kv_head, begin, last, count)

    def heads(self, row: Expr, first: Expr, kv_head: Expr, begin: Expr, last: Expr, count: int) -> None:
        """Compute `count` query heads of one key head for one token."""
        spec = self.spec
        low, high = keep(begin // spec.page), keep(last // spec.page + 1)
        peaks = registers(count, LANES, "float32")
        sums = registers(count, LANES, "float32")
        for i in range(count):
            peaks[i] = constant(-math.inf) if False else constant(-3.0e38)
            sums[i] = constant(0.0)
        scores = [keep(self.arguments.tid * (spec.scratch_bytes // 4) + i * self.score_stride) for i in range(count)]
        queries = [keep(row * (spec.heads * spec.dim) + (first + i) * spec.dim) for i in range(count)]
        with T.serial(low, high) as block:
            base = keep((self.batch.page(row, block) * spec.kv_heads + kv_head))
            self.page_scores(base, block, queries, scores, peaks, begin, last)
        largest_scores = [largest_of(peaks[i]) for i in range(count)]
        with T.serial(low, high) as block:
            for i in range(count):
                place = keep(scores[i] + block * spec.page)
                power = exponential(load(self.scratch, place) - splat(largest_scores[i], LANES))
                sums[i] = sums[i] + power
                store(self.scratch, place, power)
        inverses = [keep(T.float32(1) / total(sums[i])) for i in range(count)]
        together = max(1, min(count, ACCUMULATORS * LANES // spec.dim))
        for start in range(0, count, together):
            chosen = range(start, min(start + together, count))
            self.weighted_values(row, first, kv_head, begin, last, (low, high), scores, inverses, chosen)

    def page_scores(
        self, base: Expr, block: Expr, queries: list[Expr], scores: list[Expr], peaks: Any, begin: Expr, last: Expr
    ) -> None:
        """Score a page's 16 positions for every head."""
        spec, count = self.spec, len(queries)
        dots = registers(count, LANES, "float32")
        for i in range(count):
            dots[i] = constant(0.0)
        keys = keep(base * (spec.dim * spec.page))
        with T.serial(0, spec.dim) as d:
            key = keep(T.Cast(F32, self.key[ramp(keys + d * spec.page, LANES)]))
            for i in range(count):
                dots[i] = fma(splat(self.q[queries[i] + d], LANES), key, dots[i])
        positions = T.Ramp(block * spec.page, 1, LANES)
        for i in range(count):
            score = multiply(dots[i], constant(spec.scale))
            if self.key_scale is not None:
                score = multiply(score, load(self.key_scale, base * spec.page))
            seen = positions <= splat(last, LANES)
            if spec.window:
                seen = T.And(seen, positions >= splat(begin, LANES)) if False else (seen & (positions >= splat(begin, LANES)))
            score = keep(T.Select(seen, score, constant(-3.0e38)))
            peaks[i] = T.max(peaks[i], score)
            store(self.scratch, scores[i] + block * spec.page, score)

    def weighted_values(
        self,
        row: Expr,
        first: Expr,
        kv_head: Expr,
        begin: Expr,
        last: Expr,
        blocks: tuple[Expr, Expr],
        scores: list[Expr],
        inverses: list[Expr],
        chosen: range,
    ) -> None:
        """Add the values of every seen position, in ascending order, and write the heads' results."""
        spec, vectors = self.spec, self.spec.dim // LANES
        out = registers(len(chosen) * vectors, LANES, "float32")
        for i in range(len(chosen) * vectors):
            out[i] = constant(0.0)
        with T.serial(*blocks) as block:
            base = keep(self.batch.page(row, block) * spec.kv_heads + kv_head)
            start = keep(T.max(begin - block * spec.page, 0))
            end = keep(T.min(last - block * spec.page + 1, spec.page))
            with T.serial(start, end) as slot:
                values = keep((base * spec.page + slot) * spec.dim)
                read = [keep(T.Cast(F32, self.value[ramp(values + v * LANES, LANES)])) for v in range(vectors)]
                for n, i in enumerate(chosen):
                    weight = self.scratch[scores[i] + block * spec.page + slot]
                    if self.value_scale is not None:
                        weight = weight * self.value_scale[base * spec.page + slot]
                    weight = keep(weight)
                    for v in range(vectors):
                        out[n * vectors + v] = fma(splat(weight, LANES), read[v], out[n * vectors + v])
        for n, i in enumerate(chosen):
            results = [multiply(out[n * vectors + v], splat(inverses[i], LANES)) for v in range(vectors)]
            for v in range(0, vectors, GROUP // LANES):
                self.writer.write(row, (first + i) * spec.dim + v * LANES, results[v : v + GROUP // LANES])


def largest_of(vector: Expr) -> Expr:
    """Return the largest lane."""
    return keep(intrinsic("float32", "llvm.vector.reduce.fmax", vector))
