"""Weights on a grid as GGUF's blocks of 32: Q4_0, Q4_1 and Q8_0."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from gguf import GGMLQuantizationType as Kind

from tokc.importers.checkpoint import Dense, Grid, Weight, static

Array = npt.NDArray[Any]

BLOCK = 32
MIDDLES = (2, 4, 8)  # zero points of symmetric codes of 2, 3 and 4 bits


def kind_of(weight: Weight, plain: Kind) -> Kind:
    """Return the type that holds a weight exactly if it is on one of GGUF's grids, else the plain one."""
    if len(weight.shape) == 1:
        return Kind.F32
    if isinstance(weight, Dense) or weight.scale.dtype != ir.DataType.FLOAT16:
        return plain
    if weight.block_size % BLOCK or weight.shape[1] % BLOCK:
        return plain
    if weight.q.dtype == ir.DataType.INT8:
        return Kind.Q8_0 if weight.offset is None and weight.zero_point == 0 else plain
    if weight.offset is not None:
        return Kind.Q4_1 if weight.zero_point == 0 else plain
    return Kind.Q4_0 if weight.zero_point in MIDDLES else plain


def _blocks(weight: Grid) -> tuple[Array, Array]:
    """Return codes i16[rows, blocks, 32], less the zero point, and scales f16[rows, blocks, 1]."""
    codes = weight.q.numpy().astype(np.int16) - np.int16(weight.zero_point)
    return codes.reshape(weight.shape[0], -1, BLOCK), _each_block(weight.scale, weight)


def _each_block(values: ir.TensorProtocol, weight: Grid) -> Array:
    rows, columns = static(values)[0], weight.shape[1] // BLOCK
    spread = np.repeat(values.numpy(), weight.block_size // BLOCK, axis=1)[:, :columns]
    return np.ascontiguousarray(spread.reshape(rows, columns, 1))


def _packed(head: list[Array], codes: Array) -> Array:
    """Put the blocks' fp16 numbers before their codes, u8[rows, bytes]."""
    parts = [part.view(np.uint8).reshape(*part.shape[:2], 2) for part in head]
    joined = np.concatenate([*parts, codes], axis=-1)
    return joined.reshape(len(joined), -1)


def _nibbles(codes: Array) -> Array:
    narrow = codes.astype(np.uint8)
    half = BLOCK // 2
    return narrow[:, :, :half] | narrow[:, :, half:] << 4


def _q4_0(weight: Grid) -> Array:
    codes, scale = _blocks(weight)
    return _packed([scale], _nibbles(codes + 8))


def _q4_1(weight: Grid) -> Array:
    codes, scale = _blocks(weight)
    assert weight.offset is not None, "Q4_1 has an offset"
    return _packed([scale, _each_block(weight.offset, weight)], _nibbles(codes))


def _q8_0(weight: Grid) -> Array:
    codes, scale = _blocks(weight)
    return _packed([scale], codes.astype(np.int8).view(np.uint8))


ENCODERS: Mapping[Kind, Callable[[Grid], Array]] = {Kind.Q4_0: _q4_0, Kind.Q4_1: _q4_1, Kind.Q8_0: _q8_0}
