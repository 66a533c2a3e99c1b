"""The body of PagedAttention: who takes which tokens and heads, and the walk over a sequence's blocks."""

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.paged_attention import BLOCK, BLOCK_PAGES, PagedAttention
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
        """Deal blocks of tokens and heads of the cache to the threads, in turn."""
        spec, rows = self.spec, self.arguments.rows
        threads, tid = self.arguments.threads, self.arguments.tid
        fair = rows * spec.kv_heads // (UNITS_A_THREAD * threads)
        tokens = keep(T.max(1, T.min(fair, spec.tokens_at_once)))
        units = keep((rows + tokens - 1) // tokens * spec.kv_heads)
        with T.serial(0, (units - tid + threads - 1) // threads) as turn:
            unit = keep(tid + turn * threads)
            first = keep(unit // spec.kv_heads * tokens)
            kv_head = keep(unit % spec.kv_heads)
            self.runs(first, keep(T.min(first + tokens, rows)), kv_head)

    def runs(self, first: Expr, end: Expr, kv_head: Expr) -> None:
        """Cut tokens [first, end) where the sequence or the count of positions breaks."""
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
                with T.If(T.And(follows, cursor[1] == ahead)), T.Then():
                    T.buffer_store(cursor, ahead + 1, [1])
            count = keep(cursor[1])
            table = keep(sequence * self.integers["info"][3])
            with T.If(count == 1):
                with T.Then():
                    self.attend(Run(token, 1, position, table, kv_head))
                with T.Else():
                    self.attend(Run(token, count, position, table, kv_head))
            T.buffer_store(cursor, token + count, [0])

    def attend(self, run: Run) -> None:
        """Compute one run from its first block of positions to its last."""
        spec = self.spec
        self.begin(run)
        kind = Decode if isinstance(run.count, int) else Prefill
        walk = kind(self.source, run.table, run.kv_head, run.count)
        lowest = T.max(run.position - (spec.window - 1), 0) if spec.window else 0
        first_page, last_page = keep(T.int32(0) + lowest // PAGE), keep(run.last // PAGE)
        with T.serial(first_page // BLOCK_PAGES, last_page // BLOCK_PAGES + 1) as block:
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
        self.finish(run)

    def begin(self, run: Run) -> None:
        """Scale q into the scratch and clear the running maximum, sum and result."""
        spec = self.spec
        width = spec.group * spec.dim
        with T.serial(0, run.count) as token:
            source = keep((run.token + token) * (spec.heads * spec.dim) + run.kv_head * width)
            with T.serial(0, width // LANES) as i:
                scaled = multiply(load(self.q, source + i * LANES), constant(spec.scale))
                store(self.scratch, self.at["q"] + token * width + i * LANES, scaled)
        with T.serial(0, run.count * spec.group) as row:
            store(self.scratch, self.at["peak"] + row * LANES, constant(LOWEST))
            store(self.scratch, self.at["sum"] + row * LANES, constant(0.0))
        with T.serial(0, run.count * spec.group * (spec.dim // LANES)) as i:
            store(self.scratch, self.at["result"] + i * LANES, constant(0.0))

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
            sums = load(self.scratch, self.at["sum"] + row * LANES)
            inverse = keep(splat(T.float32(1) / total(sums), LANES))
            with T.serial(0, spec.dim // (len(HALVES) * LANES)) as part:
                column = keep(part * (len(HALVES) * LANES))
                source = keep(self.at["result"] + row * spec.dim + column)
                halves = [multiply(load(self.scratch, source + offset), inverse) for offset in HALVES]
                at = keep((run.kv_head * spec.group + head) * spec.dim + column)
                self.writer.write(run.token + token, at, halves)
