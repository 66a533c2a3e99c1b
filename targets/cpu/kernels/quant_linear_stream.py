"""The quantized linear kernel for few rows: weights come once from memory and are unpacked in registers.

Up to `most_rows` rows, a thread's share of tiles is cut into two equal runs that are read side by side: the
CPU's prefetchers stop at the end of a 4 KiB page, and one stream alone leaves a part of the memory's
bandwidth unused. More rows take one tile of weights at a time, or two, several times.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.quant_linear import TILES_AT_ONCE
from tokc.targets.cpu.kernels.quant_linear_sums import Sums
from tokc.targets.cpu.kernels.tir import Expr, prefetch, registers, zeros

if TYPE_CHECKING:
    from tokc.targets.cpu.kernels.quant_linear_tile import Body

LINE_BYTES = 64
STREAMS = TILES_AT_ONCE
AHEAD_BYTES = 16384


class Stream:
    """Builds the statements for this thread's tiles [low, high)."""

    def __init__(self, body: "Body") -> None:
        """Declare registers."""
        self.body, self.spec, self.lanes = body, body.spec, body.lanes
        self.most = self.spec.isa.accumulators
        count = max(self.most, STREAMS * self.most_rows)
        self.total = registers(count, self.lanes, "float32")
        self.sums = Sums(self.spec, body.xq, count)
        spans, arguments = self.spec.tiles // STREAMS, body.arguments
        self.low = T.Bind(spans * arguments.tid // arguments.threads * STREAMS)
        self.high = T.Bind(spans * (arguments.tid + 1) // arguments.threads * STREAMS)
        self.last = T.Bind(self.high * self.spec.tile_bytes - LINE_BYTES)

    @property
    def most_rows(self) -> int:
        """Return how many rows are computed exactly, with every weight read once."""
        return self.most // 2 if self.spec.pairwise else self.most * 3 // 4

    def emit(self) -> None:
        """Compute all rows of the thread's tiles."""
        rows = self.body.arguments.rows
        for count in range(1, self.most_rows + 1):
            with T.If(rows == count), T.Then():
                self.side_by_side(count)
        width = self.spec.schedule.tiles_at_once
        with T.If(rows > self.most_rows), T.Then(), T.serial(self.low // width, self.high // width) as span:
            self.rows_of([T.Bind(span * width + i) for i in range(width)], T.int32(0), rows)

    def side_by_side(self, count: int) -> None:
        """Compute `count` rows, two tiles at a time."""
        length = T.Bind((self.high - self.low) // STREAMS)
        with T.serial(0, length) as at:
            self.tile([T.Bind(self.low + i * length + at) for i in range(STREAMS)], T.int32(0), count)

    def rows_of(self, tiles: Sequence[Expr], first: Expr, count: Expr) -> None:
        """Compute the rows [first, first + count) of some tiles, in pieces that halve at the end."""
        done, piece = first, self.most // len(tiles)
        while piece:
            pieces = T.Bind((first + count - done) // piece)
            with T.serial(0, pieces) as at:
                self.tile(tiles, T.Bind(done + at * piece), piece, once=False)
            done = T.Bind(done + pieces * piece)
            piece //= 2

    def tile(self, tiles: Sequence[Expr], row: Expr, count: int, *, once: bool = True) -> None:
        """Compute `count` rows of some weight tiles, which are read `once` or again by other rows."""
        body, width = self.body, len(tiles)
        for i in range(count * width):
            self.total[i] = zeros(self.lanes)
        with T.serial(0, self.spec.groups) as group:
            for tile in tiles:
                self.fetch(tile, group, once=once)
            corrections = partial(self.correction, row, group)
            self.sums.compute((row, count), group, width, corrections, self.quads(tiles, group))
            for j, tile in enumerate(tiles):
                scale, offset = body.scale_and_offset(tile, group)
                for i in range(count):
                    at = i * width + j
                    self.total[at] = body.accumulate(
                        self.total[at], self.sums[at], scale, offset, row + i, group
                    )
        for i in range(count):
            for j, tile in enumerate(tiles):
                body.store(self.total[i * width + j], tile, row + i)

    def correction(self, row: Expr, group: Expr, i: int) -> Expr:
        """Return what the stored zero adds to the sums of row `row` + i."""
        return self.body.correction((row + i) * self.spec.groups + group)

    def quads(self, tiles: Sequence[Expr], group: Expr) -> Iterator[tuple[list[Expr], int]]:
        """Yield vectors of four columns of every tile."""
        for vectors in zip(*(self.body.packed_quads(tile, group) for tile in tiles), strict=True):
            yield [quants for quants, _ in vectors], vectors[0][1]

    def fetch(self, tile: Expr, group: Expr, *, once: bool) -> None:
        """Ask for the packed weights that this thread reads later, in equal parts a group.

        Weights that are read once pass L2 by: what they would push out of it costs bandwidth.
        """
        spec = self.spec
        part = spec.tile_bytes // spec.groups
        for line in range(0, part, LINE_BYTES):
            ahead = spec.schedule.ahead_bytes if once else AHEAD_BYTES
            place = self.body.w[T.min(tile * spec.tile_bytes + group * part + (ahead + line), self.last)]
            prefetch(place, once=once)
