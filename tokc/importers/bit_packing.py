"""Integers packed into 32-bit words, as GPTQ, AWQ and compressed-tensors pack them."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.uint8]

WORD = 32  # bits
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds, from the low end


def unpacked(words: Array, bits: int, count: int) -> Codes:
    """Return `count` codes a row, u8[rows, count], of words i32[rows, n] that hold a dense run of bits.

    The first code is in the lowest bits of the first word; a code may lie across two words.
    """
    rows = np.ascontiguousarray(words).view("<u4")
    if WORD % bits == 0:
        shifts = np.arange(0, WORD, bits, dtype=np.uint32)
        codes = (rows[:, :, None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.uint8)
        return codes.reshape(len(rows), -1)[:, :count]
    stream = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")[:, : count * bits]
    places = np.uint8(1) << np.arange(bits, dtype=np.uint8)
    summed: Codes = (stream.reshape(len(rows), count, bits) * places).sum(axis=2, dtype=np.uint8)
    return summed


def words_of(count: int, bits: int) -> int:
    """Return how many words hold `count` codes."""
    return -(-count * bits // WORD)


def unpacked_awq(words: Array) -> Codes:
    """Return codes of 4 bits, u8[rows, 8 * n], of words i32[rows, n] in AWQ's order."""
    plain = unpacked(words, 4, words.shape[1] * len(AWQ_ORDER)).reshape(len(words), -1, len(AWQ_ORDER))
    codes = np.empty_like(plain)
    codes[:, :, list(AWQ_ORDER)] = plain
    return codes.reshape(len(words), -1)
