"""The body of PagedAttention: who takes which tokens and heads, and the walk over a sequence's blocks."""

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.paged_attention import (
    BLOCK,
    BLOCK_PAGES,
    FEW_TOKENS,
    MOST_PARTS,
    PART_BLOCKS,
    PagedAttention,
)
from tokc.targets.cpu.kernels.paged_attention_tile import Decode, Prefill, Source
from tokc.targets.cpu.kernels.rope_write_kv import CACHE_TYPES, PAGE
from tokc.targets.cpu.kernels.row_bodies import HALVES, GroupWriter
from tokc.targets.cpu.kernels.tir import Arguments, Expr, function, splat
from tokc.targets.cpu.kernels.vector_math import (
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

LOWEST = -1e30
MASKED = -3e38
SMALLEST_EXPONENT = -64.0
UNITS_A_THREAD = 8
FEW_UNITS_A_THREAD = 4
ACQUIRE_RELEASE = 4


def build(spec: PagedAttention) -> Any:
    """Return the PrimFunc of a specialization."""
    return function(spec.symbol, spec.args, lambda arguments: Body(spec, arguments).emit())


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of one sequence, and one head of the cache; `table` is where the table begins."""

    token: Expr
    count: Expr
    position: Expr
    table: Expr
    kv_head: Expr

    @property
    def last(self) -> Expr:
        """Return the last token's position."""
        return self.position + self.count - 1


class Body:
    """Builds the kernel's statements."""

    def __init__(self, spec: PagedAttention, arguments: Arguments) -> None:
        """Declare buffers."""
        self.spec, self.arguments = spec, arguments
        self.q = arguments.buffer("q", "float32")
        self.scratch = arguments.buffer("scratch", "float32")
        self.arrivals = arguments.buffer("scratch", "int32")
        base = keep(arguments.tid * spec.scratch_offsets["end"])
        self.at = {name: keep(base + offset) for name, offset in spec.scratch_offsets.items()}
        names = ("positions", "sequences", "block_tables", "info")
        self.integers = {name: arguments.buffer(name, "int32") for name in names}
        scales = ("key_scale", "value_scale") if spec.kv_dtype == "int8" else ()
        self.source = Source(
            spec=spec,
            keys=arguments.buffer("cache_key", CACHE_TYPES[spec.kv_dtype]),
            values=arguments.buffer("cache_value", CACHE_TYPES[spec.kv_dtype]),
            scales={name: arguments.buffer(name, "float32") for name in scales},
            block_tables=self.integers["block_tables"],
            scratch=self.scratch,
            at=self.at,
        )
        self.writer = GroupWriter(
            arguments, spec.heads * spec.dim, keep_float=spec.keep_float, quantize=spec.quantize
        )

    def emit(self) -> None:
        """Deal blocks of tokens, or of one token's parts, and heads of the cache to the threads, in turn."""
        spec, rows = self.spec, self.arguments.rows
        threads, tid = self.arguments.threads, self.arguments.tid
        pairs = rows * spec.kv_heads
        few = T.And(rows <= FEW_TOKENS, pairs < FEW_UNITS_A_THREAD * threads)
        self.few = keep(T.Select(T.And(few, threads > 1), T.int32(1), T.int32(0)))
        tokens = keep(T.max(1, T.min(pairs // (UNITS_A_THREAD * threads), spec.tokens_at_once)))
        blocks = (rows + tokens - 1) // tokens * spec.kv_heads
        units = keep(T.Select(self.few == 1, pairs * MOST_PARTS, blocks))
        with T.serial(0, (units - tid + threads - 1) // threads) as turn:
            unit = keep(tid + turn * threads)
            kv_head, index = keep(unit % spec.kv_heads), keep(unit // spec.kv_heads)
            first = keep(T.Select(self.few == 1, index % rows, index * tokens))
            self.runs(first, keep(T.min(first + tokens, rows)), kv_head, keep(index // rows))

    def runs(self, first: Expr, end: Expr, kv_head: Expr, part: Expr) -> None:
        """Cut tokens [first, end) where the sequence, the count of positions or the size of parts changes."""
        positions, sequences = self.integers["positions"], self.integers["sequences"]
        cursor = T.alloc_buffer((2,), "int32", scope="global")
        T.buffer_store(cursor, first, [0])
        with T.While(cursor[0] < end):
            token = keep(cursor[0])
            position, sequence = keep(positions[token]), keep(sequences[token])
            T.buffer_store(cursor, 1, [1])
            with T.serial(token + 1, end) as other:
                ahead = other - token
                follows = T.And(sequences[other] == sequence, positions[other] == position + ahead)
                for growth in self.spec.part_growths:
                    follows = T.And(follows, positions[other] != growth)
                with T.If(T.And(follows, cursor[1] == ahead)), T.Then():
                    T.buffer_store(cursor, ahead + 1, [1])
            count = keep(cursor[1])
            table = keep(sequence * self.integers["info"][3])
            with T.If(count == 1):
                with T.Then():
                    self.attend(Run(token, 1, position, table, kv_head), part)
                with T.Else():
                    self.attend(Run(token, count, position, table, kv_head), part)
            T.buffer_store(cursor, token + count, [0])

    def attend(self, run: Run, part: Expr) -> None:
        """Compute one run: every part, or part number `part` if the tokens are few."""
        spec = self.spec
        alone = isinstance(run.count, int)
        lowest = keep(T.max(run.position - (spec.window - 1), 0)) if spec.window else 0
        size = self.part_blocks(run.position)
        first_part = keep(lowest // BLOCK // size) if spec.window else 0
        parts = keep(run.last // BLOCK // size + 1 - first_part)
        self.begin(run)
        begin = T.Select(self.few == 1, part, 0) if alone else 0
        end = T.Select(self.few == 1, T.min(part + 1, parts), parts) if alone else parts
        with T.serial(begin, end) as index:
            self.part(run, lowest, keep((first_part + index) * size), size)
            if alone:
                with T.If(self.few == 1):
                    with T.Then():
                        self.deliver(run, index, parts)
                    with T.Else():
                        self.merge(run, self.at["peak"], self.at["sum"], self.at["result"])
            else:
                self.merge(run, self.at["peak"], self.at["sum"], self.at["result"])
        with T.If(self.few == 0), T.Then():
            self.finish(run)

    def part_blocks(self, position: Expr) -> Expr:
        """Return how many blocks a part of the sequence up to `position` has."""
        size = T.int32(PART_BLOCKS)
        for growth in self.spec.part_growths:
            size = keep(T.Select(position >= growth, size * 2, size))
        return size

    def part(self, run: Run, lowest: Expr, first: Expr, size: Expr) -> None:
        """Leave the maxima, sums and results over the blocks [first, first + size) in the scratch."""
        spec = self.spec
        self.clear(run, "")
        kind = Decode if isinstance(run.count, int) else Prefill
        walk = kind(self.source, run.table, run.kv_head, run.count)
        first_page, last_page = keep(T.int32(0) + lowest // PAGE), keep(run.last // PAGE)
        first_block = T.max(first, first_page // BLOCK_PAGES)
        with T.serial(first_block, T.min(first + size, last_page // BLOCK_PAGES + 1)) as block:
            start = keep(block * BLOCK)
            pages = (
                keep(T.max(block * BLOCK_PAGES, first_page)),
                keep(T.min(block * BLOCK_PAGES + BLOCK_PAGES, last_page + 1)),
            )
            walk.scores(block, pages)
            with T.serial(0, run.count) as token:
                limit = keep(run.position + token - start)
                with T.serial(0, spec.group) as head:
                    self.softmax(keep(token * spec.group + head), limit)
            begin = keep(T.max(lowest - start, 0)) if spec.window else 0
            walk.weighted_values(block, pages, begin, keep(T.min(run.last - start + 1, BLOCK)))

    def begin(self, run: Run) -> None:
        """Scale q into the scratch and clear what the parts are added to."""
        spec = self.spec
        width = spec.group * spec.dim
        with T.serial(0, run.count) as token:
            source = keep((run.token + token) * (spec.heads * spec.dim) + run.kv_head * width)
            with T.serial(0, width // LANES) as i:
                scaled = multiply(load(self.q, source + i * LANES), constant(spec.scale))
                store(self.scratch, self.at["q"] + token * width + i * LANES, scaled)
        self.clear(run, "whole_")

    def clear(self, run: Run, prefix: str) -> None:
        """Begin a maximum, sum and result for every row."""
        with T.serial(0, run.count * self.spec.group) as row:
            store(self.scratch, self.at[prefix + "peak"] + row * LANES, constant(LOWEST))
            store(self.scratch, self.at[prefix + "sum"] + row * LANES, constant(0.0))
        with T.serial(0, run.count * self.spec.group * (self.spec.dim // LANES)) as i:
            store(self.scratch, self.at[prefix + "result"] + i * LANES, constant(0.0))

    def merge(self, run: Run, peak: Expr, total_at: Expr, result: Expr) -> None:
        """Add the part whose rows lie at the three places to the whole."""
        scratch, dim = self.scratch, self.spec.dim
        with T.serial(0, run.count * self.spec.group) as row:
            whole_peak, whole_sum = (self.at[f"whole_{name}"] + row * LANES for name in ("peak", "sum"))
            before, other = load(scratch, whole_peak), load(scratch, peak + row * LANES)
            now = keep(T.max(before, other))
            decay = exponential(before - now, SMALLEST_EXPONENT)
            share = exponential(other - now, SMALLEST_EXPONENT)
            store(scratch, whole_peak, now)
            added = multiply(load(scratch, total_at + row * LANES), share)
            store(scratch, whole_sum, fma(load(scratch, whole_sum), decay, added))
            with T.serial(0, dim // LANES) as i:
                place = keep(self.at["whole_result"] + row * dim + i * LANES)
                added = multiply(load(scratch, result + row * dim + i * LANES), share)
                store(scratch, place, fma(load(scratch, place), decay, added))

    def deliver(self, run: Run, index: Expr, parts: Expr) -> None:
        """Put a part where all threads see it; the last to come adds them up and finishes the token."""
        spec, scratch = self.spec, self.scratch
        pair = keep(run.token * spec.kv_heads + run.kv_head)
        own = self.part_places(pair, index)
        for name, width in (("peak", LANES), ("sum", LANES), ("result", spec.dim)):
            with T.serial(0, spec.group * width // LANES) as i:
                store(scratch, own[name] + i * LANES, load(scratch, self.at[name] + i * LANES))
        counter = T.address_of(self.arrivals[spec.scratch_offsets["arrivals"] + pair])
        order = T.int32(ACQUIRE_RELEASE)
        arrived = keep(T.call_extern("int32", "__atomic_fetch_add_4", counter, T.int32(1), order))
        with T.If(arrived == parts - 1), T.Then():
            T.buffer_store(self.arrivals, 0, [spec.scratch_offsets["arrivals"] + pair])
            with T.serial(0, parts) as other:
                places = self.part_places(pair, other)
                self.merge(run, places["peak"], places["sum"], places["result"])
            self.finish(run)

    def part_places(self, pair: Expr, index: Expr) -> dict[str, Expr]:
        """Return where a part's maxima, sums and results lie, in the first thread's scratch."""
        spec = self.spec
        start = keep(spec.scratch_offsets["parts"] + (pair * MOST_PARTS + index) * spec.part_size)
        sizes = spec.group * LANES
        return {"peak": start, "sum": keep(start + sizes), "result": keep(start + 2 * sizes)}

    def softmax(self, row: Expr, limit: Expr) -> None:
        """Turn a row's scores of the block into weights; `limit` is the last index that it attends to."""
        spec, scratch = self.spec, self.scratch
        weights = keep(self.at["weights"] + row * BLOCK)
        valid, scores = [], []
        for page in range(BLOCK_PAGES):
            index = T.Ramp(T.int32(page * PAGE), 1, LANES)
            mask = index <= splat(limit, LANES)
            if spec.window:
                mask = T.And(mask, index > splat(limit - spec.window, LANES))
            valid.append(mask)
            scores.append(keep(T.Select(mask, load(scratch, weights + page * PAGE), constant(MASKED))))
        peak = scores[0]
        for score in scores[1:]:
            peak = keep(T.max(peak, score))
        before = load(scratch, self.at["peak"] + row * LANES)
        now = keep(T.max(before, splat(largest(peak), LANES)))
        store(scratch, self.at["peak"] + row * LANES, now)
        decay = exponential(before - now, SMALLEST_EXPONENT)
        store(scratch, self.at["decay"] + row * LANES, decay)
        shares = [exponential(score - now, SMALLEST_EXPONENT) for score in scores]
        block_sum = keep(keep(shares[0] + shares[1]) + keep(shares[2] + shares[3]))
        place = self.at["sum"] + row * LANES
        store(scratch, place, fma(load(scratch, place), decay, block_sum))
        for page, share in enumerate(shares):
            if spec.kv_dtype == "int8":
                scaled = multiply(share, load(scratch, self.at["value_scales"] + page * PAGE))
                scaled = T.Select(valid[page], scaled, constant(0.0))
                store(scratch, weights + page * PAGE, scaled)
            else:
                store(scratch, weights + page * PAGE, share)

    def finish(self, run: Run) -> None:
        """Divide by the sums and write the rows."""
        spec = self.spec
        with T.serial(0, run.count) as token, T.serial(0, spec.group) as head:
            row = keep(token * spec.group + head)
            sums = load(self.scratch, self.at["whole_sum"] + row * LANES)
            inverse = keep(splat(T.float32(1) / total(sums), LANES))
            with T.serial(0, spec.dim // (len(HALVES) * LANES)) as part:
                column = keep(part * (len(HALVES) * LANES))
                source = keep(self.at["whole_result"] + row * spec.dim + column)
                halves = [multiply(load(self.scratch, source + offset), inverse) for offset in HALVES]
                at = keep((run.kv_head * spec.group + head) * spec.dim + column)
                self.writer.write(run.token + token, at, halves)
