"""A figure that was measured several times."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A figure over repetitions: median, least and greatest."""

    median: float
    least: float
    greatest: float
    repetitions: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize measured values."""
        return cls(statistics.median(values), min(values), max(values), len(values))
