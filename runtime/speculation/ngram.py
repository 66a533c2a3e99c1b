"""Drafts what the text itself said before: prompt lookup, without weights."""

from collections.abc import Sequence as Items

from tokc.runtime.speculation.suffix_index import SuffixAutomaton

MIN_MATCH = 2
FORGET = 0.98
PRIOR_ACCEPTED, PRIOR_REFUSED = 1.0, 0.5


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
