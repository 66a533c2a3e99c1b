"""How likely a drafted token is to hold: measured, by its place in the draft and by what its drafter says."""

from collections.abc import Sequence as Items

BUCKETS = 8
PLACES = 4
PRIOR_WEIGHT = 4.0
FORGET = 0.99
GAIN = 0.02
HIGHEST = 0.99


class Acceptance:
    """Turns a drafter's confidence, 0 to 1, into the share of such tokens that held after those before held.

    A table of rates by place in the draft (the later ones together) and by eighths of confidence; each cell
    starts from a prior and forgets slowly. `expected` is the mean over what was drafted at a place, held or
    not verified at all, for a draft that is not made yet.
    """

    def __init__(self, priors: Items[float]) -> None:
        """Start from a prior for each eighth of confidence."""
        assert len(priors) == BUCKETS, "one prior for each eighth of confidence"
        self._priors = tuple(priors)
        self._tried = [[0.0] * BUCKETS for _ in range(PLACES)]
        self._held = [[0.0] * BUCKETS for _ in range(PLACES)]
        mean = sum(priors) / BUCKETS
        self._expected, self._seen = [mean] * PLACES, [0] * PLACES

    def chance(self, place: int, confidence: float) -> float:
        """Return how likely a token at `place` (from 0) holds if those before it do."""
        row, cell = min(place, PLACES - 1), _bucket(confidence)
        held = self._held[row][cell] + PRIOR_WEIGHT * self._priors[cell]
        return held / (self._tried[row][cell] + PRIOR_WEIGHT)

    def expected(self, place: int) -> float:
        """Return how likely a token that is drafted at `place` will hold if those before it do."""
        return self._expected[min(place, PLACES - 1)]

    def drafted(self, place: int, chance: float) -> None:
        """Note the chance of a token that was drafted."""
        row = min(place, PLACES - 1)
        self._seen[row] += 1
        self._expected[row] += (chance - self._expected[row]) * max(GAIN, 1 / (1 + self._seen[row]))

    def learn(self, place: int, confidence: float, *, held: bool) -> None:
        """Note a verified token whose forerunners held."""
        row, cell = min(place, PLACES - 1), _bucket(confidence)
        self._tried[row][cell] = self._tried[row][cell] * FORGET + 1
        self._held[row][cell] = self._held[row][cell] * FORGET + held


class Trust:
    """How much more or less often than expected the drafts of one sequence held lately, as a factor."""

    WEIGHT = 2.0
    HOPE = 0.5  # a sequence that is little known is tried rather than not
    FORGET = 0.95
    RETURN = 0.98

    def __init__(self, step: int = 0) -> None:
        """Start a little better than expected, at a step."""
        self._held = self._expected = 0.0
        self._step = step

    @property
    def factor(self) -> float:
        """Return the tokens that held over those that were expected to, and more if these are few."""
        return (self._held + self.WEIGHT + self.HOPE) / (self._expected + self.WEIGHT)

    def learn(self, chance: float, *, held: bool) -> None:
        """Note a verified token that was to hold with `chance`."""
        self._held = self._held * self.FORGET + held
        self._expected = self._expected * self.FORGET + chance

    def relax(self, step: int) -> None:
        """Forget a little for each step that went by."""
        kept = self.RETURN ** (step - self._step)
        self._step = step
        self._held *= kept
        self._expected *= kept


def _bucket(confidence: float) -> int:
    return min(int(confidence * BUCKETS), BUCKETS - 1)
