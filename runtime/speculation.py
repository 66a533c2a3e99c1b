"""Drafts tokens that a step verifies beside the one it computes anyway.

A step computes the rows of a draft with the sequence's next token. Each row is sampled as if there were no
draft, with the seed and the index of its own token, and the draft holds as far as its tokens are those that
were sampled. So the answer is the same token by token, greedy or drawn, whatever is drafted; a draft changes
how many tokens a step makes, and nothing else.
"""

from collections.abc import Sequence as Items

from tokc.errors import RequestRefused
from tokc.runtime.sequence import Sequence

SPECULATIONS = ("ngram",)
MAX_DRAFT = 12
MIN_MATCH = 2
# What a further token adds to a step of one, as a share of it, before a step was timed: verifying 4 and 8
# tokens took 1.4 and 1.8 times a step of one on two cores.
PRIOR_SLOPE = 0.12
PRIOR_WEIGHT = 8.0
FORGET = 0.98
PRIOR_ACCEPTED, PRIOR_REFUSED = 1.0, 0.5


class SuffixAutomaton:
    """Finds the longest suffix of a text that occurred in it before, and where; a new token costs O(1).

    Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"; the match is
    followed as the text grows, as in Saxena 2023 (prompt lookup) and Hu et al. 2024, arXiv:2411.04975.
    """

    def __init__(self) -> None:
        """Start with no text."""
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._end = [-1], [0], [0]
        self._last = 0
        self._match, self.match_length = 0, 0
        self.size = 0

    @property
    def match_end(self) -> int:
        """Return the index behind an earlier occurrence of the longest repeated suffix."""
        return self._end[self._match]

    def extend(self, token: int) -> None:
        """Append a token: follow the match over it, then add it to the automaton."""
        self._follow(token)
        self._append(token)
        self.size += 1
        while self.match_length <= self._length[self._link[self._match]] and self._match:
            self._match = self._link[self._match]

    def _follow(self, token: int) -> None:
        state, length = self._match, self.match_length
        while state and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        if token in self._next[state]:
            state, length = self._next[state][token], length + 1
        self._match, self.match_length = state, length

    def _append(self, token: int) -> None:
        current = self._state(self._length[self._last] + 1, {}, self.size + 1)
        state = self._last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = current
            state = self._link[state]
        if state < 0:
            self._link[current] = 0
        else:
            other = self._next[state][token]
            if self._length[state] + 1 == self._length[other]:
                self._link[current] = other
            else:
                clone = self._state(self._length[state] + 1, dict(self._next[other]), self._end[other])
                self._link[clone] = self._link[other]
                while state >= 0 and self._next[state].get(token) == other:
                    self._next[state][token] = clone
                    state = self._link[state]
                self._link[other] = self._link[current] = clone
                if self._match == other and self.match_length <= self._length[clone]:
                    self._match = clone
        self._last = current

    def _state(self, length: int, transitions: dict[int, int], end: int) -> int:
        self._next.append(transitions)
        self._link.append(0)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1


class NgramDrafter:
    """Drafts what followed the longest earlier occurrence of the sequence's end, in its prompt or answer."""

    def __init__(self) -> None:
        """Start with no text, and with acceptance as likely as not."""
        self._index = SuffixAutomaton()
        self.accepted, self.refused = PRIOR_ACCEPTED, PRIOR_REFUSED

    @property
    def acceptance(self) -> float:
        """Return the share of drafted tokens that held lately."""
        return self.accepted / (self.accepted + self.refused)

    def draft(self, tokens: Items[int], most: int) -> list[int]:
        """Return at most `most` tokens that may follow `tokens`, which begin with those of the last call."""
        index = self._index
        for token in tokens[index.size :]:
            index.extend(token)
        if index.match_length < MIN_MATCH:
            return []
        found = list(tokens[index.match_end : index.match_end + most])
        period = len(tokens) - index.match_end
        while found and len(found) < most:  # the text repeats itself: go on as it did
            found.append(found[len(found) - period])
        return found

    def learn(self, drafted: int, held: int) -> None:
        """Note how many tokens of a draft held; without a draft the estimate moves back to where it began."""
        self.accepted = PRIOR_ACCEPTED + (self.accepted - PRIOR_ACCEPTED) * FORGET + held
        self.refused = PRIOR_REFUSED + (self.refused - PRIOR_REFUSED) * FORGET + (held < drafted)


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


class Speculation:
    """Chooses how much to draft for each sequence of a step, so that a step makes more tokens a second.

    A token is drafted while it adds more to the expected tokens, at the sequence's own rate of acceptance,
    than it adds to the expected time of the step.
    """

    def __init__(self) -> None:
        """Start without experience."""
        self._drafters: dict[Sequence, NgramDrafter] = {}
        self.time = StepTime()
        self.drafted = 0
        self.held = 0

    def drafts(self, sequences: Items[Sequence], tokens: int, room: int) -> dict[Sequence, list[int]]:
        """Return drafts for sequences that compute their last token in a step of `tokens`.

        Together they hold at most `room` tokens; a sequence without a draft is left out.
        """
        offers = {sequence: self._offer(sequence, room) for sequence in sequences}
        rates = {sequence: self._drafters[sequence].acceptance for sequence in sequences}
        counts = dict.fromkeys(sequences, 0)
        expected = float(len(sequences))
        base, slope = self.time.line()
        while room > 0:
            gains = {
                sequence: rates[sequence] ** (counts[sequence] + 1)
                for sequence, found in offers.items()
                if counts[sequence] < len(found)
            }
            best = max(gains, key=lambda sequence: gains[sequence], default=None)
            if best is None or gains[best] * (base + slope * tokens) <= slope * expected:
                break
            counts[best] += 1
            expected, tokens, room = expected + gains[best], tokens + 1, room - 1
        return {sequence: offers[sequence][:count] for sequence, count in counts.items() if count}

    def _offer(self, sequence: Sequence, room: int) -> list[int]:
        drafter = self._drafters.setdefault(sequence, NgramDrafter())
        most = min(MAX_DRAFT, sequence.last_output - sequence.output_length - 1, room)
        return drafter.draft(sequence.tokens, most) if most > 0 else []

    def learn(self, sequence: Sequence, drafted: int, held: int) -> None:
        """Note how a draft of a sequence went; a sequence that ended is forgotten."""
        self.drafted += drafted
        self.held += held
        if sequence.finish_reason is not None:
            self._drafters.pop(sequence, None)
        elif sequence in self._drafters:
            self._drafters[sequence].learn(drafted, held)

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that was taken out."""
        self._drafters.pop(sequence, None)


def named_speculation(name: str) -> Speculation:
    """Return a new speculation of the kind that `name` names, one of SPECULATIONS.

    Raises: RequestRefused listing the kinds.
    """
    if name not in SPECULATIONS:
        raise RequestRefused(
            f"unknown speculation '{name}'; choose from {', '.join(SPECULATIONS)}", where="speculate"
        )
    return Speculation()
