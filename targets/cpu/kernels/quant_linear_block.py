"""The quantized linear kernel for many rows: register tiles of some rows by one or two tiles of weights.

A thread takes its weight tiles and a block of rows, and walks the columns in parts. It unpacks the part's
weights to its own stack once, one quant a byte and scales in f32, where they stay in the first level of the
cache; every tile of rows then reads them from there. Two tiles at once let a broadcast activation meet two
vectors of weights; pmaddubsw, whose sums of pairs take registers of their own, has room for one.
Between parts the rows' totals wait in y. A row's operations and their order are those of the other ways, so
its bits are too.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.quant_linear import GROUP, TILES_AT_ONCE
from tokc.targets.cpu.kernels.quant_linear_codes import QUADS
from tokc.targets.cpu.kernels.quant_linear_sums import Sums
from tokc.targets.cpu.kernels.tir import Expr, prefetch, ramp, registers, splat, stack, zeros
from tokc.targets.cpu.kernels.vector_math import keep

if TYPE_CHECKING:
    from tokc.targets.cpu.kernels.quant_linear_tile import Body

LINE_BYTES = 64
MOST_ROWS = 512
MOST_PART_GROUPS = 24
REST_ROWS = (4, 2, 1)


class Block:
    """Builds the statements; `begin` and `end` are a part's first group and the one after its last."""

    def __init__(self, body: "Body") -> None:
        """Declare registers, and room on the stack."""
        spec, self.lanes = body.spec, body.lanes
        self.body, self.spec, self.least_rows = body, spec, spec.schedule.block_rows
        self.rows, self.tiles = (4, 1) if spec.pairwise else (spec.isa.accumulators * 3 // 4, TILES_AT_ONCE)
        self.parts, self.size = parts(spec.groups)
        count, outputs = self.rows * self.tiles, self.tiles * self.lanes
        self.total = registers(count, self.lanes, "float32")
        self.sums = Sums(spec, body.xq, count)
        self.quants = stack(self.size * GROUP * outputs, "uint8")
        self.scales = stack(self.size * outputs * 4, "float32")
        self.offsets = None if spec.symmetric else stack(self.size * outputs * 4, "float32")
        self.corrections = stack(self.rows * self.size * 4, "int32") if spec.stored_zero else None
        self.shifts = None if spec.symmetric else stack(self.rows * self.size * 4, "float32")

    def emit(self) -> None:
        """Walk this thread's share of (block of rows, span of weight tiles)."""
        arguments, step = self.body.arguments, self.rows
        rows, spans = arguments.rows, self.spec.tiles // self.tiles
        blocks = T.Bind((rows + MOST_ROWS - 1) // MOST_ROWS)
        block = T.Bind((rows + blocks * step - 1) // (blocks * step) * step)
        with arguments.share(blocks * spans) as item:
            first, span = keep(item // spans * block), keep(item % spans)
            count = keep(T.max(0, T.min(rows - first, block)))
            with T.serial(0, self.parts) as part:
                begin = keep(part * self.size)
                end = keep(T.min(begin + self.size, self.spec.groups))
                self.unpack(span, begin, end)
                with T.serial(0, count // step) as at:
                    self.fetch(span, begin, (at, count // step))
                    self.tile(span, keep(first + at * step), step, (begin, end))
                done = keep(first + count // step * step)
                for rest in (count for count in REST_ROWS if count < step):
                    left = keep(first + count - done)
                    with T.If(left >= rest), T.Then():
                        self.tile(span, done, rest, (begin, end))
                    done = keep(T.Select(left >= rest, done + rest, done))

    def unpack(self, span: Expr, begin: Expr, end: Expr) -> None:
        """Write the part's quants and scales to the stack: [group, tile, quad] and [group, tile] vectors."""
        width = 4 * self.lanes
        with T.serial(begin, end) as group:
            for i in range(self.tiles):
                tile = T.Bind(span * self.tiles + i)
                place = T.Bind((group - begin) * self.tiles + i)
                for quants, quad in self.body.packed_quads(tile, group):
                    T.buffer_store(self.quants, quants, [ramp((place * QUADS + quad) * width, width)])
                scale, offset = self.body.scale_and_offset(tile, group)
                T.buffer_store(self.scales, scale, [ramp(place * self.lanes, self.lanes)])
                if offset is not None:
                    T.buffer_store(self.offsets, offset, [ramp(place * self.lanes, self.lanes)])

    def fetch(self, span: Expr, begin: Expr, share: tuple[Expr, Expr]) -> None:
        """Ask for share i of n of the packed weights that are unpacked next: spread over the tiles of rows.

        They are those of the next part, or of the next span after the last part. To L2, for L1 would
        lose them again before they are read.
        """
        spec, (index, shares) = self.spec, share
        part_bytes = self.size * spec.vectors * 4 * self.lanes
        lines = -(-part_bytes // LINE_BYTES)
        last = begin >= (self.parts - 1) * self.size
        tile = T.Bind(T.min(span + T.Select(last, 1, 0), spec.tiles // self.tiles - 1) * self.tiles)
        part = T.Bind(T.Select(last, 0, begin // self.size + 1))
        start = T.Bind(tile * spec.tile_bytes + spec.quants_at + part * part_bytes)
        with T.serial(lines * index // shares, lines * (index + 1) // shares) as line:
            for i in range(self.tiles):
                place = start + i * spec.tile_bytes + line * LINE_BYTES
                prefetch(self.body.w[T.min(place, spec.tiles * spec.tile_bytes - LINE_BYTES)])

    def tile(self, span: Expr, row: Expr, count: int, part: tuple[Expr, Expr]) -> None:
        """Add a part of the columns to `count` rows of a span."""
        begin, end = part
        self.row_terms(row, count, begin, end)
        self.load_totals(span, row, count, begin)
        with T.serial(0, end - begin) as group:
            corrections = partial(self.correction, group)
            self.sums.compute(
                (row, count), begin + group, self.tiles, corrections, self.unpacked_quads(group)
            )
            self.add_group(row, count, begin, group)
        self.store_totals(span, row, count, end)

    def row_terms(self, row: Expr, count: int, begin: Expr, end: Expr) -> None:
        """Put what a row's sums bring to each group side by side: the correction, and the offset's factor."""
        body, groups = self.body, self.spec.groups
        for i in range(count):
            with T.serial(0, end - begin) as group:
                at, place = T.Bind((row + i) * groups + begin + group), i * self.size + group
                if self.corrections is not None:
                    T.buffer_store(self.corrections, body.xsum[at] * -self.spec.stored_zero, [place])
                if self.shifts is not None:
                    T.buffer_store(self.shifts, body.xs[at] * T.Cast("float32", body.xsum[at]), [place])

    def unpacked_quads(self, group: Expr) -> Iterator[tuple[list[Expr], int]]:
        """Yield vectors of four columns of every tile of the span, from the stack."""
        width = 4 * self.lanes
        for quad in range(QUADS):
            places = [((group * self.tiles + j) * QUADS + quad) * width for j in range(self.tiles)]
            yield [T.Bind(self.quants[ramp(place, width)]) for place in places], quad

    def correction(self, group: Expr, i: int) -> Expr:
        """Return what the stored zero adds to the sums of the tile's row `i`."""
        if self.corrections is None:
            return zeros(self.lanes, "int32")
        return splat(self.corrections[i * self.size + group], self.lanes)

    def add_group(self, row: Expr, count: int, begin: Expr, group: Expr) -> None:
        """Add the group's sums, scaled, to the totals."""
        lanes = self.lanes
        for j in range(self.tiles):
            place = ramp((group * self.tiles + j) * lanes, lanes)
            scale = T.Bind(self.scales[place])
            offset = None if self.offsets is None else T.Bind(self.offsets[place])
            for i in range(count):
                at = i * self.tiles + j
                scales = scale, self.body.xs[(row + i) * self.spec.groups + begin + group]
                shift = None
                if self.shifts is not None:
                    shift = offset, self.shifts[i * self.size + group]
                self.total[at] = self.body.scaled(self.total[at], self.sums[at], scales, shift)

    def load_totals(self, span: Expr, row: Expr, count: int, begin: Expr) -> None:
        """Begin at zero, or where the part before ended."""
        for i in range(count * self.tiles):
            self.total[i] = zeros(self.lanes)
        if self.parts == 1:
            return
        with T.If(begin > 0), T.Then():
            for i in range(count):
                for j in range(self.tiles):
                    place = self.place(span, row + i, j)
                    self.total[i * self.tiles + j] = self.body.y[ramp(place, self.lanes)]

    def store_totals(self, span: Expr, row: Expr, count: int, end: Expr) -> None:
        """Write the totals, with the bias after the last part."""
        bias = self.body.bias
        if bias is not None:
            with T.If(end == self.spec.groups), T.Then():
                for i in range(count):
                    for j in range(self.tiles):
                        column = (span * self.tiles + j) * self.lanes
                        at = i * self.tiles + j
                        self.total[at] = self.total[at] + bias[ramp(column, self.lanes)]
        for i in range(count):
            for j in range(self.tiles):
                place = self.place(span, row + i, j)
                T.buffer_store(self.body.y, self.total[i * self.tiles + j], [ramp(place, self.lanes)])

    def place(self, span: Expr, row: Expr, j: int) -> Expr:
        """Return where a row's results of a tile begin in y."""
        return row * self.spec.y_stride + (span * self.tiles + j) * self.lanes


def parts(groups: int) -> tuple[int, int]:
    """Return (parts, groups a part): equal parts if a size from half of the most on divides the groups."""
    if groups <= MOST_PART_GROUPS:
        return 1, groups
    for size in range(MOST_PART_GROUPS, MOST_PART_GROUPS // 2 - 1, -1):
        if groups % size == 0:
            return groups // size, size
    count = -(-groups // MOST_PART_GROUPS)
    return count, -(-groups // count)
