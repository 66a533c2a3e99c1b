"""A paged cache in numpy: what the kernels' tests compare with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PAGE = 16
DTYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


@dataclass(frozen=True)
class Batch:
    """The integer inputs of a step; `info` is tokens, logit rows, sequences, block stride."""

    positions: Array
    sequences: Array
    block_tables: Array

    @property
    def info(self) -> Array:
        """Return the step's sizes."""
        return np.array([len(self.positions), 0, *self.block_tables.shape], np.int32)

    def rows(self, picked: Any) -> "Batch":
        """Return the batch of some of the tokens."""
        return Batch(self.positions[picked].copy(), self.sequences[picked].copy(), self.block_tables)


def batch_of(chunks: list[tuple[int, int]], rng: np.random.Generator, *, pages: int, blocks: int) -> Batch:
    """Return a step in which sequence i runs positions [first, last); pages are dealt at random."""
    positions = np.concatenate([np.arange(first, last) for first, last in chunks]).astype(np.int32)
    sequences = np.repeat(np.arange(len(chunks)), [last - first for first, last in chunks]).astype(np.int32)
    dealt = iter(rng.permutation(pages).astype(np.int32))
    tables = np.full((len(chunks), blocks), pages - 1, np.int32)
    for index, (_, last) in enumerate(chunks):
        used = -(-last // PAGE)
        tables[index, :used] = [next(dealt) for _ in range(used)]
    return Batch(positions, sequences, tables)


def quantized_heads(x: Array) -> tuple[Array, Array]:
    """Return int8 quants and scales over the last axis."""
    scale = (np.abs(x).max(-1) / np.float32(127)).astype(np.float32)
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, 1), 0).astype(np.float32)
    return np.rint(x * inverse[..., None]).astype(np.int8), scale


class Cache:
    """key [pages, kv_heads, dim, 16], value [pages, kv_heads, 16, dim]; unwritten slots are poisoned."""

    def __init__(self, pages: int, kv_heads: int, dim: int, dtype: str) -> None:
        """Fill with NaN, or with scales of NaN."""
        poison = 99 if dtype == "int8" else np.nan
        self.dtype = dtype
        self.key = np.full((pages, kv_heads, dim, PAGE), poison, DTYPES[dtype])
        self.value = np.full((pages, kv_heads, PAGE, dim), poison, DTYPES[dtype])
        self.scales = [np.full((pages, kv_heads, PAGE), np.nan, np.float32) for _ in range(2)]

    @property
    def arrays(self) -> list[Array]:
        """Return the arrays in the kernels' order."""
        return [self.key, self.value, *(self.scales if self.dtype == "int8" else [])]

    def write(self, page: int, slot: int, k: Array, v: Array) -> None:
        """Write k and v, f32[kv_heads, dim], of one token."""
        if self.dtype == "int8":
            k, self.scales[0][page, :, slot] = quantized_heads(k)
            v, self.scales[1][page, :, slot] = quantized_heads(v)
        self.key[page, :, :, slot] = k
        self.value[page, :, slot] = v

    def read(self, table: Array, length: int) -> tuple[Array, Array]:
        """Return k and v, f64[length, kv_heads, dim], of a sequence."""
        places = [(table[j // PAGE], j % PAGE) for j in range(length)]
        k = np.stack([self.key[page, :, :, slot] for page, slot in places]).astype(np.float64)
        v = np.stack([self.value[page, :, slot] for page, slot in places]).astype(np.float64)
        if self.dtype == "int8":
            k *= np.stack([self.scales[0][page, :, slot] for page, slot in places])[..., None]
            v *= np.stack([self.scales[1][page, :, slot] for page, slot in places])[..., None]
        return k, v
