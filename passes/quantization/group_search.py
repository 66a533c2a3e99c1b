"""Runs a method that looks at each group on its own over a whole weight, whatever its width."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tokc.passes.quantization.grid import F16, F32, Grid, Quantized, row_chunks

Search = Callable[[F32, Grid], Quantized]
F64 = npt.NDArray[np.float64]

CHUNK = 1 << 16  # elements whose temporaries stay in a core's cache


def search_groups(search: Search, w: F32, grid: Grid, threads: int) -> Quantized:
    """Quantize `w` [out, in] by `search`, which is given rows of whole groups only.

    A row's short last group is searched as a group of its own width: nothing is padded, so that no error
    counts twice. Every group is computed alike whatever chunk or thread it falls to.
    """
    whole = w.shape[1] // grid.group * grid.group

    def quantize(rows: slice) -> Quantized:
        parts = []
        if whole:
            parts.append(search(np.ascontiguousarray(w[rows, :whole]), grid))
        if whole < w.shape[1]:
            tail = replace(grid, group=w.shape[1] - whole)
            parts.append(search(np.ascontiguousarray(w[rows, whole:]), tail))
        return _joined(parts, axis=1)

    with ThreadPoolExecutor(threads) as pool:
        return _joined(list(pool.map(quantize, row_chunks(*w.shape, elements=CHUNK))), axis=0)


def group_errors(w: F32, quantized: Quantized, grid: Grid, norm: float = 2.0) -> F64:
    """Return the sum of ``|decoded - w| ** norm`` of each group, [out, groups], in f64."""
    difference = np.abs(grid.dequantize(quantized) - w.astype(np.float64)) ** norm
    starts = np.arange(0, w.shape[1], grid.group)
    errors: F64 = np.add.reduceat(difference, starts, axis=1)
    return errors


def nearer(w: F32, grid: Grid, found: Quantized, other: Quantized, norm: float = 2.0) -> Quantized:
    """Return `found` in every group where its error is less than that of `other`, else `other`."""
    better = group_errors(w, found, grid, norm) < group_errors(w, other, grid, norm)
    codes = np.where(np.repeat(better, grid.group, axis=1)[:, : w.shape[1]], found.codes, other.codes)
    offset: F16 | None = None
    if found.offset is not None and other.offset is not None:
        offset = np.where(better, found.offset, other.offset)
    return Quantized(codes, np.where(better, found.scale, other.scale), offset)


def divided(values: F32, by: F32) -> F32:
    """Divide, and give zero where there is nothing to divide by."""
    return np.divide(values, by, out=np.zeros_like(values), where=by != 0)


def _joined(parts: list[Quantized], axis: int) -> Quantized:
    offsets = [part.offset for part in parts if part.offset is not None]
    return Quantized(
        np.concatenate([part.codes for part in parts], axis=axis),
        np.concatenate([part.scale for part in parts], axis=axis),
        np.concatenate(offsets, axis=axis) if offsets else None,
    )
