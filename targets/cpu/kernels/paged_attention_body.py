"""The body of PagedAttention: who takes which tokens and heads, and the walk over a sequence's blocks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from tokc.targets.cpu.kernels.paged_attention_softmax import LOWEST, power
from tokc.targets.cpu.kernels.paged_attention_tile import Decode, Pages, Place, Prefill, Source
from tokc.targets.cpu.kernels.rope_write_kv import CACHE_TYPES, PAGE, SCALE_TYPES
from tokc.targets.cpu.kernels.row_bodies import HALVES, GroupWriter
from tokc.targets.cpu.kernels.tir import Arguments, Expr, function, splat
from tokc.targets.cpu.kernels.vector_math import (
    LANES,
    constant,
    fma,
    keep,
    load,
    multiply,
    store,
    total,
)

UNITS_A_THREAD = 4
TOKENS_OF_A_SMALL_RUN = 4
ACQUIRE_RELEASE = 4


def build(spec: PagedAttention) -> Any:
    """Return the PrimFunc of a specialization."""
    return function(spec.symbol, spec.args, lambda arguments: Body(spec, arguments).emit())


@dataclass(frozen=True)
class Run:
    """Tokens of one sequence, at positions from `position` to `last`; its block table begins at `table`."""

    token: Expr
    count: Expr
    position: Expr
    last: Expr
    table: Expr


@dataclass(frozen=True)
class Parts:
    """How a run's positions are cut: those before `lowest` are not attended to."""

    lowest: Expr
    blocks: Expr
    first: Expr
    count: Expr


@dataclass(frozen=True)
class Unit:
    """A run by a head of the cache: part number `part` of it, or all; `after` is what is read next."""

    run: Run
    parts: Parts
    kv_head: Expr
    part: Expr
    after: Place


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
        scales = ("key_scale", "value_scale") if spec.scaled else ()
        self.source = Source(
            spec=spec,
            keys=arguments.buffer("cache_key", CACHE_TYPES[spec.kv_dtype]),
            values=arguments.buffer("cache_value", CACHE_TYPES[spec.kv_dtype]),
            scales={name: arguments.buffer(name, SCALE_TYPES[spec.kv_dtype]) for name in scales},
            block_tables=self.integers["block_tables"],
            scratch=self.scratch,
            at=self.at,
        )
        self.writer = GroupWriter(
            arguments, spec.heads * spec.dim, keep_float=spec.keep_float, quantize=spec.quantize
        )

    def emit(self) -> None:
        """Deal the units of all runs to the threads, in turn."""
        spec, threads = self.spec, self.arguments.threads
        self.most = T.alloc_buffer((1,), "int32", scope="global")
        enough = keep(UNITS_A_THREAD * threads)
        T.buffer_store(self.most, spec.tokens_at_once, [0])
        runs = self.count_runs(enough)
        few = T.And(T.And(self.arguments.rows <= FEW_TOKENS, threads > 1), runs * spec.kv_heads < enough)
        self.few = keep(T.Select(few, T.int32(1), T.int32(0)))
        with T.If(T.And(self.few == 0, runs * spec.kv_heads < enough)), T.Then():
            T.buffer_store(self.most, min(TOKENS_OF_A_SMALL_RUN, spec.tokens_at_once), [0])
        turn = T.alloc_buffer((1,), "int32", scope="global")
        T.buffer_store(turn, self.arguments.tid, [0])
        with self.each_run(self.arguments.rows) as run:
            parts = self.parts(run)
            units = keep(T.Select(self.few == 1, parts.count * spec.kv_heads, spec.kv_heads))
            with T.While(turn[0] < units):
                kv_head, part = keep(turn[0] % spec.kv_heads), keep(turn[0] // spec.kv_heads)
                T.buffer_store(turn, turn[0] + threads, [0])
                unit = Unit(run, parts, kv_head, part, self.place(run, parts, keep(turn[0]), units))
                self.attend_run(unit)
            T.buffer_store(turn, turn[0] - units, [0])

    def attend_run(self, unit: Unit) -> None:
        """Compute one unit, by the variant for a single token if its run has no more."""
        run = unit.run
        with T.If(run.count == 1):
            with T.Then():
                self.attend(replace(unit, run=replace(run, count=1, last=run.position)))
            with T.Else():
                self.attend(unit)

    @contextmanager
    def each_run(self, end: Expr) -> Iterator[Run]:
        """Loop over the runs of the step's tokens, whole, until `end` is reached."""
        cursor = T.alloc_buffer((1,), "int32", scope="global")
        T.buffer_store(cursor, 0, [0])
        with T.While(cursor[0] < end):
            run = self.run_at(keep(cursor[0]))
            T.buffer_store(cursor, run.token + run.count, [0])
            yield run

    def run_at(self, token: Expr) -> Run:
        """Return the run that begins at a token.

        It ends where the sequence ends or its positions have a gap, where the size of parts changes, and, in
        a step of many tokens, at multiples of its length, so that its tokens' pages are the same.
        """
        positions, sequences = self.integers["positions"], self.integers["sequences"]
        rows, most = self.arguments.rows, self.most[0]
        position, sequence = keep(positions[token]), keep(sequences[token])
        room = keep(T.Select(rows > FEW_TOKENS, most - position % most, most))
        end = keep(T.min(token + room, rows))
        count = T.alloc_buffer((1,), "int32", scope="global")
        T.buffer_store(count, 1, [0])
        other = T.min(token + count[0], end - 1)
        follows = T.And(sequences[other] == sequence, positions[other] == position + count[0])
        for growth in self.spec.part_growths:
            follows = T.And(follows, position + count[0] != growth)
        with T.While(T.And(token + count[0] < end, follows)):
            T.buffer_store(count, count[0] + 1, [0])
        found, table = keep(count[0]), keep(sequence * self.integers["info"][3])
        return Run(token, found, position, position + found - 1, table)

    def count_runs(self, enough: Expr) -> Expr:
        """Return how many runs the step has; stop where they make enough units."""
        runs = T.alloc_buffer((2,), "int32", scope="global")
        T.buffer_store(runs, 0, [0])
        T.buffer_store(runs, self.arguments.rows, [1])
        with self.each_run(runs[1]):
            T.buffer_store(runs, runs[0] + 1, [0])
            with T.If(runs[0] * self.spec.kv_heads >= enough), T.Then():
                T.buffer_store(runs, 0, [1])
        return keep(runs[0])

    def parts(self, run: Run) -> Parts:
        """Return how a run is cut into parts."""
        window = self.spec.window
        lowest = keep(T.max(run.position - (window - 1), 0)) if window else keep(T.int32(0))
        size = T.int32(PART_BLOCKS)
        for growth in self.spec.part_growths:
            size = keep(T.Select(run.position >= growth, size * 2, size))
        first = keep(lowest // BLOCK // size)
        return Parts(lowest, keep(size), first, keep(run.last // BLOCK // size + 1 - first))

    def place(self, run: Run, parts: Parts, unit: Expr, units: Expr) -> Place:
        """Return where unit number `unit` of the run begins, or a unit of a run after it; a guess will do."""
        spec, rows = self.spec, self.arguments.rows
        here = unit < units
        over = keep(T.max(unit - units, 0))
        token = keep(run.token + run.count + over // units)
        inside = keep(T.min(token, rows - 1))
        position, sequence = (self.integers[name][inside] for name in ("positions", "sequences"))
        position = keep(T.Select(here, run.last, position))
        lowest = keep(T.max(position - (spec.window - 1), 0)) if spec.window else 0
        first = T.Select(
            here, (parts.first + unit // spec.kv_heads) * parts.blocks * BLOCK_PAGES, lowest // PAGE
        )
        none = T.And(unit >= units, token >= rows)
        last = keep(T.Select(none, run.last // PAGE, position // PAGE))
        first = keep(T.Select(none, last, T.min(first, last)))
        table = keep(T.Select(T.Or(here, none), run.table, sequence * self.integers["info"][3]))
        return Place(table, (first, keep(last + 1)), keep(T.Select(here, unit, over) % spec.kv_heads))

    def attend(self, unit: Unit) -> None:
        """Compute one unit."""
        run, parts = unit.run, unit.parts
        several = keep(T.Select(parts.count > 1, T.int32(1), T.int32(0)))
        self.begin(unit)
        with T.If(T.And(several == 1, self.few == 0)), T.Then():
            self.clear(run, "whole_")
        begin = keep(T.Select(self.few == 1, unit.part, 0))
        with T.serial(begin, T.Select(self.few == 1, unit.part + 1, parts.count)) as index:
            self.part(unit, keep(parts.first + index))
            with T.If(several == 1), T.Then(), T.If(self.few == 1):
                with T.Then():
                    self.deliver(unit, index)
                with T.Else():
                    self.merge(run)
        with T.If(several == 0):
            with T.Then():
                self.finish(unit, "")
            with T.Else(), T.If(self.few == 0), T.Then():
                self.finish(unit, "whole_")

    def part(self, unit: Unit, part: Expr) -> None:
        """Leave the maxima, sums and results over a part's blocks in the scratch."""
        run, parts = unit.run, unit.parts
        self.clear(run, "")
        walk = self.walk(run)
        pages = (keep(parts.lowest // PAGE), keep(run.last // PAGE + 1))
        here = Place(run.table, pages, unit.kv_head)
        first, end = keep(part * parts.blocks), keep((pages[1] - 1) // BLOCK_PAGES + 1)
        last = keep(T.min(first + parts.blocks, end))
        of_unit = keep(T.Select(self.few == 1, last, end))
        with T.serial(T.max(first, pages[0] // BLOCK_PAGES), last) as block:
            start = keep(block * BLOCK)
            walk.find(block, here, self.ahead(unit, here, keep(block + 1), of_unit))
            self.block(walk, unit, here.pages, (block, start))

    def walk(self, run: Run) -> Decode | Prefill:
        """Return the products of a run over a block."""
        return (Decode if isinstance(run.count, int) else Prefill)(self.source, run.count)

    def block(self, walk: Decode | Prefill, unit: Unit, pages: Pages, place: tuple[Expr, Expr]) -> None:
        """Add a block, given by (number, first position), to the part in the scratch."""
        spec, run, (block, start) = self.spec, unit.run, place
        present = (
            keep(T.max(pages[0] - block * BLOCK_PAGES, 0)),
            keep(T.min(pages[1] - block * BLOCK_PAGES, BLOCK_PAGES)),
        )
        edge = run.position < start + (BLOCK - 1)
        if spec.window:
            edge = T.Or(edge, start <= run.last - spec.window)
        span = (
            keep(T.max(unit.parts.lowest - start, 0)) if spec.window else 0,
            keep(T.min(run.last - start + 1, BLOCK)),
        )
        walk.copy_value_scales(present, span[1])
        walk.scores(present, keep(run.position - start), edge)
        walk.weighted_values(present, span)

    def ahead(self, unit: Unit, here: Place, block: Expr, end: Expr) -> Place:
        """Return the block that is read next: the unit's, or the first of the next unit."""
        inside, after = block < end, unit.after
        return Place(
            keep(T.Select(inside, here.table, after.table)),
            (
                keep(T.Select(inside, block * BLOCK_PAGES, after.pages[0])),
                keep(T.Select(inside, here.pages[1], after.pages[1])),
            ),
            keep(T.Select(inside, here.kv_head, after.kv_head)),
        )

    def begin(self, unit: Unit) -> None:
        """Scale q into the scratch."""
        spec, run = self.spec, unit.run
        width = spec.group * spec.dim
        with T.serial(0, run.count) as token:
            source = keep((run.token + token) * (spec.heads * spec.dim) + unit.kv_head * width)
            with T.serial(0, width // LANES) as i:
                scaled = multiply(load(self.q, source + i * LANES), constant(spec.scale / math.log(2)))
                store(self.scratch, self.at["q"] + token * width + i * LANES, scaled)

    def clear(self, run: Run, prefix: str) -> None:
        """Begin a maximum, sum and result for every row."""
        with T.serial(0, run.count * self.spec.group) as row:
            store(self.scratch, self.at[prefix + "peak"] + row * LANES, constant(LOWEST))
            store(self.scratch, self.at[prefix + "sum"] + row * LANES, constant(0.0))
            for i in range(self.spec.dim // LANES):
                place = self.at[prefix + "result"] + row * self.spec.dim + i * LANES
                store(self.scratch, place, constant(0.0))

    def merge(self, run: Run) -> None:
        """Add the part in the scratch to the whole."""
        with T.serial(0, run.count * self.spec.group) as row:
            whole, part = self.row_places(row, "whole_"), self.row_places(row, "")
            self.add_part(whole, part)

    def row_places(self, row: Expr, prefix: str) -> dict[str, Expr]:
        """Return where a row's maximum, sum and result lie."""
        widths = {"peak": LANES, "sum": LANES, "result": self.spec.dim}
        return {name: keep(self.at[prefix + name] + row * width) for name, width in widths.items()}

    def add_part(self, whole: dict[str, Expr], part: dict[str, Expr]) -> None:
        """Add a row's part to its whole."""
        scratch = self.scratch
        before, other = load(scratch, whole["peak"]), load(scratch, part["peak"])
        now = keep(T.max(before, other))
        decay, share = power(before - now), power(other - now)
        store(scratch, whole["peak"], now)
        added = multiply(load(scratch, part["sum"]), share)
        store(scratch, whole["sum"], fma(load(scratch, whole["sum"]), decay, added))
        for i in range(self.spec.dim // LANES):
            place = whole["result"] + i * LANES
            added = multiply(load(scratch, part["result"] + i * LANES), share)
            store(scratch, place, fma(load(scratch, place), decay, added))

    def deliver(self, unit: Unit, index: Expr) -> None:
        """Put a part where all threads see it; the last to come adds them up and finishes the run."""
        spec, scratch, run = self.spec, self.scratch, unit.run
        rows = run.count * spec.group
        with T.serial(0, rows) as row:
            own, part = self.part_places(unit, row, index), self.row_places(row, "")
            for name, width in (("peak", LANES), ("sum", LANES), ("result", spec.dim)):
                for i in range(0, width, LANES):
                    store(scratch, own[name] + i, load(scratch, part[name] + i))
        counter = keep(spec.scratch_offsets["arrivals"] + run.token * spec.kv_heads + unit.kv_head)
        address, order = T.address_of(self.arrivals[counter]), T.int32(ACQUIRE_RELEASE)
        arrived = keep(T.call_extern("int32", "__atomic_fetch_add_4", address, T.int32(1), order))
        with T.If(arrived == unit.parts.count - 1), T.Then():
            T.buffer_store(self.arrivals, 0, [counter])
            self.clear(run, "whole_")
            with T.serial(0, unit.parts.count) as other, T.serial(0, rows) as row:
                self.add_part(self.row_places(row, "whole_"), self.part_places(unit, row, other))
            self.finish(unit, "whole_")

    def part_places(self, unit: Unit, row: Expr, index: Expr) -> dict[str, Expr]:
        """Return where a row's part lies, in the first thread's scratch.

        There is room for the parts of each token and head of the cache; a run's tokens lie together, a head
        of it after the other.
        """
        spec = self.spec
        before = unit.run.token * spec.kv_heads + unit.kv_head * unit.run.count
        start = spec.scratch_offsets["parts"] + (before * spec.group * MOST_PARTS) * spec.part_size
        start = keep(start + (index * unit.run.count * spec.group + row) * spec.part_size)
        return {"peak": start, "sum": keep(start + LANES), "result": keep(start + 2 * LANES)}

    def finish(self, unit: Unit, prefix: str) -> None:
        """Divide by the sums and write the rows."""
        spec, run = self.spec, unit.run
        with T.serial(0, run.count) as token, T.serial(0, spec.group) as head:
            row = keep(token * spec.group + head)
            sums = load(self.scratch, self.at[prefix + "sum"] + row * LANES)
            inverse = keep(splat(T.float32(1) / total(sums), LANES))
            with T.serial(0, spec.dim // (len(HALVES) * LANES)) as part:
                column = keep(part * (len(HALVES) * LANES))
                source = keep(self.at[prefix + "result"] + row * spec.dim + column)
                halves = [multiply(load(self.scratch, source + offset), inverse) for offset in HALVES]
                at = keep((unit.kv_head * spec.group + head) * spec.dim + column)
                self.writer.write(run.token + token, at, halves)
