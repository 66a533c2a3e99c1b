"""Rotary embedding of queries and keys, and the write of each token's key and value into its page.

Shapes: q, k, v f16[tokens, *_stride], cos, sin f32[context, dim / 2], positions, sequences i32[tokens],
        block_tables i32[seqs, blocks] -> q_out f16[tokens, heads * dim]; in place cache_key
        [pages, kv_heads, dim, page], cache_value [pages, kv_heads, page, dim], f16 or int8, and where they
        are int8 key_scale, value_scale f32[pages, kv_heads, page].
Rounding: int8 codes are x / (absmax / 127), half to even, a token and head; f16 is held within its range.
Source: Su et al. 2021, arXiv:2104.09864, in the form that rotates halves of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import INFO
from tokc.targets.plan import Axis, Grid

CACHE_DTYPES = {"f16": "f16", "int8": "i8"}


@dataclass(frozen=True, kw_only=True)
class RopeWriteKV:
    """One program a token and key head, with the query heads that share it.

    Arguments: q, k, v, cos, sin, positions, sequences, block_tables, info, [q_norm], [k_norm], q_out,
    cache_key, cache_value, [key_scale, value_scale]. q_norm and k_norm f32[dim] weigh an RMS norm of each
    head. Strides are in elements. `context` is the length of cos and sin; a position past it is a broken
    promise.

    Raises: TargetRefused for a cache dtype or a head that no kernel writes.
    """

    heads: int
    kv_heads: int
    head_dim: int
    page: int
    q_stride: int
    k_stride: int
    v_stride: int
    dtype: str
    q_norm: bool = False
    k_norm: bool = False
    epsilon: float = 1e-6
    context: int
    stages: int = 1
    tensor_cores: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        if self.dtype not in CACHE_DTYPES:
            raise TargetRefused(
                f"no GPU kernel writes a cache of '{self.dtype}'; choose from {', '.join(CACHE_DTYPES)}"
            )
        if self.head_dim % 2:
            raise TargetRefused(f"a head of {self.head_dim} columns has no halves to rotate")
        if self.heads % self.kv_heads:
            raise TargetRefused(f"{self.heads} query heads do not share {self.kv_heads} key heads evenly")

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        norms = ("q" if self.q_norm else "") + ("k" if self.k_norm else "")
        shape = f"{self.heads}_{self.kv_heads}_{self.head_dim}_{self.page}"
        strides = f"{self.q_stride}_{self.k_stride}_{self.v_stride}"
        tail = f"_{norms}norm_{float(self.epsilon).hex()}" if norms else ""
        found = f"rope_write_kv_{shape}_{strides}_{self.dtype}{tail}"
        return found.replace("-", "m").replace("+", "").replace(".", "_")

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        stored = CACHE_DTYPES[self.dtype]
        return (
            *(("q", "f16"), ("k", "f16"), ("v", "f16"), ("cos", "f32"), ("sin", "f32")),
            *(("positions", "i32"), ("sequences", "i32"), ("block_tables", "i32"), ("info", "i32")),
            *((("q_norm", "f32"),) if self.q_norm else ()),
            *((("k_norm", "f32"),) if self.k_norm else ()),
            *(("q_out", "f16"), ("cache_key", stored), ("cache_value", stored)),
            *((("key_scale", "f32"), ("value_scale", "f32")) if self.dtype == "int8" else ()),
        )

    @property
    def grid(self) -> Grid:
        """Return a program a token and key head."""
        return Axis("tokens"), Axis(times=self.kv_heads)

    @property
    def warps(self) -> int:
        """Return the number of warps: about eight query elements a lane."""
        return max(1, min(8, self._group_rows * self._half_columns * 2 // 256))

    @property
    def _group_rows(self) -> int:
        return 1 << (self.heads // self.kv_heads - 1).bit_length()

    @property
    def _half_columns(self) -> int:
        return 1 << (self.head_dim // 2 - 1).bit_length()

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        int8 = self.dtype == "int8"
        return {
            # A pointer that the form does not take is a constant, and no code reads it.
            **({} if self.q_norm else {"q_norm": 0}),
            **({} if self.k_norm else {"k_norm": 0}),
            **({} if int8 else {"key_scale": 0, "value_scale": 0}),
            "KV_HEADS": self.kv_heads,
            "GROUP": self.heads // self.kv_heads,
            "GROUP_ROWS": self._group_rows,
            "DIM": self.head_dim,
            "HALF_COLUMNS": self._half_columns,
            "PAGE": self.page,
            "Q_STRIDE": self.q_stride,
            "K_STRIDE": self.k_stride,
            "V_STRIDE": self.v_stride,
            "Q_NORM": self.q_norm,
            "K_NORM": self.k_norm,
            "EPSILON": self.epsilon,
            "INT8": int8,
            "BLOCKS": INFO.index("blocks"),
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.rope_write_kv import rope_write_kv

        return rope_write_kv
