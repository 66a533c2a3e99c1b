"""An index of a text by all of its substrings, kept as the text grows."""


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
