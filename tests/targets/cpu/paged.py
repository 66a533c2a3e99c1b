"""A paged cache in numpy: what the kernels' tests compare with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PAGE = 16
DTYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8, "int4": np.uint8}
SCALES = {"int8": np.float32, "int4": np.float16}


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

    @property
    def integers(self) -> list[Array]:
        """Return the integer inputs in the kernels' order."""
        return [self.positions, self.sequences, self.block_tables, self.info]

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


def hadamard(n: int) -> Array:
    """Return the orthonormal Hadamard matrix, f64[n, n], in equal parts if n is no power of two."""
    part, h = n & -n, np.ones((1, 1))
    while len(h) < part:
        h = np.block([[h, h], [h, -h]])
    return np.kron(np.eye(n // part), h / np.sqrt(part))


def nibbled_heads(x: Array) -> tuple[Array, Array]:
    """Return codes 0..15 over the last axis, elements d and d + dim / 2 in one byte, and f16 scales."""
    high, low = x.max(-1), x.min(-1)
    scale = (np.where(-low > high, low, high) / np.float32(-8)).astype(np.float16)
    wide = scale.astype(np.float32)
    inverse = np.where(wide != 0, np.float32(1) / np.where(wide != 0, wide, 1), 0).astype(np.float32)
    codes = np.clip(np.rint(x * inverse[..., None]) + 8, 0, 15).astype(np.uint8)
    first, second = np.split(codes, 2, -1)
    return first | second << 4, scale


def codes_of(nibbled: Array) -> Array:
    """Return the codes less 8 of bytes that hold two, on the last axis."""
    return np.concatenate([nibbled & 15, nibbled >> 4], -1).astype(np.float64) - 8


class Cache:
    """key [pages, kv_heads, dim, 16], value [pages, kv_heads, 16, dim]; unwritten slots are poisoned."""

    def __init__(self, pages: int, kv_heads: int, dim: int, dtype: str) -> None:
        """Fill with NaN, or with scales of NaN."""
        poison = 99 if dtype in SCALES else np.nan
        dim = dim // 2 if dtype == "int4" else dim
        self.dtype = dtype
        self.key = np.full((pages, kv_heads, dim, PAGE), poison, DTYPES[dtype])
        self.value = np.full((pages, kv_heads, PAGE, dim), poison, DTYPES[dtype])
        self.scales = [np.full((pages, kv_heads, PAGE), np.nan, SCALES.get(dtype)) for _ in range(2)]

    @property
    def arrays(self) -> list[Array]:
        """Return the arrays in the kernels' order."""
        return [self.key, self.value, *(self.scales if self.dtype in SCALES else [])]

    def write(self, page: Array | int, slot: Array | int, k: Array, v: Array) -> None:
        """Write k and v, f32[kv_heads, dim], of one token, or of as many as places; for int4, k is turned."""
        if self.dtype in SCALES:
            quantize = quantized_heads if self.dtype == "int8" else nibbled_heads
            k, self.scales[0][page, :, slot] = quantize(k)
            v, self.scales[1][page, :, slot] = quantize(v)
        self.key[page, :, :, slot] = k
        self.value[page, :, slot] = v

    def read(self, table: Array, length: int) -> tuple[Array, Array]:
        """Return k and v, f64[length, kv_heads, dim], of a sequence."""
        places = [(table[j // PAGE], j % PAGE) for j in range(length)]
        k = np.stack([self.key[page, :, :, slot] for page, slot in places])
        v = np.stack([self.value[page, :, slot] for page, slot in places])
        k, v = (codes_of(part) if self.dtype == "int4" else part.astype(np.float64) for part in (k, v))
        if self.dtype in SCALES:
            k *= np.stack([self.scales[0][page, :, slot] for page, slot in places])[..., None]
            v *= np.stack([self.scales[1][page, :, slot] for page, slot in places])[..., None]
        return k, v
