"""Confidence intervals of few repetitions: of a mean, of a ratio of means, of paired ratios; all of 95 %."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
NORMAL_95 = 1.959964
# Quantile 0.975 of Student's t by degrees of freedom, from 1 on: any table of it.
_STUDENT_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, in the unit of the figure."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether the value lies within."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Ratio:
    """How many times as large one figure is as another, with its 95 % interval."""

    value: float
    low: float
    high: float
    repetitions: int

    @property
    def conclusive(self) -> bool:
        """Return whether noise alone does not explain that the figures differ."""
        return not Interval(self.low, self.high).holds(1.0)


def student_95(freedom: float) -> float:
    """Return the quantile 0.975 of Student's t; fractions of a degree are rounded down, the cautious way.

    Source: beyond the table the first terms of the Cornish-Fisher expansion (Abramowitz and Stegun, 26.7.5).
    """
    assert freedom >= 1, "one repetition has no interval"
    if freedom < len(_STUDENT_95) + 1:
        return _STUDENT_95[math.floor(freedom) - 1]
    z = NORMAL_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Return the ratio second / first of pairs that were measured next to each other.

    What both of a pair suffer alike cancels; the interval is that of the mean logarithm of the ratios.
    """
    logs = [math.log(second / first) for first, second in pairs]
    mean = statistics.fmean(logs)
    half = student_95(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def ratio_of_means(
    first: tuple[float, float], second: tuple[float, float], repetitions: tuple[int, int]
) -> Ratio:
    """Return second / first, each a mean and a sample's standard deviation, measured apart from each other.

    Source: Welch's degrees of freedom, on logarithms (the delta method: var log x = var x / x^2).
    """
    value = second[0] / first[0]
    variances = [
        (deviation / mean) ** 2 / count
        for (mean, deviation), count in zip((first, second), repetitions, strict=True)
    ]
    total = sum(variances)
    if total == 0:
        return Ratio(value, value, value, min(repetitions))
    freedom = total**2 / sum(
        variance**2 / (count - 1) for variance, count in zip(variances, repetitions, strict=True)
    )
    half = student_95(max(1.0, freedom)) * math.sqrt(total)
    return Ratio(value, value * math.exp(-half), value * math.exp(half), min(repetitions))
