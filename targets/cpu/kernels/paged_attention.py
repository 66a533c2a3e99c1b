"""Attend over a paged cache: prefill, chunked prefill and decode in one kernel.

Token t of sequence s = sequences[t] at p = positions[t] attends to positions j of s with j <= p, and
j > p - window if there is a window; position j lies in page block_tables[s, j // 16], slot j % 16.

Positions are taken in blocks of 64, with a running maximum m, sum l and result a per head (Milakov and
Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135), in powers of two:
    s = scale / ln(2) * q @ K,   m' = max(m, round(max(s))),   e = 2 ** (s - m'),
    l = l * 2 ** (m - m') + sum(e),   a = a * 2 ** (m - m') + e @ V,   y = a / l.
The maxima are whole numbers, so that a change of the maximum scales exactly and costs no exponential.
Blocks begin at multiples of 64 of the position, whatever the step holds. Every few blocks (1, or more where
that would make over 16 parts of a sequence) m, l and a begin anew, and the parts are added up in ascending
order. So a token's operations and their order depend on its position alone: its bits are the same in a
decode step, in any chunk of a prefill, and on any number of threads.

A unit of work is consecutive tokens of one sequence by one head of the cache. A step of few such units gives
their parts to different threads; the one that finishes last adds them up. It knows by a counter in the
scratch, which must be zero before the first launch and is zero after each.

Shapes: q f32[rows, heads * dim]; cache and integer inputs as in rope_write_kv.py; scratch `scratch_bytes`
        for each thread, zeroed once; y f32[rows, heads * dim]; int8 form as in quantize.py.
"""

from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.quantize import output_args, output_tag
from tokc.targets.cpu.kernels.rms_norm import float_tag
from tokc.targets.cpu.kernels.rope_write_kv import (
    PAGE,
    SCALE_TYPES,
    cache_args,
    require_cache,
    stored_dim,
)

BLOCK_PAGES = 4
BLOCK = BLOCK_PAGES * PAGE
ROWS_AT_ONCE = 64
MOST_TOKENS_AT_ONCE = 16
PART_BLOCKS = 1
MOST_PARTS = 16
FEW_TOKENS = 8


@dataclass(frozen=True)
class PagedAttention:
    """One specialization; `window` 0 attends to all, `context` bounds a sequence's length.

    A `softcap` c makes of each score s, before the mask, ``c * tanh(s / c)``; 0 leaves scores alone.
    With `trees`, tokens may be nodes of a tree (`paged_attention_tree.py`).
    """

    isa: Isa
    heads: int
    kv_heads: int
    dim: int
    page: int
    kv_dtype: str
    scale: float
    window: int
    context: int
    quantize: bool
    keep_float: bool
    softcap: float = 0.0
    trees: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        require_cache(self.page, self.dim, self.kv_dtype)
        if self.heads % self.kv_heads:
            raise TargetRefused(f"{self.heads} heads do not divide into {self.kv_heads} groups")

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        outputs = output_tag(keep_float=self.keep_float, quantize=self.quantize)
        shape = f"{self.heads}_{self.kv_heads}x{self.dim}_{self.kv_dtype}"
        parts = f"g{len(self.part_growths)}"
        cap = f"_cap_{float_tag(self.softcap)}" if self.softcap else ""
        tree = "_tree" if self.trees else ""
        return f"paged_attention_{shape}_w{self.window}_{float_tag(self.scale)}{cap}_{parts}_{outputs}{tree}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        tree = ("entries", "ancestors") if self.trees else ()
        batch = ("positions", "sequences", "block_tables", *tree, "info", "scratch")
        outputs = output_args(keep_float=self.keep_float, quantize=self.quantize)
        return ("q", *cache_args(self.kv_dtype), *batch, *outputs)

    @property
    def scaled(self) -> bool:
        """Return whether the cache has scales."""
        return self.kv_dtype in SCALE_TYPES

    @property
    def stored_dim(self) -> int:
        """Return how many items a cached head takes."""
        return stored_dim(self.dim, self.kv_dtype)

    @property
    def group(self) -> int:
        """Return how many heads share a head of the cache."""
        return self.heads // self.kv_heads

    @property
    def vectors(self) -> int:
        """Return how many accumulators of 16 f32 a tile holds in registers."""
        return 24 if "avx512f" in self.isa.features else 6

    @property
    def tile_rows(self) -> int:
        """Return how many rows (token, head) a tile of a prefill has."""
        return 6 if "avx512f" in self.isa.features else 3

    @property
    def tokens_at_once(self) -> int:
        """Return how many tokens of a sequence share their reads of the cache, a power of two."""
        most = max(1, min(MOST_TOKENS_AT_ONCE, ROWS_AT_ONCE // self.group))
        return 1 << most.bit_length() - 1

    @property
    def copies(self) -> bool:
        """Return whether a prefill widens a block of the cache once, not in each tile of rows."""
        return self.kv_dtype != "f32" and "avx512f" not in self.isa.features

    @property
    def rows(self) -> int:
        """Return how many rows the scratch holds, whole tiles."""
        return -(-self.tokens_at_once * self.group // self.tile_rows) * self.tile_rows

    @property
    def part_size(self) -> int:
        """Return the size of a row's maximum, sum and result of a part, in f32."""
        return self.dim + 2 * PAGE

    @property
    def part_growths(self) -> tuple[int, ...]:
        """Return the positions from which on a part has twice as many blocks."""
        first = MOST_PARTS * PART_BLOCKS * BLOCK
        return tuple(first << i for i in range(32) if first << i < self.context)

    @property
    def scratch_offsets(self) -> dict[str, int]:
        """Return where each part of a thread's scratch begins, in f32, and their sum as 'end'."""
        sizes = {
            "q": self.rows * self.dim,
            "result": self.rows * self.dim,
            "weights": self.rows * BLOCK,
            "peak": self.rows * PAGE,
            "sum": self.rows * PAGE,
            "decay": self.rows * PAGE,
            "keys": BLOCK * self.dim,
            "values": BLOCK * self.dim,
            "value_scales": BLOCK,
            "whole_result": self.rows * self.dim,
            "whole_peak": self.rows * PAGE,
            "whole_sum": self.rows * PAGE,
            "parts": FEW_TOKENS * self.heads * MOST_PARTS * self.part_size,
            "arrivals": -(-FEW_TOKENS * self.kv_heads // PAGE) * PAGE,
            **({"key_scales": BLOCK} if self.trees else {}),
        }
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += size
        return {**offsets, "end": end}

    @property
    def scratch_bytes(self) -> int:
        """Return the size of one thread's scratch."""
        return 4 * self.scratch_offsets["end"]

    def build(self) -> Any:
        """Return the PrimFunc."""
        if self.trees:
            from tokc.targets.cpu.kernels.paged_attention_tree import build
        else:
            from tokc.targets.cpu.kernels.paged_attention_body import build

        return build(self)
