"""A figure that was measured several times."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tokc.cost.intervals import Interval, student_95

RECONSTRUCTED = 3


@dataclass(frozen=True)
class Spread:
    """A figure over repetitions: median, least and greatest, mean and standard deviation.

    `deviation` is that of a sample (n - 1); it and `mean` are None where a bench kept neither.
    """

    median: float
    least: float
    greatest: float
    repetitions: int
    mean: float | None = None
    deviation: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize measured values."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(
            statistics.median(values),
            min(values),
            max(values),
            len(values),
            statistics.fmean(values),
            deviation,
        )

    def moments(self) -> tuple[float, float] | None:
        """Return mean and standard deviation; of three repetitions they follow from what is always kept."""
        if self.mean is not None and self.deviation is not None:
            return self.mean, self.deviation
        if self.repetitions != RECONSTRUCTED:
            return None
        values = (self.least, self.median, self.greatest)
        return statistics.fmean(values), statistics.stdev(values)

    def interval(self) -> Interval:
        """Return the 95 % confidence interval of the mean over repetitions, by Student's t on logarithms.

        Times and rates are positive, and so is their interval, however few and far apart the repetitions are.
        Where neither mean nor deviation is known it is from the least to the greatest value.
        """
        found = self.moments()
        if found is None:
            return Interval(self.least, self.greatest)
        mean, deviation = found
        if mean <= 0:
            return Interval(mean, mean)
        error = deviation / mean / math.sqrt(self.repetitions)  # of the logarithm: var log x = var x / x^2
        factor = math.exp(student_95(self.repetitions - 1) * error)
        return Interval(mean / factor, mean * factor)
