"""How long a step takes, by its number of tokens."""

# What a further token adds to a step of one, as a share of it, before a step was timed: verifying 4 and 8
# tokens took 1.4 and 1.8 times a step of one on two cores.
PRIOR_SLOPE = 0.12
PRIOR_WEIGHT = 8.0
FORGET = 0.98


class StepTime:
    """Predicts the seconds of a step by its number of tokens, a line fitted to the steps that were timed."""

    def __init__(self) -> None:
        """Know nothing but how a step grows."""
        self._count = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """Note one step."""
        self._count, self._x, self._y, self._xx, self._xy = (
            total * FORGET + new
            for total, new in (
                (self._count, 1.0),
                (self._x, tokens),
                (self._y, seconds),
                (self._xx, tokens * tokens),
                (self._xy, tokens * seconds),
            )
        )

    def line(self) -> tuple[float, float]:
        """Return (seconds of a step of no tokens, seconds a token); only their ratio matters at first."""
        if not self._count:
            return 1.0 - PRIOR_SLOPE, PRIOR_SLOPE
        mean_x, mean_y = self._x / self._count, self._y / self._count
        # The prior is so many steps on a line through the mean that grows by PRIOR_SLOPE a token.
        guess = mean_y * PRIOR_SLOPE / (1.0 - PRIOR_SLOPE + PRIOR_SLOPE * mean_x)
        spread = self._xx - self._x * mean_x
        product = self._xy - self._x * mean_y
        slope = (product + PRIOR_WEIGHT * guess) / (spread + PRIOR_WEIGHT)
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y - slope * mean_x, slope
