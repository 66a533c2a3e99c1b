"""Rounding that makes up for its errors: each column's error is taken off the columns after it.

Frantar et al. 2022 (GPTQ, arXiv:2210.17323). With ``H = X.T @ X`` of what the layer reads and R the upper
Cholesky factor of its inverse, the error of column i, ``e = (w_i - decoded_i) / R_ii``, moves the columns j
that are not yet rounded by ``-e * R_ij``: the least squared error of the output that is left to them. Columns
go in the order of their power, the largest first, while their groups keep their places and the scales that
were fitted to the weight as it was ("static" order), so that kernels know nothing of it.

Each row is its own problem, and a row whose output errs less when it is simply rounded to nearest is: so
that no layer is worse than by `rtn`, on the text it was calibrated on.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tokc.passes.quantization.grid import F32, Codes, Grid, Quantized, row_chunks
from tokc.passes.quantization.narrow_scales import with_narrow_scales
from tokc.passes.quantization.rtn import RoundToNearest
from tokc.passes.quantization.rtn_mse import RoundToNearestMse
from tokc.quality.calibration import Statistics

F64 = npt.NDArray[np.float64]

BLOCK = 64  # columns whose errors reach those behind the block in one product
CHUNK = 1 << 19  # elements of the rows that one thread works on
SMALL = 64  # width at which a triangle is inverted by LAPACK
DAMP_GROWTH, DAMP_MOST = 10.0, 1.0


@dataclass(frozen=True)
class Gptq:
    """Quantize one weight so that what the layer makes of its text errs little.

    What is added to the diagonal of H, as a part of its mean, is the number of channels over that of tokens,
    between the two ends of `damp`: H of few tokens is uncertain, and what fits it closely fits no other text.
    `scales` fits the groups' scales.
    """

    name: ClassVar[str] = "gptq"
    damp: tuple[float, float] = (0.01, 0.1)
    threads: int = 2
    scales: RoundToNearest | RoundToNearestMse = field(default_factory=RoundToNearestMse)

    def quantize(self, w: F32, grid: Grid, statistics: Statistics) -> Quantized:
        """Return the codes and scales of `w`, f32 [out, in].

        Raises: NotFinite if `w` holds an infinity or a NaN.
        """
        fitted = with_narrow_scales(w, grid, self.scales.quantize(w, grid))
        order = np.argsort(-np.diagonal(statistics.gram), kind="stable")
        damp = min(max(len(order) / statistics.tokens, self.damp[0]), self.damp[1])
        factor = inverse_factor(statistics.gram[np.ix_(order, order)], damp)
        codes = np.empty_like(fitted.codes)

        def work(rows: slice) -> None:
            codes[rows] = _compensated(w[rows], _rows(fitted, rows), grid, factor, order)

        chunks = list(row_chunks(*w.shape, elements=CHUNK))
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, chunks))
        found = Quantized(codes, fitted.scale, fitted.offset)
        nearest = with_narrow_scales(w, grid, grid.quantize(w))
        return nearer_rows(w, grid, [found, fitted, nearest], statistics, self.threads)


def _compensated(w: F32, fitted: Quantized, grid: Grid, factor: F32, order: npt.NDArray[np.intp]) -> Codes:
    """Return the codes of rows; they are turned, so that a column is read in one piece."""
    left = np.ascontiguousarray(w.T[order])  # [in, rows], what is still to be rounded
    scale = np.ascontiguousarray(fitted.scale.T).astype(np.float32)
    divisor = np.where(scale == 0, np.float32(np.inf), scale)
    offset = np.zeros_like(scale) if fitted.offset is None else fitted.offset.T.astype(np.float32)
    low, high = (np.float32(code - grid.zero_point) for code in grid.code_range)
    levels = np.empty_like(left)
    errors = np.empty((BLOCK, left.shape[1]), np.float32)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        for column in range(start, end):
            group = order[column] // grid.group
            level = levels[column]
            np.subtract(left[column], offset[group], out=level)
            np.divide(level, divisor[group], out=level)
            np.clip(np.rint(level, out=level), low, high, out=level)
            error = errors[column - start]
            np.multiply(level, scale[group], out=error)
            error += offset[group]
            np.subtract(left[column], error, out=error)
            error /= factor[column, column]
            left[column + 1 : end] -= factor[column, column + 1 : end, None] * error
        left[end:] -= factor[start:end, end:].T @ errors[: end - start]
    levels += np.float32(grid.zero_point)
    codes = np.empty(w.shape, grid.code_dtype)
    codes[:, order] = levels.T.astype(grid.code_dtype)
    return codes


def inverse_factor(gram: F32, damp: float) -> F32:
    """Return the upper triangle R with ``R.T @ R = inverse(gram + damp * mean(diagonal))``.

    With the order of rows and columns reversed, H is L L.T, so H is U U.T for an upper U, and R is U's
    inverse: one factorization and one inverse of a triangle. Damping grows until H is positive definite.
    A channel that was never seen shares nothing with others, so that its weights are rounded to nearest.
    Raises: LinAlgError if the matrix is not finite.
    """
    width = len(gram)
    reverse = gram[::-1, ::-1].astype(np.float64)
    power = reverse.diagonal().copy()
    mean = float(power.mean())
    while True:
        at = np.arange(width)
        reverse[at, at] = power + damp * mean if mean > 0 else 1.0
        try:
            lower = np.asarray(np.linalg.cholesky(reverse), np.float64)
        except np.linalg.LinAlgError:
            if damp >= DAMP_MOST:
                raise
            damp = damp * DAMP_GROWTH
            continue
        del reverse
        return np.ascontiguousarray(_inverted(lower)[::-1, ::-1].astype(np.float32))


def _inverted(lower: F64) -> F64:
    """Return the inverse of a lower triangle, by halves."""
    width = len(lower)
    if width <= SMALL:
        inverse: F64 = np.tril(np.linalg.inv(lower))
        return inverse
    half = width // 2
    result = np.zeros_like(lower)
    result[:half, :half] = _inverted(lower[:half, :half])
    result[half:, half:] = _inverted(lower[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (lower[half:, :half] @ result[:half, :half])
    return result


def nearer_rows(
    w: F32,
    grid: Grid,
    candidates: list[Quantized],
    statistics: Statistics,
    threads: int,
) -> Quantized:
    """Return, row by row, the candidate whose output errs least; the first of equals."""
    codes = np.empty_like(candidates[0].codes)
    scale = np.empty_like(candidates[0].scale)
    offset = None if candidates[0].offset is None else np.empty_like(candidates[0].offset)

    def pick(rows: slice) -> None:
        parts = [_rows(one, rows) for one in candidates]
        errors = [statistics.error(grid.dequantize(part) - w[rows]) for part in parts]
        best = np.argmin(errors, axis=0)
        for index, part in enumerate(parts):
            mine = best == index
            codes[rows][mine], scale[rows][mine] = part.codes[mine], part.scale[mine]
            if offset is not None and part.offset is not None:
                offset[rows][mine] = part.offset[mine]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(pick, row_chunks(*w.shape, elements=CHUNK)))
    return Quantized(codes, scale, offset)


def _rows(quantized: Quantized, rows: slice) -> Quantized:
    offset = None if quantized.offset is None else quantized.offset[rows]
    return Quantized(quantized.codes[rows], quantized.scale[rows], offset)
