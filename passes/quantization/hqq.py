"""Half-quadratic quantization: the grid's zero moves so that few weights err much and most hardly.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", minimize the lp norm,
p < 1, of the error, which forgives outliers, by splitting: an auxiliary error E takes what the grid need not
explain, ``E = shrink(W - decoded)``, then the zero point is the mean that explains ``W - E``, in turns, while
the penalty beta grows by kappa. Their zero point is an f16 number, our offset is ``-zero * scale``.

Two things differ here. Errors are measured in steps of the grid, not in the weight's own unit, so that
beta means the same for a layer of large weights and one of small. And every group keeps its own best turn by
the lp norm, the first of which is rtn's, and stops when `PATIENCE` more were no better, where theirs all stop
together.

A symmetric grid has no zero point to move. There the same splitting moves the scale, to
``sum(q * (W - E)) / sum(q * q)``: robust where rtn-mse is least squares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokc.passes.quantization.grid import F32, Grid, Quantized, half
from tokc.passes.quantization.group_search import divided, nearer, search_groups

PATIENCE = 4  # turns
Errors = Callable[[F32, F32], F32]  # what is left of x [group, groups] at a parameter of each group
Moved = Callable[[F32, F32, F32, F32], F32]  # the next one by x, the last one, errors and their slack


@dataclass(frozen=True)
class HalfQuadratic:
    """Move each group's offset, or scale, to the least lp norm of its error; never a greater one than rtn's.

    `beta` and `kappa` are the penalty of the first turn, in steps of the grid, and its growth a turn.
    """

    name: ClassVar[str] = "hqq"
    threads: int = 2
    norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    turns: int = 20

    def quantize(self, w: F32, grid: Grid) -> Quantized:
        """Return the codes and scales of `w`, f32 [out, in].

        Raises: NotFinite if `w` holds an infinity or a NaN.
        """
        return search_groups(self._search, w, grid, self.threads)

    def _search(self, w: F32, grid: Grid) -> Quantized:
        """Quantize rows of whole groups."""
        nearest = grid.quantize(w)
        scale = nearest.scale.astype(np.float32).reshape(-1)
        turned = w.reshape(-1, grid.group).T  # [group, rows * groups]: sums are over rows
        shape = nearest.scale.shape
        with np.errstate(
            over="ignore"
        ):  # what is too large for f32 is too large for fp16, and is clipped to it
            if nearest.offset is None:
                stretch = self._stretch(divided(turned, scale), grid)
                found, offset = half(scale * stretch).reshape(shape), None
            else:
                start = divided(nearest.offset.astype(np.float32).reshape(-1), scale)
                shift = self._shift(divided(turned, scale), start, grid)
                found, offset = nearest.scale, half(scale * shift).reshape(shape)
        moved = Quantized(grid.encode(w, found, offset), found, offset)
        return nearer(w, grid, moved, nearest, self.norm)

    def _shift(self, x: F32, shift: F32, grid: Grid) -> F32:
        """Return the offset in steps of ``x = code + offset``; x [group, groups], in steps."""

        def errors(x: F32, shift: F32) -> F32:
            error: F32 = x - np.clip(np.rint(x - shift), *grid.code_range) - shift
            return error

        def moved(x: F32, shift: F32, error: F32, slack: F32) -> F32:
            del x
            mean: F32 = (shift + error - slack).mean(axis=0)
            return mean

        return self._least(x, shift, errors, moved)

    def _stretch(self, x: F32, grid: Grid) -> F32:
        """Return the scale, as a multiple of rtn's, of ``x = level * scale``; x [group, groups], in steps."""
        low, high = (code - grid.zero_point for code in grid.code_range)

        def levels(x: F32, stretch: F32) -> F32:
            return np.clip(np.rint(divided(x, stretch)), low, high)

        def errors(x: F32, stretch: F32) -> F32:
            error: F32 = x - levels(x, stretch) * stretch
            return error

        def moved(x: F32, stretch: F32, error: F32, slack: F32) -> F32:
            del error
            q = levels(x, stretch)
            return divided((q * (x - slack)).sum(axis=0), (q * q).sum(axis=0))

        return self._least(x, np.ones_like(x[0]), errors, moved)

    def _least(self, x: F32, start: F32, errors: Errors, moved: Moved) -> F32:
        """Return each group's parameter of least error, moved until it no longer improves."""
        best, least = start.copy(), np.full_like(start, np.inf)
        active, parameter = np.arange(len(start)), start
        last = np.zeros(len(start), np.int64)  # turn that was best
        for turn in range(self.turns):
            error = errors(x, parameter)
            size = np.abs(error)
            powers = size ** np.float32(self.norm)
            total = powers.sum(axis=0)
            better = total < least[active]
            best[active[better]], least[active[better]] = parameter[better], total[better]
            last[active[better]] = turn
            kept = turn - last[active] < PATIENCE
            active = active[kept]
            if not active.size:
                break
            x, error, size, powers = (one[:, kept] for one in (x, error, size, powers))
            slack = np.maximum(size - divided(powers, size) / np.float32(self.beta * self.kappa**turn), 0)
            parameter = moved(x, parameter[kept], error, np.copysign(slack, error))
        return best
