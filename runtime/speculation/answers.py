"""Answers that ended, searched by what the latest tokens of another text are.

Only requests of one cache salt search each other's, as with the prefix cache: who does not share the salt
neither reads nor times them.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence as Items

KEY_TOKENS = 3
LONGEST_MATCH = 16
MOST_TOKENS = 1 << 16

_Key = tuple[int, ...]
_Text = tuple[int, ...]


class Answers:
    """Keeps at most `most_tokens` tokens, the longest unused salt and then its oldest answer going first."""

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        """Start with none."""
        self.tokens, self._most = 0, most_tokens
        self._shelves: OrderedDict[bytes, _Shelf] = OrderedDict()

    def add(self, salt: bytes, text: Items[int]) -> None:
        """Keep an answer, with a few tokens before it so that its beginning is found."""
        if not KEY_TOKENS < len(text) <= self._most:
            return
        shelf = self._shelves.setdefault(salt, _Shelf())
        self._shelves.move_to_end(salt)
        shelf.add(tuple(text))
        self.tokens += len(text)
        while self.tokens > self._most:
            oldest, shelf = next(iter(self._shelves.items()))
            self.tokens -= shelf.drop()
            if not shelf.texts:
                del self._shelves[oldest]

    def find(self, salt: bytes, tokens: Items[int], most: int) -> tuple[list[int], int]:
        """Return what followed the latest occurrence of the end of `tokens`, and how many of these agree."""
        shelf = self._shelves.get(salt)
        found = None if shelf is None else shelf.index.get(tuple(tokens[-KEY_TOKENS:]))
        if found is None:
            return [], 0
        self._shelves.move_to_end(salt)
        text, end = found
        match = KEY_TOKENS
        longest = min(LONGEST_MATCH, end, len(tokens))
        while match < longest and text[end - 1 - match] == tokens[-1 - match]:
            match += 1
        return list(text[end : end + most]), match


class _Shelf:
    """The answers of one salt, and where each run of KEY_TOKENS tokens occurred last."""

    def __init__(self) -> None:
        self.texts: deque[_Text] = deque()
        self.index: dict[_Key, tuple[_Text, int]] = {}

    def add(self, text: _Text) -> None:
        self.texts.append(text)
        for end in range(KEY_TOKENS, len(text)):
            self.index[text[end - KEY_TOKENS : end]] = (text, end)

    def drop(self) -> int:
        """Let go of the oldest answer; returns its number of tokens."""
        text = self.texts.popleft()
        for end in range(KEY_TOKENS, len(text)):
            key = text[end - KEY_TOKENS : end]
            if key in self.index and self.index[key][0] is text:
                del self.index[key]
        return len(text)
