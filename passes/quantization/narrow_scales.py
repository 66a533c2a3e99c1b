"""Scales of 8 bits: a signed count of the row's unit, as Q4_K and double quantization (QLoRA) store scales.

    scale = count * unit     count in -127..127, unit = m * 2**e with m in 8..15

The unit has four significant bits, so that every such scale is an fp16 number too, exactly: a program keeps
its scales in fp16, and only a target that can reads the counts. A row's largest scale has a count of at least
113, so a scale moves by at most 1/226 of that one.
"""

import numpy as np
import numpy.typing as npt

from tokc.passes.quantization.grid import F16, F32, FP16_MAX, NARROW_SCALE, Grid, Quantized

MOST = 127  # of a count
LEAST_UNIT = 2.0**-21  # 8 * 2**-24: what is finer is no fp16 number
UNITS = 2  # candidates for a row's unit: the least that holds its largest scale, and the next


def with_narrow_scales(w: F32, grid: Grid, quantized: Quantized) -> Quantized:
    """Return whole rows of `w` with scales of the grid's `scale_bits`: those of 8 are moved, codes follow."""
    if grid.scale_bits != NARROW_SCALE:
        return quantized
    scale = narrowed(quantized.scale)
    return Quantized(grid.encode(w, scale), scale)


def narrowed(scale: F16) -> F16:
    """Return the nearest scales [rows, groups] of 8 bits."""
    wide = scale.astype(np.float32)
    units = _least_units(wide)[:, None]
    most = np.minimum(MOST, np.floor(FP16_MAX / units))
    counts = np.clip(np.rint(wide / units), -most, most)
    narrow: F16 = (counts * units).astype(np.float16)
    return narrow


def in_units(scale: npt.NDArray[np.generic]) -> tuple[F32, npt.NDArray[np.int8]]:
    """Return the units f32 [rows] and counts i8 [rows, groups] of scales that are of 8 bits.

    Raises: ValueError if one is not.
    """
    wide = scale.astype(np.float32)
    units = _least_units(wide)
    for _ in range(UNITS):
        counts = wide / units[:, None]
        whole = (counts == np.rint(counts)) & (np.abs(counts) <= MOST)
        exact = whole.all(axis=1)
        if exact.all():
            return units, counts.astype(np.int8)
        units = np.where(exact, units, _next(units))
    raise ValueError("a scale is no multiple of its row's unit")


def _least_units(scale: F32) -> F32:
    """Return the least unit of each row in which its largest scale counts at most 127."""
    mantissa, exponent = np.frexp(np.abs(scale).max(axis=1) / np.float32(MOST))  # mantissa in [0.5, 1)
    units = np.ldexp(np.ceil(mantissa * 16), exponent - 4)
    least: F32 = np.maximum(units, LEAST_UNIT).astype(np.float32)
    return least


def _next(units: F32) -> F32:
    mantissa, exponent = np.frexp(units)
    following: F32 = np.ldexp(mantissa * 16 + 1, exponent - 4).astype(np.float32)
    return following
