"""Rotate q and k, and write k and v of each token at its place in the paged cache.

Per head, optionally an RMS norm first; then, with c and s the row of the token's position,
    out[i] = x[i] * c[i] - x[i + dim / 2] * s[i],    out[i + dim / 2] = x[i + dim / 2] * c[i] + x[i] * s[i].

Shapes: q, k, v f32[rows, *_stride]; cos, sin f32[positions, dim / 2]; q_norm, k_norm f32[dim];
        positions, sequences i32[rows]; block_tables i32[seqs, info[3]]; q_out f32[rows, heads * dim];
        cache_key [pages, kv_heads, dim, page], cache_value [pages, kv_heads, page, dim];
        key_scale, value_scale f32[pages, kv_heads, page] for an int8 cache: absmax / 127 over dim.
An int4 cache has bytes in the place of dim / 2 elements, d in the low nibble and d + dim / 2 in the high one,
and f16 scales: element = (code - 8) * scale, the one furthest from zero being code 0. Its queries and keys
are turned by a Hadamard matrix (`hadamard.py`), which leaves their products as they are.
With `trees`, a token's place in the cache is entries i32[rows]; its position rotates it, and no more.
An f16 cache holds finite values: what is beyond its range is written as its largest number.
"""

from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.rms_norm import float_tag

PAGE = 16
CACHE_TYPES = {"f32": "float32", "f16": "float16", "int8": "int8", "int4": "uint8"}
SCALE_TYPES = {"int8": "float32", "int4": "float16"}


@dataclass(frozen=True)
class RopeWriteKV:
    """One specialization; widths and strides in elements."""

    isa: Isa
    heads: int
    kv_heads: int
    dim: int
    q_stride: int
    k_stride: int
    v_stride: int
    kv_dtype: str
    page: int
    qk_norm: bool
    epsilon: float
    trees: bool = False

    def __post_init__(self) -> None:
        """Refuse cache layouts that no kernel reads."""
        require_cache(self.page, self.dim, self.kv_dtype)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        strides = f"{self.q_stride}_{self.k_stride}_{self.v_stride}"
        norm = f"_norm_{float_tag(self.epsilon)}" if self.qk_norm else ""
        tree = "_tree" if self.trees else ""
        return f"rope_write_kv_{self.heads}_{self.kv_heads}x{self.dim}_{strides}_{self.kv_dtype}{norm}{tree}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        norms = ("q_norm", "k_norm") if self.qk_norm else ()
        entries = ("entries",) if self.trees else ()
        batch = ("positions", "sequences", "block_tables", *entries, "info")
        return ("q", "k", "v", "cos", "sin", *norms, *batch, "q_out", *cache_args(self.kv_dtype))

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.rope_write_kv_body import build

        return build(self)


def cache_args(kv_dtype: str) -> tuple[str, ...]:
    """Return the cache's pointer arguments."""
    scales = ("key_scale", "value_scale") if kv_dtype in SCALE_TYPES else ()
    return ("cache_key", "cache_value", *scales)


def stored_dim(dim: int, kv_dtype: str) -> int:
    """Return how many items of its type a cached head takes."""
    return dim // 2 if kv_dtype == "int4" else dim


def require_cache(page: int, dim: int, kv_dtype: str) -> None:
    """Refuse cache layouts that no kernel reads.

    Raises: TargetRefused naming what does not fit.
    """
    if page != PAGE:
        raise TargetRefused(
            f"pages of {page} tokens do not run on the CPU", hint=f"use kv-layout{{page={PAGE}}}"
        )
    if dim % (2 * PAGE):
        raise TargetRefused(f"head dimension {dim} is not a multiple of {2 * PAGE}")
    if kv_dtype not in CACHE_TYPES:
        raise TargetRefused(f"unknown cache dtype '{kv_dtype}'; choose from {', '.join(CACHE_TYPES)}")
