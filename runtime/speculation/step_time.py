"""How long a step takes, by its number of tokens: measured, and between what was measured a line."""

from bisect import bisect_left
from itertools import chain

# What a further token adds to a step of one, as a share of it, before a step was timed: verifying 4 and 8
# tokens took 1.4 and 1.8 times a step of one on two cores.
PRIOR_SLOPE = 0.12
PRIOR_WEIGHT = 4.0
LINE_WEIGHT = 1.0
MOST_WEIGHT = 10.0
SCALE_GAIN, ASIDE_GAIN = 0.25, 0.02
# What takes so many times longer than expected counts as no longer: until a figure is known, and later.
NEW_OUTLIER, OUTLIER, KNOWN = 3.0, 1.2, 3.0
# The line is fitted to each of the first steps of so many tokens, and to every so manieth step later.
FITTED_STEPS = 8
# Each number of tokens has a figure of its own up to 16, then eight a doubling.
KNOTS: tuple[int, ...] = (
    *range(1, 17),
    *chain.from_iterable(range(9 << k, (17 << k), 1 << k) for k in range(1, 10)),
)


class StepTime:
    """Predicts the seconds of a step as its `scale`, which follows the machine, times a shape over tokens.

    The scale is about the seconds of a step of one token; it moves with every step, so that a machine that
    became busy, or a context that grew, changes all figures at once. The shape is what a step takes relative
    to it, an average for each number of tokens, drawn to a line where little was measured. Steps `aside`,
    those with drafts, hardly move the scale: else what they take longer than others became the scale's.
    """

    def __init__(self, *, share: float = 1.0, of: "StepTime | None" = None) -> None:
        """Know nothing; until the first step it is taken to last `share` of what steps of `of` do."""
        self._share, self._of = share, of
        self._scale: float | None = None
        self._weights = [0.0] * len(KNOTS)
        self._ratios = [0.0] * len(KNOTS)
        self._base, self._slope = 1.0 - PRIOR_SLOPE, PRIOR_SLOPE
        self._steps = 0
        self._shapes: dict[float, float] = {}  # by tokens, until the next step

    @property
    def _unit(self) -> float:
        if self._scale is not None:
            return self._scale
        return self._share * (1.0 if self._of is None else self._of.seconds(1))

    def seconds(self, tokens: float) -> float:
        """Return the seconds of a step of so many tokens, 0 of none; only ratios matter before the first."""
        if tokens <= 0:
            return 0.0
        shape = self._shapes.get(tokens)
        if shape is None:
            shape = self._shapes[tokens] = self._shape(tokens)
        return self._unit * shape

    def observations(self, tokens: int) -> float:
        """Return how many steps of about so many tokens were timed."""
        return self._weights[_knot(tokens)]

    def learn(self, tokens: int, seconds: float, *, aside: bool = False) -> None:
        """Note one step. What took several times longer than expected says little: something else ran."""
        if self._scale is None:
            self._scale = seconds / self._line(tokens)
        knot = _knot(tokens)
        most = OUTLIER if self._weights[knot] >= KNOWN else NEW_OUTLIER
        seconds = min(seconds, most * self.seconds(tokens))
        ratio = seconds / self._scale
        self._weights[knot] = weight = min(self._weights[knot] + 1, MOST_WEIGHT)
        self._ratios[knot] += (ratio - self._ratios[knot]) / weight
        self._shapes.clear()
        gain = ASIDE_GAIN if aside else SCALE_GAIN
        self._scale += gain * (seconds / self.seconds(tokens) - 1) * self._scale
        self._steps += 1
        if weight <= FITTED_STEPS or self._steps % FITTED_STEPS == 0:
            self._fit()
            self._shapes.clear()

    def _shape(self, tokens: float) -> float:
        """Return what a step of so many tokens takes relative to the scale."""
        above = _knot(tokens)
        if KNOTS[above] == tokens or above == 0 or tokens > KNOTS[-1]:
            return self._at(above, tokens)
        low, high = KNOTS[above - 1], KNOTS[above]
        share = (tokens - low) / (high - low)
        return (1 - share) * self._at(above - 1, low) + share * self._at(above, high)

    def _at(self, knot: int, tokens: float) -> float:
        weight = self._weights[knot]
        return (weight * self._ratios[knot] + LINE_WEIGHT * self._line(tokens)) / (weight + LINE_WEIGHT)

    def _line(self, tokens: float) -> float:
        return float(self._base + self._slope * tokens)

    def _fit(self) -> None:
        """Fit the line to the shape, its slope drawn to what it was taken to be at first."""
        points = [one for one in zip(KNOTS, self._weights, self._ratios, strict=True) if one[1]]
        total: float = sum(weight for _, weight, _ in points)
        mean = sum(weight * tokens for tokens, weight, _ in points) / total
        level = sum(weight * ratio for _, weight, ratio in points) / total
        guess = level * PRIOR_SLOPE / (1.0 - PRIOR_SLOPE + PRIOR_SLOPE * mean)
        square = sum(weight * (tokens - mean) ** 2 for tokens, weight, _ in points)
        product = sum(weight * (tokens - mean) * (ratio - level) for tokens, weight, ratio in points)
        slope = (product + PRIOR_WEIGHT * guess) / (square + PRIOR_WEIGHT)
        self._slope = min(max(slope, 0.0), level / mean)
        self._base = level - self._slope * mean


def _knot(tokens: float) -> int:
    """Return the place of the least knot that is no smaller."""
    return min(bisect_left(KNOTS, tokens), len(KNOTS) - 1)
