"""The vocabulary of a byte-pair tokenizer as a table to look into, instead of a text to parse.

Parsing a `tokenizer.json` of 49,000 tokens takes 45 ms and 40 MB, and of 128,000 several times that; a text
needs a few of them. The table is a .safetensors file of these tensors:

    shell    the tokenizer.json with its added tokens as its only vocabulary
    longest  the characters of the longest token
    text     every token's text in UTF-8, by its id; `starts` has where each begins, and the end
    slots    a hash table: at crc32(text) and after it, with wrap-around, a token's id; -1 ends the search
    ranks    of every merge, by the token that it makes; `merged` has where each token's begin, and the end
    lefts    the left token of each of those merges
"""

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from tokc.errors import ArtifactRefused
from tokc.runtime.safetensors import Tensors, map_file

Merge = tuple[int, tuple[str, str]]


class Vocabulary:
    """Finds tokens by text and by id, and the merges that make a token."""

    def __init__(self, tensors: Tensors) -> None:
        """Look into `tensors`, which must stay as they are."""
        self.shell = bytes(tensors["shell"].data).decode()
        self.longest = int(tensors["longest"][0])
        self._text, self._starts, self._slots = (tensors[name].data for name in ("text", "starts", "slots"))
        self._merged, self._ranks, self._lefts = (tensors[name].data for name in ("merged", "ranks", "lefts"))
        self._last = len(self._slots) - 1

    @classmethod
    def open(cls, path: Path) -> "Vocabulary":
        """Map a file.

        Raises: ArtifactRefused if it is no such table.
        """
        try:
            return cls(map_file(path))
        except (OSError, KeyError, UnicodeDecodeError) as error:
            raise ArtifactRefused(f"'{path.name}' cannot be read: {error}", where=str(path)) from error

    def __len__(self) -> int:
        """Return the number of tokens, without those that were added beyond the model's own."""
        return len(self._starts) - 1

    def text(self, token: int) -> str | None:
        """Return the text of a token, None if there is none of this id."""
        if not 0 <= token < len(self):
            return None
        return str(self._text[self._starts[token] : self._starts[token + 1]], "utf-8")

    def find(self, text: str) -> int | None:
        """Return the token of this very text, None if there is none."""
        key = text.encode()
        slot = crc32(key) & self._last
        while (token := self._slots[slot]) >= 0:
            if self._text[self._starts[token] : self._starts[token + 1]] == key:
                return int(token)
            slot = slot + 1 & self._last
        return None

    def merges(self, token: int, text: str) -> Iterator[Merge]:
        """Yield the rank and the two parts of each merge that makes a token of this text."""
        for at in range(self._merged[token], self._merged[token + 1]):
            left = self.text(self._lefts[at]) or ""
            yield self._ranks[at], (left, text[len(left) :])
