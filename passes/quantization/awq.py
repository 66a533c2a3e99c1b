"""Rounds to nearest within clipped groups: each group's ends are drawn in as far as its output errs less.

The second half of Lin et al. 2023 (AWQ, arXiv:2306.00978); the first, scales by channel, is the pass
`smooth-activations`. A group's output error is ``d @ G @ d`` with d what clipping and rounding make of its
weights and G the block of the Gram matrix that belongs to its columns.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokc.passes.quantization.gptq import nearer_rows
from tokc.passes.quantization.grid import F32, Grid, Quantized, row_chunks
from tokc.passes.quantization.narrow_scales import with_narrow_scales
from tokc.quality.calibration import Statistics

SHRINKS = np.linspace(0.95, 0.5, 10, dtype=np.float32)  # a group's largest magnitude after clipping
CHUNK = 1 << 19


@dataclass(frozen=True)
class ClippedRounding:
    """Quantize one weight, each group clipped to what errs least; no row errs more than by rtn."""

    name: ClassVar[str] = "awq"
    threads: int = 2

    def quantize(self, w: F32, grid: Grid, statistics: Statistics) -> Quantized:
        """Return the codes and scales of `w`, f32 [out, in].

        Raises: NotFinite if `w` holds an infinity or a NaN.
        """
        nearest = grid.quantize(w)
        blocks = _diagonal_blocks(statistics.gram, grid)
        codes, scale = nearest.codes.copy(), nearest.scale.copy()
        offset = None if nearest.offset is None else nearest.offset.copy()

        def work(rows: slice) -> None:
            best = _clipped(w[rows], grid, blocks)
            codes[rows], scale[rows] = best.codes, best.scale
            if offset is not None and best.offset is not None:
                offset[rows] = best.offset

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, row_chunks(*w.shape, elements=CHUNK)))
        found = Quantized(codes, scale, offset)
        candidates = [with_narrow_scales(w, grid, one) for one in (found, nearest)]
        return nearer_rows(w, grid, candidates, statistics, self.threads)


def _clipped(w: F32, grid: Grid, blocks: F32) -> Quantized:
    """Return rows quantized, each group at the clipping that errs least."""
    best = grid.quantize(w)
    least = _errors(w, grid, best, blocks)
    largest = _grouped(np.abs(w), grid).max(axis=-1)
    codes, scale, offset = best.codes, best.scale, best.offset
    for shrink in SHRINKS:
        limit = np.repeat(largest * shrink, grid.group, axis=1)[:, : w.shape[1]]
        one = grid.quantize(np.clip(w, -limit, limit))
        errors = _errors(w, grid, one, blocks)
        better = errors < least
        least = np.where(better, errors, least)
        codes = np.where(np.repeat(better, grid.group, axis=1)[:, : w.shape[1]], one.codes, codes)
        scale = np.where(better, one.scale, scale)
        if offset is not None and one.offset is not None:
            offset = np.where(better, one.offset, offset)
    return Quantized(codes, scale, offset)


def _errors(w: F32, grid: Grid, quantized: Quantized, blocks: F32) -> F32:
    """Return the output error of each group, [out, groups]."""
    difference = _grouped(grid.dequantize(quantized) - w, grid).transpose(1, 0, 2)
    weighed = (difference @ blocks) * difference
    errors: F32 = weighed.sum(axis=-1).T
    return errors


def _grouped(w: F32, grid: Grid) -> F32:
    """View [out, in] as [out, groups, group]; a short last group is filled with zeros."""
    missing = grid.groups(w.shape[1]) * grid.group - w.shape[1]
    whole = np.pad(w, ((0, 0), (0, missing))) if missing else w
    return whole.reshape(len(w), -1, grid.group)


def _diagonal_blocks(gram: F32, grid: Grid) -> F32:
    """Return the Gram matrix of each group's columns, [groups, group, group]."""
    groups = grid.groups(len(gram))
    blocks = np.zeros((groups, grid.group, grid.group), np.float32)
    for index in range(groups):
        part = gram[index * grid.group : (index + 1) * grid.group, index * grid.group :][:, : grid.group]
        blocks[index, : part.shape[0], : part.shape[1]] = part
    return blocks
