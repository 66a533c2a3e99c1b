"""The inputs of a step on a GPU, gathered in one pinned block that one copy brings to the device."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tokc.errors import ArtifactRefused, RequestRefused
from tokc.runtime.drivers.base import Bytes
from tokc.runtime.drivers.memory import Layout, laid_out
from tokc.runtime.executors.base import Batch, Int32s, refuse_trees

# Every input that a plan may name; the block tables lie last, for a step uses few of their bytes.
NAMES = (
    "info",
    "input_ids",
    "positions",
    "sequences",
    "logit_rows",
    "query_tiles",
    "block_tables",
)
INFO_SIZE = 8
ALIGNMENT = 64
ITEM = 4


class Sizes(NamedTuple):
    """The symbols of a grid, and whether the kernels of narrow steps run."""

    tokens: int
    rows: int
    tiles: int
    splits: int
    narrow: bool


class StepInputs:
    """Where inputs lie in the block, and how a batch is written there."""

    def __init__(self, buffers: Sequence[Mapping[str, Any]], limits: Mapping[str, int]) -> None:
        """Lay out the inputs of a plan; sizes as `limits` bound them.

        Raises: ArtifactRefused if the plan wants an input that this runtime does not know.
        """
        self._limits = limits
        unknown = sorted({buffer["name"] for buffer in buffers} - set(NAMES))
        if unknown:
            raise ArtifactRefused(
                f"the plan wants the input '{unknown[0]}'; this runtime knows {', '.join(NAMES)}",
                hint="use the version of tokc that built the artifact",
            )
        ordered = sorted(buffers, key=lambda buffer: NAMES.index(buffer["name"]))
        self.layout: Layout = laid_out(ordered, limits, alignment=ALIGNMENT)
        self._views: dict[str, Int32s] = {}

    def bind(self, staging: Bytes) -> None:
        """Take the block that batches are written to."""
        staging[:] = 0
        starts = sorted(self.layout.offsets.values())
        ends = dict(zip(starts, [*starts[1:], self.layout.size], strict=True))
        self._views = {
            name: staging[start : ends[start]].view(np.int32) for name, start in self.layout.offsets.items()
        }

    def fill(self, batch: Batch) -> tuple[Sizes, int]:
        """Write a batch; returns its sizes, and how many of the block's bytes matter.

        Raises: RequestRefused if the batch is larger than the artifact's limits.
        """
        refuse_trees(batch)
        limits = self._limits
        tokens, rows = len(batch.input_ids), len(batch.logit_rows)
        seqs, blocks = batch.block_tables.shape
        narrow = tokens <= limits["narrow_tokens"]
        _require(("tokens", tokens), ("rows", rows), ("seqs", seqs), ("blocks", blocks), limits=limits)
        tiles = query_tiles(batch.sequences, limits["narrow_tile" if narrow else "wide_tile"])
        _require(("tiles", len(tiles)), limits=limits)
        last = int(batch.positions.max()) if tokens else 0
        splits = last // limits["split"] + 1
        own = Sizes(tokens, rows, len(tiles), splits, narrow)
        grid = bucket(own, limits)
        for name, values in (
            ("info", (tokens, rows, seqs, blocks, len(tiles), splits, grid.tokens, grid.rows)),
            ("input_ids", batch.input_ids),
            ("positions", batch.positions),
            ("sequences", batch.sequences),
            ("logit_rows", batch.logit_rows),
            ("query_tiles", tiles.reshape(-1)),
        ):
            if name in self._views:
                self._views[name][: len(values)] = values
        used = self.layout.size
        if "block_tables" in self._views:
            tables = self._views["block_tables"][: seqs * blocks]
            tables.reshape(seqs, blocks)[:] = batch.block_tables
            used = self.layout.offsets["block_tables"] + tables.nbytes
        return own, used


def query_tiles(sequences: Int32s, tile: int) -> Int32s:
    """Cut a step into tiles of at most `tile` consecutive tokens of one sequence.

    Shapes: sequences i32[tokens] -> i32[tiles, 2], each tile's first token and how many it has.
    """
    tokens = len(sequences)
    if tokens == 0:
        return np.zeros((0, 2), np.int32)
    starts = np.concatenate(([0], np.flatnonzero(sequences[1:] != sequences[:-1]) + 1))
    counts = np.diff(starts, append=tokens)
    per_run = -(-counts // tile)
    ends = per_run.cumsum()
    within = np.arange(ends[-1]) - np.repeat(ends - per_run, per_run)
    found = np.empty((len(within), 2), np.int32)
    found[:, 0] = np.repeat(starts, per_run) + within * tile
    found[:, 1] = np.minimum(np.repeat(counts, per_run) - within * tile, tile)
    return found


def bucket(sizes: Sizes, limits: Mapping[str, int]) -> Sizes:
    """Return the sizes of the grid that a step is launched over: rounded up if it is narrow.

    A narrow step has at most a tile a token. Kernels learn the step's own sizes from `info`.
    """
    if not sizes.narrow:
        return sizes
    tokens = min(_rounded(sizes.tokens), limits["narrow_tokens"], limits["tokens"])
    return Sizes(
        tokens=tokens,
        rows=min(_rounded(sizes.rows), limits["rows"]),
        tiles=tokens,
        splits=min(_rounded(sizes.splits), max(limits["splits"], sizes.splits)),
        narrow=True,
    )


def _rounded(count: int) -> int:
    """Return the power of two from `count` on; 0 for 0."""
    return 1 << (count - 1).bit_length() if count else 0


def _require(*counted: tuple[str, int], limits: Mapping[str, int]) -> None:
    for name, count in counted:
        if count > limits[name]:
            raise RequestRefused(
                f"a step of {count} {_WORDS[name]} exceeds the artifact's limit of {limits[name]}"
            )


_WORDS = {
    "tokens": "tokens",
    "rows": "logit rows",
    "seqs": "sequences",
    "blocks": "blocks a sequence",
    "tiles": "tiles of tokens",
}
