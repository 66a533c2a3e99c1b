"""Text to tokens and back, one token at a time where an answer streams."""

import json
import re
from collections.abc import Sequence as Items
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from tokc.errors import ArtifactRefused

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 6
LONGEST_HELD = 16


class Tokenizer:
    """Wraps a Hugging Face `tokenizer.json`."""

    def __init__(self, text: str, *, where: str = "tokenizer.json") -> None:
        """Read the text of a `tokenizer.json`.

        Raises: ArtifactRefused if the tokenizers library cannot read it.
        """
        try:
            self._fast = FastTokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ArtifactRefused(f"the tokenizer cannot be read: {error}", where=where) from error
        self._fast.no_padding()
        self._fast.no_truncation()

    @classmethod
    def open(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`."""
        return cls(path.read_text(encoding="utf-8"), where=str(path))

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens, added ones included."""
        return int(self._fast.get_vocab_size())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of `text`; a chat template writes its special tokens itself."""
        return list(self._fast.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Items[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `tokens`."""
        return str(self._fast.decode(tokens, skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token: int) -> bytes:
        """Return what one token stands for; possibly a part of a character."""
        text = self._fast.id_to_token(token)
        if text is None:
            return b""
        if token in self._added:
            return str(text).encode()
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", text):
            return bytes([int(match[1], 16)])
        if self._byte_level:
            return bytes(_BYTE_OF[character] for character in text)
        return str(text).replace("\u2581", " ").encode()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._fast.get_added_tokens_decoder())

    @cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(json.loads(self._fast.to_str())["decoder"])


class TextStream:
    """Turns tokens into text as they come, so that the pieces add up to the text of all of them.

    A piece is held back while it ends inside a character. It decodes a short window of tokens, because the
    text of a token depends on the ones before it. A long run of broken characters (bytes that are no text) is
    given up.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Items[int]) -> None:
        """Start after `prompt`, whose last tokens decide about a leading space."""
        self._tokenizer = tokenizer
        self._window = list(prompt[-CONTEXT_TOKENS:])
        self._known = len(self._window)
        self._known_text = tokenizer.decode(self._window)

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if len(text) > len(self._known_text) and not text.endswith(REPLACEMENT):
            return self._advance(text)
        if len(self._window) - self._known > LONGEST_HELD:
            return self._advance(text).rstrip(REPLACEMENT)
        return ""

    def finish(self) -> str:
        """Return what is held back, without the halves of a character."""
        text = self._tokenizer.decode(self._window)
        return text[len(self._known_text) :].rstrip(REPLACEMENT)

    def _advance(self, text: str) -> str:
        piece = text[len(self._known_text) :]
        self._window = self._window[self._known :]
        self._known = len(self._window)
        self._known_text = self._tokenizer.decode(self._window)
        return piece


class StopFilter:
    """Ends a text before the first stop string, and holds back what may turn out to be the start of one."""

    def __init__(self, stops: Items[str]) -> None:
        """Watch for any of `stops`."""
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text and return the part that is certainly before any stop string."""
        if not self._stops:
            return text
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            safe, self._held = self._held[: min(found)], ""
            return safe
        cut = len(self._held) - max(_overlap(self._held, stop) for stop in self._stops)
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe

    def finish(self) -> str:
        """Return what is held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _byte_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Source: github.com/openai/gpt-2, src/encoder.py, `bytes_to_unicode`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_characters()
