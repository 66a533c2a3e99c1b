"""The grids that weights are quantized to, and the arithmetic that every quantization method shares.

A weight is [out, in]; a group is `group` neighbouring columns of one row, the last group of a row may be
short. Each group has one fp16 scale and, on an asymmetric grid, one fp16 offset:

    symmetric b bits    w = (q - 2**(b-1)) * scale   q in 0..2**b - 1, scale of either sign (4: GGUF's Q4_0)
    asymmetric b bits   w = q * scale + offset       q in 0..2**b - 1 (4: Q4_1)
    8 bits              w = q * scale                q in -127..127 (Q8_0)

with b one of 2, 3 and 4.

Methods differ in how they choose scales and codes (`rtn.py` takes `fit` and `encode` as they are);
all of them store what `encode` returns, so that packing, kernels and checks need to know grids only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]
Codes = npt.NDArray[np.uint8 | np.int8]

NARROW, WIDE = 4, 8  # bits of a code: up to NARROW it is unsigned, at WIDE signed
WIDTHS = (2, 3, NARROW, WIDE)
NARROW_SCALE = 8  # bits of a scale, 16 otherwise
FP16_MAX = np.float32(65504.0)


class NotFinite(ValueError):
    """Report weights that hold an infinity or a NaN, which no grid can express."""


@dataclass(frozen=True)
class Quantized:
    """Hold a quantized weight, one code an array element: codes [out, in], scale and offset [out, groups]."""

    codes: Codes
    scale: F16
    offset: F16 | None = None


@dataclass(frozen=True)
class Grid:
    """Describe a grid: `bits` a code, `group` columns a scale, and whether it is centred on zero.

    Scales of 8 bits are fp16 numbers too; `narrow_scales.py` makes them.
    """

    bits: int = 4
    group: int = 32
    symmetric: bool = True
    scale_bits: int = 16

    def __post_init__(self) -> None:
        """Refuse grids that no kernel can run."""
        if self.bits not in WIDTHS:
            raise ValueError(f"a grid has 2, 3, 4 or 8 bits, not {self.bits}")
        if self.bits == WIDE and not self.symmetric:
            raise ValueError("a grid of 8 bits is symmetric")
        if self.scale_bits not in {NARROW_SCALE, 16}:
            raise ValueError(f"a scale has 8 or 16 bits, not {self.scale_bits}")
        if self.scale_bits == NARROW_SCALE and not self.symmetric:
            raise ValueError("scales of 8 bits go with symmetric grids")
        if self.group < 1:
            raise ValueError(f"a group has at least one column, not {self.group}")

    @property
    def zero_point(self) -> int:
        """Return the code that means zero on a symmetric grid, 0 where an offset or the sign says it."""
        return 1 << (self.bits - 1) if self.bits <= NARROW and self.symmetric else 0

    @property
    def code_range(self) -> tuple[int, int]:
        """Return the smallest and the largest code."""
        return (0, (1 << self.bits) - 1) if self.bits <= NARROW else (-127, 127)

    @property
    def code_dtype(self) -> np.dtype[np.uint8 | np.int8]:
        """Return the type of an unpacked code."""
        return np.dtype(np.uint8) if self.bits <= NARROW else np.dtype(np.int8)

    def groups(self, columns: int) -> int:
        """Return how many groups a row of `columns` has, a short last one counted."""
        return -(-columns // self.group)

    def fit(self, w: F32) -> tuple[F16, F16 | None]:
        """Return the scale and offset of each group that let it span the group's extremes."""
        blocks = self._blocks(w)
        low, high = blocks.min(axis=-1), blocks.max(axis=-1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise NotFinite("the weight holds a value that is not finite")
        if not self.symmetric:
            steps = np.float32(self.code_range[1])
            return half(high / steps - low / steps), half(low)
        if self.bits == WIDE:
            return half(np.maximum(-low, high) / np.float32(127)), None
        extreme = np.where(-low > high, low, high)
        return half(extreme / np.float32(-self.zero_point)), None

    def encode(self, w: F32, scale: F16, offset: F16 | None = None) -> Codes:
        """Return the nearest codes of `w`; groups with a scale of zero get the code that means zero."""
        blocks = self._blocks(w)
        if offset is not None:
            blocks = blocks - offset.astype(np.float32)[..., None]
        divisor = scale.astype(np.float32)[..., None]
        steps = np.divide(blocks, divisor, out=np.zeros_like(blocks), where=divisor != 0)
        np.rint(steps, out=steps)
        steps += np.float32(self.zero_point)
        np.clip(steps, *self.code_range, out=steps)
        codes: Codes = steps.astype(self.code_dtype)
        return np.ascontiguousarray(codes.reshape(w.shape[0], -1)[:, : w.shape[1]])

    def decode(self, codes: Codes, scale: F16, offset: F16 | None = None) -> F32:
        """Return the weights that the codes stand for, in f32, rounded once a step as the IR's ops do."""
        w = codes.astype(np.float32)
        w -= np.float32(self.zero_point)
        w *= self.per_column(scale, w.shape[1])
        if offset is not None:
            w += self.per_column(offset, w.shape[1])
        return w

    def quantize(self, w: F32) -> Quantized:
        """Round `w` to the nearest point of the grid that spans each group."""
        scale, offset = self.fit(w)
        return Quantized(self.encode(w, scale, offset), scale, offset)

    def dequantize(self, quantized: Quantized) -> F32:
        """Return what `quantized` stands for."""
        return self.decode(quantized.codes, quantized.scale, quantized.offset)

    def error(self, w: F32, quantized: Quantized) -> float:
        """Return the mean squared difference between `w` and what `quantized` stands for."""
        difference = self.dequantize(quantized).astype(np.float64) - w
        return float(np.mean(difference * difference))

    def _blocks(self, w: F32) -> F32:
        """View `w` as [out, groups, group]; a short last group repeats its last column: no extreme moves."""
        rows, columns = w.shape
        missing = self.groups(columns) * self.group - columns
        whole = np.pad(w, ((0, 0), (0, missing)), mode="edge") if missing else w
        return whole.reshape(rows, -1, self.group)

    def per_column(self, per_group: F16, columns: int) -> F32:
        """Spread one value a group over the group's columns."""
        return np.repeat(per_group.astype(np.float32), self.group, axis=1)[:, :columns]


def row_chunks(rows: int, columns: int, *, elements: int = 1 << 22) -> Iterator[slice]:
    """Cut rows into runs of about `elements` elements, so that temporaries stay small for any weight."""
    step = max(1, elements // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def half(values: F32) -> F16:
    """Round to fp16, keeping what is too large for it at its largest value."""
    return np.clip(values, -FP16_MAX, FP16_MAX).astype(np.float16)
