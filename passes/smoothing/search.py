"""Searches the scale of each channel by the error that quantization leaves in the output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tokc.passes.quantization.grid import F32, Grid
from tokc.passes.smoothing.sites import Site
from tokc.quality.calibration import Statistics

STEPS = 10  # how finely an exponent between 0 and 1 is searched
LEAST = np.float32(1e-4)


@dataclass(frozen=True)
class WeightsRounded:
    """Lin et al. 2023 (AWQ, arXiv:2306.00978): channels that carry much get finer weights.

    ``s = mean|x| ** a``, with the exponent whose rounded weights err least in the output.
    """

    grid: Grid

    def best(self, site: Site, weights: Sequence[F32], statistics: Statistics) -> F32 | None:
        """Return the scale [in] that the weights are multiplied by, None where none is better than one."""
        mean = np.maximum(site.together(statistics.mean_abs), LEAST)
        least, found = self._error(np.ones_like(mean), weights, statistics), None
        for step in range(1, STEPS + 1):
            scale = _centred(mean ** np.float32(step / STEPS))
            error = self._error(scale, weights, statistics)
            if error < least:
                least, found = error, scale
        return found

    def _error(self, scale: F32, weights: Sequence[F32], statistics: Statistics) -> float:
        total = 0.0
        for w in weights:
            rounded = self.grid.dequantize(self.grid.quantize(w * scale))
            rounded /= scale
            rounded -= w
            total += float(statistics.error(rounded).sum())
        return total


@dataclass(frozen=True)
class BothRounded:
    """Xiao et al. 2022 (SmoothQuant, arXiv:2211.10438): outliers move from activations to weights.

    ``s = max|x| ** a / max|w| ** (1 - a)``, with the migration strength a for which weights on the grid times
    int8 activations, one scale a token and `act_group` channels, err least in the output on sampled tokens.
    """

    grid: Grid
    act_group: int

    def best(self, site: Site, weights: Sequence[F32], statistics: Statistics) -> F32 | None:
        """Return the scale [in] that the weights are multiplied by, None where none is better than one."""
        x = statistics.sample
        outputs = [x @ w.T for w in weights]
        least, found = self._error(np.ones(x.shape[1], np.float32), x, weights, outputs), None
        for scale in self._candidates(site, weights, statistics):
            error = self._error(scale, x, weights, outputs)
            if error < least:
                least, found = error, scale
        return found

    def _candidates(self, site: Site, weights: Sequence[F32], statistics: Statistics) -> Iterator[F32]:
        largest = np.maximum(site.together(statistics.max_abs), LEAST)
        columns = np.max([np.abs(w).max(axis=0) for w in weights], axis=0).astype(np.float32)
        heaviest = np.maximum(site.together(columns), LEAST)
        for step in range(1, STEPS + 1):
            strength = np.float32(step / STEPS)
            # the paper's scale divides activations; the weights are multiplied by the same
            yield _centred(np.divide(largest**strength, heaviest ** np.float32(1 - strength)))

    def _error(self, scale: F32, x: F32, weights: Sequence[F32], outputs: Sequence[F32]) -> float:
        rounded, total = self._rounded(x / scale), 0.0
        for w, output in zip(weights, outputs, strict=True):
            difference = rounded @ self.grid.dequantize(self.grid.quantize(w * scale)).T - output
            total += float(np.sum(difference * difference, dtype=np.float64))
        return total

    def _rounded(self, x: F32) -> F32:
        """Return activations rounded to int8, a scale a token and group of channels."""
        if not self.act_group:
            return x
        groups = np.pad(x, ((0, 0), (0, -x.shape[1] % self.act_group)))
        groups = groups.reshape(len(x), -1, self.act_group)
        step = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)
        rounded: F32 = np.rint(np.divide(groups, step, out=np.zeros_like(groups), where=step != 0)) * step
        return rounded.reshape(len(x), -1)[:, : x.shape[1]]


def _centred(scale: F32) -> F32:
    """Return a scale whose smallest and largest are as far from one."""
    centred: F32 = scale / np.sqrt(scale.max() * scale.min())
    return centred
