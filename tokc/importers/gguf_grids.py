"""Every quantized GGUF type as a grid: integer codes, and a scale (and an offset) a block, exactly.

All of llama.cpp's types are sums and products of small integers and a few narrow floats, so codes of at most
8 bits and f32 scales lose nothing: ``code * scale (+ offset)`` are the very numbers that the `gguf` package
computes. Where a type has no offset its codes are found by dividing what the package computes by the scale;
its tables and layouts are not repeated here.

Source: llama.cpp, ggml/src/ggml-common.h (the blocks) and gguf-py/gguf/quants.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind
from gguf import quants

Blocks = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint8 | np.int8]
F32 = npt.NDArray[np.float32]

NARROW = 4
HALF = 2  # bytes of an fp16 number


@dataclass(frozen=True)
class BlockGrid:
    """State a type's grid: `group` columns a scale; codes of 4 `bits` are unsigned around `zero_point`.

    `scales` and `offsets` take blocks u8[n, bytes] and return f32[n, groups of a block]; `half` says that
    what they return fits fp16 exactly. `codes` returns u8[n, columns of a block]; None divides by the scale.
    """

    group: int
    bits: Literal[4, 8]
    scales: Callable[[Blocks], F32]
    offsets: Callable[[Blocks], F32] | None = None
    codes: Callable[[Blocks], Codes] | None = None
    zero_point: int = 0
    half: bool = False

    def unpacked(self, blocks: Blocks, kind: Kind) -> Codes:
        """Return the codes of blocks u8[n, bytes]: u8 with the zero point added of 4 bits, else i8."""
        if self.codes is not None:
            read = self.codes(blocks)
            return read if self.bits == NARROW else read.astype(np.int8)
        scale = self.scales(blocks)[..., None]
        values = gguf.dequantize(blocks, kind).reshape(len(blocks), -1, self.group)
        steps = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
        whole = np.rint(steps) + np.float32(self.zero_point)
        codes: Codes = whole.astype(np.uint8 if self.bits == NARROW else np.int8).reshape(len(blocks), -1)
        return codes


def _half(at: int) -> Callable[[Blocks], F32]:
    """Return a reader of the fp16 number at byte `at`, f32[n, 1]."""
    return lambda blocks: _f16(blocks[:, at : at + HALF])


def _f16(data: Blocks) -> F32:
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)


def _u16(data: Blocks) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(data).view(np.uint16)


def _u32(data: Blocks) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(data).view(np.uint32)


def _nibbles(data: Blocks) -> Blocks:
    """Return each byte's low and then its high half, [n, 2 * bytes]."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)


def _five_bits(low: Blocks, high: Blocks) -> Blocks:
    """Return 32 codes of a block: their low halves 16 bytes, their fifth bits 4 bytes."""
    fifth = np.unpackbits(high, axis=-1, bitorder="little")
    return np.asarray(_nibbles_apart(low) | fifth << 4, np.uint8)


def _k_scales(data: Blocks, at: int) -> tuple[F32, F32]:
    """Return scales and minima of the eight sub-blocks of Q4_K and Q5_K, f32[n, 8], at byte `at` on."""
    scale, least = quants.Q4_K.get_scale_min(data[:, at : at + 12])
    return _f16(data[:, :2]) * scale.astype(np.float32), -_f16(data[:, 2:4]) * least.astype(np.float32)


def _q4_k_codes(blocks: Blocks) -> Blocks:
    pairs = blocks[:, 16:].reshape(len(blocks), 4, 32)
    return np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(blocks), -1)


def _q5_k_codes(blocks: Blocks) -> Blocks:
    pairs = blocks[:, 48:].reshape(len(blocks), 4, 32)
    low = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(blocks), 8, 32)
    fifth = blocks[:, 16:48].reshape(len(blocks), 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    return np.asarray(low | (fifth & 1) << 4, np.uint8).reshape(len(blocks), -1)


def _q2_k_codes(blocks: Blocks) -> Blocks:
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    codes = blocks[:, 16:80].reshape(len(blocks), 2, 1, 32) >> shifts & 3
    return np.asarray(codes, np.uint8).reshape(len(blocks), -1)


def _q3_k_scales(blocks: Blocks) -> F32:
    low = _nibbles_apart(blocks[:, 96:104])
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)
    high = (blocks[:, 104:108].reshape(len(blocks), 1, 4) >> shifts & 3).reshape(len(blocks), 16)
    return _f16(blocks[:, 108:110]) * ((low | high << 4).astype(np.float32) - np.float32(32))


def _nibbles_apart(data: Blocks) -> Blocks:
    """Return all low halves and then all high ones, [n, 2 * bytes]."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _iq4_xs_scales(blocks: Blocks) -> F32:
    shifts = np.arange(0, 16, 2, dtype=np.uint16)
    high = (_u16(blocks[:, 2:4]) >> shifts & 3).astype(np.uint8)
    return _f16(blocks[:, :2]) * ((_nibbles(blocks[:, 4:8]) | high << 4).astype(np.float32) - np.float32(32))


def _iq1_m_scales(blocks: Blocks) -> F32:
    packed = _u16(blocks[:, 48:56])
    parts = (packed & 0xF000) >> np.array([12, 8, 4, 0], np.uint16)
    whole = np.bitwise_or.reduce(parts, axis=-1).astype(np.uint16)
    each = (packed[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(len(blocks), -1)
    scale = whole.view(np.float16).astype(np.float32)[:, None] * (2 * each + 1).astype(np.float32)
    return np.asarray(scale / np.float32(8), np.float32)


def _iq1_s_scales(blocks: Blocks) -> F32:
    each = _u16(blocks[:, 34:50]) >> 12 & 7
    return _f16(blocks[:, :2]) * (2 * each + 1).astype(np.float32) / np.float32(8)


def _halves_of(parts: npt.NDArray[np.generic], blocks: Blocks, unit: float) -> F32:
    """Return ``d * (0.5 + part) * unit``, as the IQ2 and IQ3_XXS types have it."""
    return _f16(blocks[:, :2]) * (np.float32(0.5) + parts.astype(np.float32)) * np.float32(unit)


def _mx_scales(blocks: Blocks) -> F32:
    return np.asarray(quants.MXFP4.e8m0_to_fp32_half(blocks[:, :1]), np.float32)


def _nv_scales(blocks: Blocks) -> F32:
    return np.asarray(quants.NVFP4.ue4m3_to_fp32(blocks[:, :4]), np.float32)


def _low_scales(blocks: Blocks) -> F32:
    return _f16(blocks[:, 80:82]) * (blocks[:, :16] & 15).astype(np.float32)


def _low_offsets(blocks: Blocks) -> F32:
    return -_f16(blocks[:, 82:84]) * (blocks[:, :16] >> 4).astype(np.float32)


def _i8(data: Blocks) -> F32:
    return np.ascontiguousarray(data).view(np.int8).astype(np.float32)


GRIDS: Mapping[Kind, BlockGrid] = {
    Kind.Q4_0: BlockGrid(32, 4, _half(0), None, lambda b: _nibbles_apart(b[:, 2:]), 8, half=True),
    Kind.Q4_1: BlockGrid(32, 4, _half(0), _half(2), lambda b: _nibbles_apart(b[:, 4:]), half=True),
    Kind.Q5_0: BlockGrid(32, 8, _half(0), half=True),
    Kind.Q5_1: BlockGrid(32, 8, _half(0), _half(2), lambda b: _five_bits(b[:, 8:], b[:, 4:8]), half=True),
    Kind.Q8_0: BlockGrid(32, 8, _half(0), None, lambda b: b[:, 2:].view(np.int8), half=True),
    Kind.Q2_K: BlockGrid(16, 4, _low_scales, _low_offsets, _q2_k_codes),
    Kind.Q3_K: BlockGrid(16, 4, _q3_k_scales, zero_point=8),
    Kind.Q4_K: BlockGrid(32, 4, lambda b: _k_scales(b, 4)[0], lambda b: _k_scales(b, 4)[1], _q4_k_codes),
    Kind.Q5_K: BlockGrid(32, 8, lambda b: _k_scales(b, 4)[0], lambda b: _k_scales(b, 4)[1], _q5_k_codes),
    Kind.Q6_K: BlockGrid(16, 8, lambda b: _f16(b[:, 208:]) * _i8(b[:, 192:208])),
    Kind.TQ1_0: BlockGrid(256, 4, _half(52), zero_point=8, half=True),
    Kind.TQ2_0: BlockGrid(256, 4, _half(64), zero_point=8, half=True),
    Kind.MXFP4: BlockGrid(32, 8, _mx_scales),
    Kind.NVFP4: BlockGrid(16, 8, _nv_scales),
    Kind.IQ1_S: BlockGrid(32, 8, _iq1_s_scales),
    Kind.IQ1_M: BlockGrid(16, 8, _iq1_m_scales),
    Kind.IQ2_XXS: BlockGrid(32, 8, lambda b: _halves_of(_u32(b[:, 2:])[:, 1::2] >> 28, b, 0.25)),
    Kind.IQ2_XS: BlockGrid(16, 8, lambda b: _halves_of(_nibbles(b[:, 66:]), b, 0.25)),
    Kind.IQ2_S: BlockGrid(16, 8, lambda b: _halves_of(_nibbles(b[:, 74:]), b, 0.25)),
    Kind.IQ3_XXS: BlockGrid(32, 8, lambda b: _halves_of(_u32(b[:, 66:]) >> 28, b, 0.5)),
    Kind.IQ3_S: BlockGrid(
        32, 8, lambda b: _f16(b[:, :2]) * (1 + 2 * _nibbles(b[:, 106:])).astype(np.float32)
    ),
    Kind.IQ4_NL: BlockGrid(32, 8, _half(0), half=True),
    Kind.IQ4_XS: BlockGrid(32, 8, _iq4_xs_scales),
}
PLAIN = (Kind.F32, Kind.F16, Kind.BF16)
