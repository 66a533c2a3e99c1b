"""Rounding of weights to the float formats of `tokc.ir.formats`.

Scales, with b the largest magnitude of a block:

    e4m3, e5m2   b / 448 and b / 57344, the largest finite numbers, in f32
    mxfp4        2 ** (floor(log2(b)) - 2): OCP Microscaling Formats v1.0, section 6.3; e2m1 reaches 2 ** 2
    nvfp4        b / 6 over the tensor's scale, in e4m3; the tensor's is its b / (448 * 6)

Codes are the nearest numbers of the format, ties to even, larger ones at its largest. The rule for mxfp4 cuts
what is above 6 / 8 of the next power of two; `rtn-mse` tries other scales for each block, and keeps that of
least squared error, the rule's own if none is better.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tokc.ir.formats import E8M0_BIAS, NIBBLES, FloatFormat
from tokc.passes.quantization.grid import F32, NotFinite, row_chunks

Array = npt.NDArray[Any]
ScaleShape = Literal["auto", "tensor", "channel", "block"]
RoundingMethod = Literal["rtn", "rtn-mse"]

ELEMENTS: Mapping[FloatFormat, Any] = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "nvfp4": ml_dtypes.float4_e2m1fn,
}
SCALES: Mapping[FloatFormat, Any] = {
    "e4m3": np.float32,
    "e5m2": np.float32,
    "mxfp4": np.uint8,  # e8m0
    "nvfp4": ml_dtypes.float8_e4m3fn,
}
COLUMNS: Mapping[FloatFormat, int] = {"mxfp4": 32, "nvfp4": 16}  # of a block
SQUARE = 128  # rows and columns of a block of 8-bit floats, as DeepSeek-V3 (arXiv:2412.19437) has them
E2M1_EXPONENT = 2
LEAST_SCALE = np.finfo(np.float32).tiny  # smaller scales have fewer bits
LARGEST: Mapping[FloatFormat, float] = {"e4m3": 448.0, "e5m2": 57344.0, "mxfp4": 6.0, "nvfp4": 6.0}
# What `rtn-mse` multiplies the scale by; 8-bit floats are as precise at any scale.
TRIED: Mapping[FloatFormat, tuple[float, ...]] = {
    "e4m3": (1.0,),
    "e5m2": (1.0,),
    "mxfp4": (1.0, 2.0),
    "nvfp4": (1.0, 0.8, 0.9, 1.125, 1.25, 1.5),
}


@dataclass(frozen=True)
class FloatCodes:
    """Hold a weight in a float format.

    Codes [out, in] are 8-bit floats, or bit patterns u8 of e2m1; scale [blocks of rows, blocks of columns] is
    f32, e8m0 as u8, or e4m3; `tensor_scale` f32[1] is nvfp4's.
    """

    codes: Array
    scale: Array
    tensor_scale: F32 | None = None


@dataclass(frozen=True)
class FloatGrid:
    """A float format and its blocks: `block_rows` by `block_size` weights share a scale."""

    format: FloatFormat
    block_rows: int
    block_size: int
    method: RoundingMethod = "rtn"
    threads: int = 2

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape of the scales of a weight."""
        return -(-rows // self.block_rows), -(-columns // self.block_size)

    def quantize(self, w: F32) -> FloatCodes:
        """Return the codes and scales of `w`, f32 [out, in].

        Raises: NotFinite if `w` holds an infinity or a NaN.
        """
        largest = self._largest(w)
        if not np.isfinite(largest).all():
            raise NotFinite("the weight holds a value that is not finite")
        whole = self._tensor_scale(largest)
        chunks = list(self._chunks(w))

        def cast(rows: slice) -> tuple[Array, Array]:
            blocks = slice(rows.start // self.block_rows, -(-rows.stop // self.block_rows))
            return self._cast(w[rows], largest[blocks], whole)

        with ThreadPoolExecutor(self.threads) as pool:
            codes, scales = zip(*pool.map(cast, chunks), strict=True)
        tensor_scale = np.full(1, whole, np.float32) if self.format == "nvfp4" else None
        return FloatCodes(np.concatenate(codes), np.concatenate(scales), tensor_scale)

    def dequantized(self, found: FloatCodes) -> F32:
        """Return what the codes stand for, rounded once a step as the IR's ops do."""
        whole = np.float32(1.0) if found.tensor_scale is None else found.tensor_scale[0]
        return self._decoded(found.codes, self._factors(found.scale, whole))

    def _chunks(self, w: F32) -> Iterator[slice]:
        """Cut rows at the edges of blocks."""
        blocks = self.scale_shape(*w.shape)[0]
        for part in row_chunks(blocks, w.shape[1] * self.block_rows):
            yield slice(part.start * self.block_rows, min(part.stop * self.block_rows, w.shape[0]))

    def _largest(self, w: F32) -> F32:
        """Return the largest magnitude of each block."""
        columns, rows = (
            np.arange(0, size, step)
            for size, step in ((w.shape[1], self.block_size), (w.shape[0], self.block_rows))
        )
        high, low = np.maximum.reduceat(w, columns, axis=1), np.minimum.reduceat(w, columns, axis=1)
        largest: F32 = np.maximum.reduceat(np.maximum(high, -low), rows, axis=0)
        return largest

    def _tensor_scale(self, largest: F32) -> np.float32:
        if self.format != "nvfp4":
            return np.float32(1.0)
        whole = np.float32(largest.max() / (LARGEST["e4m3"] * LARGEST["nvfp4"]))
        return whole if whole > 0 else np.float32(1.0)

    def _cast(self, w: F32, largest: F32, whole: np.float32) -> tuple[Array, Array]:
        """Return codes and scales of whole blocks of rows."""
        tried = TRIED[self.format] if self.method == "rtn-mse" else (1.0,)
        scale = self._scale(largest, whole, tried[0])
        codes = self._codes(w, scale, whole)
        least = self._errors(w, codes, scale, whole) if len(tried) > 1 else None
        for factor in tried[1:]:
            other_scale = self._scale(largest, whole, factor)
            other = self._codes(w, other_scale, whole)
            errors = self._errors(w, other, other_scale, whole)
            assert least is not None, "a first scale was tried"
            better = errors < least
            least = np.where(better, errors, least)
            scale = np.where(better, other_scale, scale)
            codes = np.where(self._spread(better, w), other, codes)
        return codes, scale

    def _scale(self, largest: F32, whole: np.float32, factor: float) -> Array:
        """Return the scale of each block as it is stored."""
        if self.format == "mxfp4":
            exponent = np.frexp(largest)[1] - 1 - E2M1_EXPONENT + round(np.log2(factor))
            biased = np.where(largest > 0, exponent + E8M0_BIAS, E8M0_BIAS)
            return np.clip(biased, 0, 2 * E8M0_BIAS).astype(np.uint8)
        if self.format == "nvfp4":
            wanted = largest.astype(np.float64) * (factor / LARGEST["nvfp4"]) / float(whole)
            return np.minimum(wanted, LARGEST["e4m3"]).astype(SCALES["nvfp4"])
        scale = (largest / LARGEST[self.format]).astype(np.float32)
        return np.where(largest > 0, np.maximum(scale, LEAST_SCALE), np.float32(1.0))

    def _factors(self, scale: Array, whole: np.float32) -> F32:
        """Return what codes are multiplied by, f32 of the scales' shape."""
        if self.format == "mxfp4":
            return np.ldexp(np.float32(1.0), scale.astype(np.int32) - E8M0_BIAS)
        return scale.astype(np.float32) * whole

    def _codes(self, w: F32, scale: Array, whole: np.float32) -> Array:
        element = ELEMENTS[self.format]
        by = self._spread(self._factors(scale, whole), w)
        steps = np.divide(w, by, out=np.zeros_like(w), where=by != 0)
        most = LARGEST[self.format]
        codes = np.clip(steps, -most, most, out=steps).astype(element)
        return codes.view(np.uint8) if self.format in NIBBLES else codes

    def _errors(self, w: F32, codes: Array, scale: Array, whole: np.float32) -> F32:
        """Return the squared error of each block, of one row each."""
        with np.errstate(over="ignore"):  # what passes f32 has an infinite error
            difference = self._decoded(codes, self._factors(scale, whole)) - w.astype(np.float64)
        errors: F32 = np.add.reduceat(difference**2, np.arange(0, w.shape[1], self.block_size), axis=1)
        return errors

    def _decoded(self, codes: Array, factors: F32) -> F32:
        numbers = codes.view(ELEMENTS[self.format]) if self.format in NIBBLES else codes
        return numbers.astype(np.float32) * self._spread(factors, codes)

    def _spread(self, per_block: Array, w: Array) -> Array:
        wide = np.repeat(per_block, self.block_size, axis=1)[:, : w.shape[1]]
        return np.repeat(wide, self.block_rows, axis=0)[: len(w)] if self.block_rows > 1 else wide


def float_grid(
    weight_format: FloatFormat, scales: ScaleShape, method: RoundingMethod, shape: tuple[int, int]
) -> FloatGrid:
    """Return the grid of a weight of `shape`.

    Raises: ValueError for scales that the format does not have.
    """
    rows, columns = shape
    if weight_format in NIBBLES:
        if scales not in {"auto", "block"}:
            raise ValueError(f"format '{weight_format}' has a scale a block, not one a {scales}")
        return FloatGrid(weight_format, 1, COLUMNS[weight_format], method)
    blocks = {"tensor": (rows, columns), "block": (SQUARE, SQUARE)}.get(scales, (1, columns))
    return FloatGrid(weight_format, *blocks, method)
