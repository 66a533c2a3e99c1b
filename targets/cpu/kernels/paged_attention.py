"""Attention over paged keys and values, one token's heads at a time.

y = softmax(scale * q @ K.T) @ V over the positions of the token's sequence up to its own (Vaswani et al. 2017,
arXiv:1706.03762; pages as Kwon et al. 2023, arXiv:2309.06180). Scores of a page are 16 lanes, so the sums have one
order whatever the batch, the chunk or the thread: all scores, their maximum, the exponentials, then the values
position by position.
"""

from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.isa import Isa


@dataclass(frozen=True)
class PagedAttention:
    """q f32[rows, heads * dim] -> y f32[rows, heads * dim], its int8 form, or both; `window` 0 is unbounded."""

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

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        shape = f"{self.heads}_{self.kv_heads}_{self.dim}_{self.page}_w{self.window}_c{self.context}"
        outputs = f"{'f' if self.keep_float else ''}{'q' if self.quantize else ''}"
        name = f"paged_attention_{self.kv_dtype}_{shape}_{float(self.scale).hex()}_{outputs}"
        return name.translate(str.maketrans(".+-", "_pm"))

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        scales = ("key_scale", "value_scale") if self.kv_dtype == "int8" else ()
        outputs = (*(("y",) if self.keep_float else ()), *(("xq", "xs", "xsum") if self.quantize else ()))
        batch = ("positions", "sequences", "block_tables", "info", "scratch")
        return ("q", "cache_key", "cache_value", *scales, *batch, *outputs)

    @property
    def group(self) -> int:
        """Return how many query heads share a key head."""
        return self.heads // self.kv_heads

    @property
    def scratch_bytes(self) -> int:
        """Return the scratch that one thread needs: the scores of all heads of a group."""
        return 4 * self.group * (-(-self.context // self.page) * self.page)

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.attention_bodies import paged_attention

        return paged_attention(self)
