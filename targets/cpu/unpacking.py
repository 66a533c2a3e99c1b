"""Reads packed weights back, exactly: the reverse of `packing.py`, by the name of the reading kernel."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.passes.quantization.grid import NARROW_SCALE
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.moe_linear import MoeLinear
from tokc.targets.cpu.kernels.quant_linear import GROUP, QuantLinear
from tokc.targets.cpu.kernels.quant_linear_codes import QUADS, fields

Array = npt.NDArray[Any]

QUANT = re.compile(
    r"^(?:embedding_of_)?quant_linear_(?P<n>\d+)x(?P<k>\d+)_q(?P<bits>\d)(?P<grid>[sa])(?:g(?P<block>\d+))?"
    r"(?P<scales>n)?(?P<bias>_bias)?_(?P<stride>\d+)$"
)
PLAIN = re.compile(
    r"^(?:embedding_of_)?linear_(?P<n>\d+)x(?P<k>\d+)(?P<bias>_bias)?_(?P<x_stride>\d+)_(?P<stride>\d+)$"
)

EXPERTS = re.compile(r"^moe_(?P<count>\d+)_(?P<linear>.+)$")


@dataclass(frozen=True)
class Unpacked:
    """Hold a weight ``(codes - zero_point) * scale (+ offset)``: codes [n, k], scales [n, k / block]."""

    codes: Array
    scale: Array
    offset: Array | None
    zero_point: int
    block: int


def kernel_of(symbol: str, isa: Isa) -> QuantLinear | Linear | MoeLinear | None:
    """Return the kernel that a plan calls `symbol`, None if it reads no packed weight."""
    experts = EXPERTS.match(symbol)
    if experts is None:
        return _linear_of(symbol, isa)
    linear = _linear_of(experts["linear"], isa)
    return None if linear is None else MoeLinear(linear, int(experts["count"]))


def _linear_of(symbol: str, isa: Isa) -> QuantLinear | Linear | None:
    quant, plain = QUANT.match(symbol), PLAIN.match(symbol)
    if quant is not None:
        return QuantLinear(
            isa,
            int(quant["n"]),
            int(quant["k"]),
            int(quant["bits"]),
            quant["grid"] == "s",
            quant["bias"] is not None,
            int(quant["stride"]),
            int(quant["block"] or GROUP),
            NARROW_SCALE if quant["scales"] else 16,
        )
    if plain is not None:
        bias, strides = plain["bias"] is not None, (int(plain["x_stride"]), int(plain["stride"]))
        return Linear(isa, int(plain["n"]), int(plain["k"]), bias, *strides)
    return None


def unpack_quant(data: Array, spec: QuantLinear) -> Unpacked:
    """Return the weight behind a packed tensor u8[size]."""
    tiles = data.reshape(spec.tiles, spec.tile_bytes)
    size = spec.groups * spec.vectors * 4 * spec.isa.lanes
    vectors = tiles[:, spec.quants_at : spec.quants_at + size]
    wide = spec.bits == 8
    middle = 1 << spec.bits - 1
    return Unpacked(
        codes=_codes(np.ascontiguousarray(vectors), spec),
        scale=_scales(tiles, spec),
        offset=None if spec.symmetric else _lanes(tiles, spec, spec.scale_bytes, np.float16),
        zero_point=middle if spec.symmetric and not wide else 0,
        block=spec.block,
    )


def unpack_linear(data: Array, spec: Linear) -> npt.NDArray[np.float32]:
    """Return the weight f32[n, k] behind panels [n / panel, k, panel]."""
    panels = data.view(np.float32).reshape(spec.tiles, spec.k, spec.panel)
    return np.ascontiguousarray(panels.transpose(0, 2, 1).reshape(-1, spec.k)[: spec.n])


def _scales(tiles: Array, spec: QuantLinear) -> Array:
    if not spec.narrow_scales:
        return _lanes(tiles, spec, 0, np.float16)
    units = _lanes(tiles, spec, 0, np.float32, 1)
    return (_lanes(tiles, spec, spec.scales_at, np.int8) * units).astype(np.float16)


def _lanes(tiles: Array, spec: QuantLinear, at: int, kind: type[np.generic], count: int = 0) -> Array:
    """Return values [n, count] of each tile's byte `at`, by default as many as a row has scales."""
    lanes, count = spec.isa.lanes, count or spec.blocks
    data = np.ascontiguousarray(tiles[:, at : at + count * lanes * np.dtype(kind).itemsize]).view(kind)
    rows = data.reshape(spec.tiles, count, lanes).transpose(0, 2, 1).reshape(-1, count)
    return np.ascontiguousarray(rows[: spec.n])


def _codes(vectors: Array, spec: QuantLinear) -> Array:
    lanes = spec.isa.lanes
    packed = vectors.reshape(spec.tiles, spec.groups, spec.vectors, lanes * 4)
    quads = packed if spec.bits == 8 else _decoded(packed, spec.bits)
    split = quads.reshape(spec.tiles, spec.groups, QUADS, lanes, 4).transpose(0, 3, 1, 2, 4)
    rows = np.ascontiguousarray(split).reshape(-1, spec.k)[: spec.n]
    return rows if spec.bits < 8 else (rows - np.uint8(spec.stored_zero)).view(np.int8)


def _decoded(packed: Array, bits: int) -> Array:
    """Return the codes [.., 8 quads, bytes] of vectors [.., bits, bytes]."""
    codes = np.zeros((*packed.shape[:-2], QUADS, packed.shape[-1]), np.uint8)
    for quad in range(QUADS):
        for field in fields(bits, quad):
            codes[..., quad, :] |= packed[..., field.vector, :] >> field.shift << field.at & field.mask
    return codes
