"""Attention of ragged query tokens over a paged cache: decode, chunked prefill and verification alike.

Shapes: q f16[tokens, heads * dim], cache_key [pages, kv_heads, dim, page], cache_value [pages, kv_heads,
        page, dim], f16 or int8, where they are int8 key_scale, value_scale f32[pages, kv_heads, page],
        positions, sequences i32[tokens], block_tables i32[seqs, blocks], query_tiles i32[tiles, 2]
        -> y f16[tokens, heads * dim].
Units:  split, block and window in tokens.

A tile is (first token on the ragged axis, count of tokens), all of one sequence and at consecutive
positions. The rows of a tile's matrix products are its tokens times the query heads that share a key head,
so that a page is read once for all of them. The context is cut into fixed splits; each is reduced by an
online softmax over fixed blocks from its start, and the splits are merged in ascending order. A narrow step
has a program for each split and merges in `PagedAttentionReduce`; a wide one loops over splits and merges
in registers by the same arithmetic. Hence a token's result has the same bits in every step, whatever its
tile.

On hardware that holds as far as the order of sums inside the matrix unit and of the sum over a block's
columns is the same. Both forms therefore take the same `block`, and 16 rows a warp: then each warp holds
whole rows, sums their columns alike, and multiplies by the same instruction, wgmma of 64 rows on sm_90 and
mma.sync of 16 elsewhere. A narrow tile has 64 rows. Decode wastes most of them, which its memory traffic
hides: a block of 64 tokens of dim 128 is 32 KB to read, some 2000 clocks of an H100's share of its memory,
and 2 MFLOP, some 500 clocks of its matrix unit. A wide tile has 128, so that a block is read half as often.
Heads of more than 128 columns take 64 rows and 8 warps in both forms, for the sums of two parts must fit
the registers; a block's sum then crosses warps, in the same order in both.

Sources: Dao 2023, arXiv:2307.08691 (online softmax over blocks); Kwon et al. 2023, arXiv:2309.06180 (pages);
Ye et al. 2025, arXiv:2501.01005 (ragged tiles, query heads of a group as rows, splits of the context).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import INFO, NARROW_TOKENS
from tokc.targets.plan import Axis, Grid

CACHE_DTYPES = {"f16": "f16", "int8": "i8"}
MIN_SPLIT = 256
MAX_SPLITS = 64
WIDEST_HEAD = 256
HEADS_A_REDUCTION = 4
LOG2E = 1.4426950408889634


def split_tokens(context: int) -> int:
    """Return the length of a split: a power of two, at least 256, of which a context holds at most 64.

    It follows from the artifact's own limit alone, so that no step can change it.
    """
    wanted = max(MIN_SPLIT, -(-context // MAX_SPLITS))
    return 1 << (wanted - 1).bit_length()


@dataclass(frozen=True)
class Tile:
    """How a program is cut: rows of its products, cached tokens a block, warps, depth of its pipeline.

    `block` decides the order of sums, so both forms of an attention must have the same.
    """

    rows: int
    block: int
    warps: int
    stages: int


@dataclass(frozen=True, kw_only=True)
class PagedAttention:
    """One form, wide or narrow, of an attention.

    `shape` None takes the one of `default_tile` for `architecture`, as the target spells it; "" stands for
    any of NVIDIA's up to sm_90.

    Arguments: q, cache_key, cache_value, [key_scale, value_scale], positions, sequences, block_tables,
    query_tiles, [tree], info, then y in a wide step; partials and statistics in a narrow one, of the shapes
    `partials_shape` and `statistics_shape`, f32, for `PagedAttentionReduce`.

    With `tree`, positions are places in the cache, and tree i32[tokens, 2] says (start, bits) a token: it
    sees every place before start, and start + j if bit j of bits is set; its own bit must be. A tree has at
    most 32 tokens, in consecutive places and in one order with their parents.

    Raises: TargetRefused for a head, a page or a cache dtype that no kernel reads.
    """

    heads: int
    kv_heads: int
    head_dim: int
    page: int
    dtype: str
    scale: float
    context: int
    wide: bool
    window: int = 0
    tree: bool = False
    architecture: str = ""
    shape: Tile | None = None
    split: int = 0
    tensor_cores: bool = True

    def __post_init__(self) -> None:
        """Fill in what was left to the kernel, and refuse what it does not compute."""
        if self.dtype not in CACHE_DTYPES:
            raise TargetRefused(
                f"no GPU kernel reads a cache of '{self.dtype}'; choose from {', '.join(CACHE_DTYPES)}"
            )
        if self.heads % self.kv_heads:
            raise TargetRefused(f"{self.heads} query heads do not share {self.kv_heads} key heads evenly")
        if self.head_dim > WIDEST_HEAD or self.head_dim % 16:
            raise TargetRefused(
                f"the GPU's attention takes heads of a multiple of 16 up to {WIDEST_HEAD} columns,"
                f" not {self.head_dim}"
            )
        if self.page < 16 or self.page & (self.page - 1):
            raise TargetRefused(
                f"the GPU's attention takes pages of a power of two from 16 on, not {self.page}",
                hint="use kv-layout{page=16}",
            )
        if not self.scale > 0:
            raise TargetRefused(f"the GPU's attention takes a positive scale, not {self.scale}")
        object.__setattr__(self, "split", self.split or split_tokens(self.context))
        block = self._shape.block
        assert self.split % block == 0, "a split is a whole number of blocks"
        assert block % self.page == 0 or self.page % block == 0, "blocks and pages share their bounds"
        assert self._shape.rows >= self.group, "a tile holds at least one token"

    @property
    def _shape(self) -> Tile:
        return self.shape or default_tile(self)

    @property
    def warps(self) -> int:
        """Return the number of warps of a program."""
        return self._shape.warps

    @property
    def stages(self) -> int:
        """Return the depth of the loop's pipeline."""
        return self._shape.stages

    @property
    def columns(self) -> int:
        """Return the power of two that holds a head."""
        return 1 << (self.head_dim - 1).bit_length()

    @property
    def group(self) -> int:
        """Return the number of query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def tile(self) -> int:
        """Return how many tokens a tile has at most."""
        return self._shape.rows // self.group

    @property
    def max_splits(self) -> int:
        """Return the number of splits of the longest context."""
        return -(-self.context // self.split)

    @property
    def partials_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of a narrow step's sums of values, f32."""
        return NARROW_TOKENS, self.heads, self.max_splits, self.head_dim

    @property
    def statistics_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of a narrow step's (maximum, sum) a split, f32."""
        return NARROW_TOKENS, self.heads, self.max_splits, 2

    @property
    def reduce(self) -> "PagedAttentionReduce":
        """Return the kernel that merges what a narrow step wrote."""
        return PagedAttentionReduce(
            heads=self.heads,
            head_dim=self.head_dim,
            split=self.split,
            max_splits=self.max_splits,
            window=self.window,
        )

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        form = ("wide" if self.wide else "narrow") + ("_tree" if self.tree else "")
        shape = f"{self.heads}_{self.kv_heads}_{self.head_dim}_{self.page}"
        cut = self._shape
        shaped = f"{cut.rows}_{cut.block}_{self.split}_{self.max_splits}_{cut.warps}_{cut.stages}"
        scale = float(self.scale).hex().replace("-", "m").replace("+", "").replace(".", "_")
        return f"paged_attention_{form}_{shape}_{self.dtype}_{self.window}_{scale}_{shaped}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        stored = CACHE_DTYPES[self.dtype]
        return (
            *(("q", "f16"), ("cache_key", stored), ("cache_value", stored)),
            *((("key_scale", "f32"), ("value_scale", "f32")) if self.dtype == "int8" else ()),
            *(("positions", "i32"), ("sequences", "i32"), ("block_tables", "i32"), ("query_tiles", "i32")),
            *((("tree", "i32"),) if self.tree else ()),
            ("info", "i32"),
            *((("y", "f16"),) if self.wide else (("partials", "f32"), ("statistics", "f32"))),
        )

    @property
    def grid(self) -> Grid:
        """Return a program a tile and key head, and in a narrow step a split."""
        both = Axis("tiles"), Axis(times=self.kv_heads)
        return both if self.wide else (*both, Axis("splits"))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        int8 = self.dtype == "int8"
        rows, columns = self._shape.rows, self.columns
        return {
            # A pointer that the form does not take is a constant, and no code reads it.
            **({} if int8 else {"key_scale": 0, "value_scale": 0}),
            **({} if self.tree else {"tree": 0}),
            **({"partials": 0, "statistics": 0} if self.wide else {"y": 0}),
            "KV_HEADS": self.kv_heads,
            "GROUP": self.group,
            "DIM": self.head_dim,
            "COLUMNS": columns,
            "HALVES": 2 if rows < columns == 128 else 1,
            "PAGE": self.page,
            "ROWS": rows,
            "BLOCK": self._shape.block,
            "SPLIT": self.split,
            "SPLITS": self.max_splits,
            "WINDOW": self.window,
            "SCALE": self.scale * LOG2E,
            "INT8": int8,
            "TREE": self.tree,
            "WIDE": self.wide,
            "TILES": INFO.index("tiles"),
            "BLOCKS": INFO.index("blocks"),
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.paged_attention import paged_attention

        return paged_attention


def default_tile(kernel: PagedAttention) -> Tile:
    """Return a tile for the kernel's architecture; see the module's docstring for the rows a warp.

    Chosen by compiling: none spills registers, but int8 heads of more than 128 columns in a wide step, and
    gfx11 past 64 columns or with int8. Blackwell's accumulators pass through tensor memory, which
    leaves no registers for a pipeline over wide heads.
    """
    int8, columns, arch = kernel.dtype == "int8", kernel.columns, kernel.architecture
    rows = 128 if kernel.wide and columns <= 128 else 64
    if arch.startswith("gfx11"):
        form = Tile(rows, 32, rows // 16, 1)
    elif arch.startswith("gfx"):
        # A matrix instruction takes 32 rows here.
        form = Tile(rows, 64 if columns <= (64 if int8 else 128) else 32, rows // 32, 1 if int8 else 2)
        form = replace(form, warps=4) if columns > 128 else form
    elif columns <= 64:
        form = Tile(rows, 64, rows // 16, 5)
    elif columns <= 128:
        deep = 1 if arch == "sm_100" or (int8 and kernel.wide) else 3
        form = Tile(rows, 32 if int8 else 64, rows // 16, deep)
    else:
        form = Tile(rows, 32, 8, 1 if int8 or arch == "sm_100" else 3)
    least = 1 << (kernel.group - 1).bit_length()
    return replace(form, rows=max(form.rows, least), block=max(form.block, kernel.page))


@dataclass(frozen=True, kw_only=True)
class PagedAttentionReduce:
    """Merges a narrow step's splits in ascending order: partials, statistics, positions, info, y."""

    heads: int
    head_dim: int
    split: int
    max_splits: int
    window: int = 0
    warps: int = 1
    stages: int = 4
    tensor_cores: bool = False

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        shape = f"{self.heads}_{self.head_dim}_{self.split}_{self.max_splits}_{self.window}"
        return f"paged_attention_reduce_{shape}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return (
            ("partials", "f32"),
            ("statistics", "f32"),
            ("positions", "i32"),
            ("info", "i32"),
            ("y", "f16"),
        )

    @property
    def grid(self) -> Grid:
        """Return a program a token and a few heads."""
        return Axis("tokens"), Axis(times=math.ceil(self.heads / HEADS_A_REDUCTION))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            "HEADS": self.heads,
            "HEADS_A_PROGRAM": HEADS_A_REDUCTION,
            "DIM": self.head_dim,
            "COLUMNS": 1 << (self.head_dim - 1).bit_length(),
            "SPLIT": self.split,
            "SPLITS": self.max_splits,
            "WINDOW": self.window,
            "STAGES": self.stages,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.paged_attention import paged_attention_reduce

        return paged_attention_reduce
