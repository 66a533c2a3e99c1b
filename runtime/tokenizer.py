"""Text to tokens and back, one token at a time where an answer streams."""

import re
from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import cached_property

from tokenizers import Tokenizer as FastTokenizer

from tokc.errors import ArtifactRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.narrow_tokenizer import NarrowTokenizer
from tokc.runtime.vocabulary import Vocabulary

TOKENIZER, VOCABULARY = "tokenizer.json", "tokenizer.table"
MOST_CHARACTERS = 4000

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 6
LONGEST_HELD = 16


class Tokenizer:
    """Wraps a Hugging Face `tokenizer.json`."""

    def __init__(
        self,
        text: str | Callable[[], str],
        *,
        vocabulary: Vocabulary | None = None,
        where: str = "tokenizer.json",
    ) -> None:
        """Read the text of a `tokenizer.json`; with its `vocabulary`, a function returns it if it is needed.

        Raises: ArtifactRefused if the tokenizers library cannot read it.
        """
        self._text, self._where = text, where
        self._vocabulary = vocabulary
        outline = self._parse(vocabulary.shell) if vocabulary is not None else self._whole
        self._added = outline.get_added_tokens_decoder()
        self._special = frozenset(token.content for token in self._added.values() if token.special)
        self._decoder = outline.decoder
        self._texts: dict[int, str | None] = {token: added.content for token, added in self._added.items()}
        self._narrow = None if vocabulary is None else NarrowTokenizer(vocabulary, outline)

    @classmethod
    def of(cls, artifact: Artifact) -> "Tokenizer":
        """Return the tokenizer of an artifact.

        Raises: ArtifactRefused if it has none or the tokenizers library cannot read it.
        """
        where = str(artifact.path / TOKENIZER)
        if TOKENIZER not in artifact.manifest.files:
            raise ArtifactRefused(f"the artifact has no {TOKENIZER}", where=str(artifact.path))
        vocabulary = None
        if VOCABULARY in artifact.manifest.files:
            vocabulary = Vocabulary.open(artifact.path / VOCABULARY)
        return cls(lambda: artifact.read_text(TOKENIZER) or "", vocabulary=vocabulary, where=where)

    @property
    def json_text(self) -> str:
        """Return the text of the `tokenizer.json`."""
        return self._text if isinstance(self._text, str) else self._text()

    @property
    def is_whole(self) -> bool:
        """Say whether the whole vocabulary has been read."""
        return self._narrow is None

    def prepare(self) -> None:
        """Read the whole vocabulary now, instead of when a long text or many short ones come."""
        _ = self._whole

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens, added ones included."""
        if self._vocabulary is None:
            return int(self._whole.get_vocab_size())
        size = len(self._vocabulary)
        return size + sum(self._vocabulary.find(token.content) is None for token in self._added.values())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of `text`; a chat template writes its special tokens itself."""
        narrow = self._narrow
        if narrow is not None and len(text) <= MOST_CHARACTERS:
            tokens = narrow.encode(text, add_special_tokens=add_special_tokens)
            if tokens is not None:
                return tokens
        return list(self._whole.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Items[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `tokens`."""
        texts = [text for token in tokens if (text := self._token_text(token)) is not None]
        if skip_special_tokens:
            texts = [text for text in texts if text not in self._special]
        return " ".join(texts) if self._decoder is None else str(self._decoder.decode(texts))

    def token_bytes(self, token: int) -> bytes:
        """Return what one token stands for; possibly a part of a character."""
        text = self._token_text(token)
        if text is None:
            return b""
        if token in self._added:
            return text.encode()
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", text):
            return bytes([int(match[1], 16)])
        if self._byte_level:
            return bytes(_BYTE_OF[character] for character in text)
        return text.replace("\u2581", " ").encode()

    def _token_text(self, token: int) -> str | None:
        if token not in self._texts:
            lookup = self._whole.id_to_token if self._vocabulary is None else self._vocabulary.text
            self._texts[token] = lookup(token)
        return self._texts[token]

    @cached_property
    def _whole(self) -> FastTokenizer:
        whole = self._parse(self.json_text)
        self._narrow = None
        return whole

    def _parse(self, text: str) -> FastTokenizer:
        try:
            fast = FastTokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ArtifactRefused(f"the tokenizer cannot be read: {error}", where=self._where) from error
        fast.no_padding()
        fast.no_truncation()
        return fast

    @cached_property
    def _byte_level(self) -> bool:
        return self._decoder is not None and b'"ByteLevel"' in self._decoder.__getstate__()


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
        cut = len(self._held) - max(overlap(self._held, stop) for stop in self._stops)
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe

    def finish(self) -> str:
        """Return what is held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that begins `mark` and is not the whole of it."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
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
