"""Round to nearest on the grid that fits best: scales are searched for the least squared error.

Spanning a group's extremes wastes levels on one weight. Here the ends of each group are drawn in by a list of
factors (the clipping that Shao et al. 2024, OmniQuant, arXiv:2308.13137 learn and llama.cpp's quantizers
search), the codes at each factor get the scale, and on an asymmetric grid the offset, of least squares, and
the best pair is refined by taking nearest codes and least squares in turns, as Lloyd's algorithm does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokc.passes.quantization.grid import F16, F32, Grid, Quantized, half
from tokc.passes.quantization.group_search import divided, nearer, search_groups

SHRINKS = np.linspace(1.1, 0.4, 15, dtype=np.float32)  # the searched end of a group over its extreme
INSETS = np.array([-0.04, 0.0, 0.04, 0.08, 0.14, 0.22], np.float32)  # what is cut off either end, of the span
REFINEMENTS = 3


@dataclass(frozen=True)
class RoundToNearestMse:
    """Quantize each group on its own to the grid of least squared error; never a worse one than rtn's."""

    name: ClassVar[str] = "rtn-mse"
    threads: int = 2

    def quantize(self, w: F32, grid: Grid) -> Quantized:
        """Return the codes and scales of `w`, f32 [out, in].

        Raises: NotFinite if `w` holds an infinity or a NaN.
        """
        return search_groups(_search, w, grid, self.threads)


def _search(w: F32, grid: Grid) -> Quantized:
    """Quantize rows of whole groups."""
    nearest = grid.quantize(w)
    rows = w.shape[0]
    turned = np.ascontiguousarray(w.reshape(-1, grid.group).T)  # [group, rows * groups]: sums are over rows
    with np.errstate(over="ignore"):  # what is too large for f32 is clipped to fp16 anyway
        scale, offset = _centred(turned, grid) if grid.symmetric else _shifted(turned, grid)
    scale = scale.reshape(rows, -1)
    offset = None if offset is None else offset.reshape(rows, -1)
    return nearer(w, grid, Quantized(grid.encode(w, scale, offset), scale, offset), nearest)


def _levels(grid: Grid) -> tuple[np.float32, np.float32]:
    """Return the lowest and the highest level: codes less the zero point."""
    low, high = grid.code_range
    return np.float32(low - grid.zero_point), np.float32(high - grid.zero_point)


def _centred(w: F32, grid: Grid) -> tuple[F16, None]:
    """Return the scales of ``w = level * scale``; w [group, groups]."""
    low, high = _levels(grid)
    extreme = np.where(-w.min(axis=0) > w.max(axis=0), w.min(axis=0), w.max(axis=0))
    unit = divided(w, extreme)
    ends = (low, high) if -low != high else (high,)
    best, scale = np.zeros_like(extreme), np.zeros_like(extreme)
    q, product = np.empty_like(w), np.empty_like(w)
    for inverse in (end / shrink for end in ends for shrink in SHRINKS):
        np.multiply(unit, inverse, out=q)
        np.clip(np.rint(q, out=q), low, high, out=q)
        along = np.multiply(q, unit, out=product).sum(axis=0)
        power = np.multiply(q, q, out=product).sum(axis=0)
        fitted = divided(along, power)
        explained = along * fitted  # what the codes take off the squared error
        scale = np.where(explained > best, fitted, scale)
        best = np.maximum(best, explained)
    for _ in range(REFINEMENTS):
        q = np.clip(np.rint(divided(unit, scale)), low, high)
        scale = divided((q * unit).sum(axis=0), (q * q).sum(axis=0))
    return half(scale * extreme), None


def _shifted(w: F32, grid: Grid) -> tuple[F16, F16]:
    """Return the scales and offsets of ``w = code * scale + offset``; w [group, groups]."""
    top = _levels(grid)[1]
    low, span = w.min(axis=0), w.max(axis=0) / 2 - w.min(axis=0) / 2  # half of it: the whole may overflow
    unit = divided(w / 2 - low / 2, span)
    mean = unit.mean(axis=0)
    best, scale, offset = np.zeros_like(span), np.zeros_like(span), mean.copy()
    for first, last in _cuts():
        q = np.clip(np.rint((unit - first) * (top / (last - first))), 0, top)
        fitted, start, explained = _line(q, unit, mean)
        better = explained > best
        scale, offset = np.where(better, fitted, scale), np.where(better, start, offset)
        best = np.maximum(best, explained)
    for _ in range(REFINEMENTS):
        q = np.clip(np.rint(divided(unit - offset, scale)), 0, top)
        scale, offset, _ = _line(q, unit, mean)
    return half(scale * span * 2), half(offset * span * 2 + low)


def _cuts() -> Iterator[tuple[np.float32, np.float32]]:
    for left in INSETS:
        for right in INSETS:
            yield left, np.float32(1) - right


def _line(q: F32, unit: F32, mean: F32) -> tuple[F32, F32, F32]:
    """Return slope and start of the least-squares line through (q, unit), and what it takes off the error."""
    centre = q.mean(axis=0)
    q = q - centre
    along = (q * unit).sum(axis=0)
    slope = divided(along, (q * q).sum(axis=0))
    return slope, mean - slope * centre, along * slope
