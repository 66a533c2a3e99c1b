"""Packs weights into the tiles that the linear kernels read."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.errors import TargetRefused
from tokc.passes.quantization.narrow_scales import in_units
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.quant_linear import QuantLinear
from tokc.targets.cpu.kernels.quant_linear_codes import QUADS, packed_codes

Array = npt.NDArray[Any]
SLAB_TILES = 256
LEAST_SIGNED = -127


def packed_bytes(spec: QuantLinear | Linear) -> int:
    """Return the size of a packed weight."""
    return spec.tiles * spec.tile_bytes


def pack_quant(q: Array, scale: Array, offset: Array | None, spec: QuantLinear) -> npt.NDArray[np.uint8]:
    """Pack quants [n, k] and scales and offsets [n, ceil(k / block)] into the kernel's tiles.

    Works through slabs of tiles, so that the extra memory is small.
    """
    assert q.shape == (spec.n, spec.k), f"quants are {q.shape}, the kernel takes {(spec.n, spec.k)}"
    assert scale.shape == (spec.n, spec.blocks), f"scales are {scale.shape}, not {(spec.n, spec.blocks)}"
    lanes = spec.isa.lanes
    out = np.zeros((spec.tiles, spec.tile_bytes), np.uint8)
    for first in range(0, spec.tiles, SLAB_TILES):
        slab = out[first : first + SLAB_TILES]
        rows = slice(first * lanes, (first + len(slab)) * lanes)
        if spec.narrow_scales:
            units, steps = in_units(scale[rows])
            _lanes(slab, units[:, None], spec, 0)
            _lanes(slab, steps, spec, spec.scales_at)
        else:
            _lanes(slab, scale[rows].astype(np.float16), spec, 0)
        if offset is not None:
            _lanes(slab, offset[rows].astype(np.float16), spec, spec.scale_bytes)
        size = spec.groups * spec.vectors * 4 * lanes
        slab[:, spec.quants_at : spec.quants_at + size] = _quants(q[rows], len(slab), spec)
    return out.reshape(-1)


def pack_linear(w: Array, spec: Linear) -> npt.NDArray[np.float32]:
    """Pack f32 [n, k] into panels [n / panel, k, panel]."""
    assert w.shape == (spec.n, spec.k), f"the weight is {w.shape}, the kernel takes {(spec.n, spec.k)}"
    out = np.zeros((spec.tiles, spec.k, spec.panel), np.float32)
    whole = spec.n // spec.panel
    out[:whole] = w[: whole * spec.panel].reshape(whole, spec.panel, spec.k).transpose(0, 2, 1)
    if whole < spec.tiles:
        out[whole, :, : spec.n - whole * spec.panel] = w[whole * spec.panel :].T
    return out.reshape(-1)


def _padded(rows: Array, count: int) -> Array:
    return rows if len(rows) == count else np.pad(rows, ((0, count - len(rows)), (0, 0)))


def _lanes(slab: Array, values: Array, spec: QuantLinear, at: int) -> None:
    """Write values [rows, some] to byte `at` of each tile, [some, lanes]."""
    lanes = spec.isa.lanes
    tiles = _padded(values, len(slab) * lanes).reshape(len(slab), lanes, -1).transpose(0, 2, 1)
    data = np.ascontiguousarray(tiles).reshape(len(slab), -1).view(np.uint8)
    slab[:, at : at + data.shape[1]] = data


def _quants(q: Array, tiles: int, spec: QuantLinear) -> Array:
    lanes = spec.isa.lanes
    values = _padded(q, tiles * lanes)
    if spec.bits == 8:
        if spec.isa.dot == "pmaddubsw" and values.size and int(values.min()) < LEAST_SIGNED:
            raise TargetRefused(
                f"an int8 weight holds -128, which '{spec.isa.name}' cannot multiply exactly",
                hint="quantize it to [-127, 127], or build for a CPU with VNNI",
            )
        values = values.astype(np.int16) + spec.stored_zero
    quads = values.astype(np.uint8).reshape(tiles, lanes, spec.groups, QUADS, 4).transpose(0, 2, 3, 1, 4)
    quads = np.ascontiguousarray(quads).reshape(tiles, spec.groups, QUADS, lanes * 4)
    packed: Array = quads if spec.bits == 8 else packed_codes(quads, spec.bits)
    return packed.reshape(tiles, -1)
