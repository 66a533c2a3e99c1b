"""Encodes a text with those tokens of the vocabulary alone that can occur in it.

Byte-pair encoding starts from the characters of one word and joins neighbours. So a token that is no part of
the word cannot occur, and leaving it out changes nothing: the result is that of the whole vocabulary. The one
exception is a tokenizer that drops unknown characters, which makes others neighbours.
"""

import json
import threading
from typing import Protocol

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

from tokc.runtime.vocabulary import Vocabulary

# Beyond these, reading the whole vocabulary is the faster way.
MOST_LOOKUPS, MOST_TOKENS = 10_000, 2_000


def byte_tokens() -> set[str]:
    """Return the tokens that stand for the bytes of characters without a token."""
    return {f"<0x{byte:02X}>" for byte in range(256)}


class _Split(Protocol):
    """What the tokenizers library calls a PreTokenizedString."""

    def get_splits(self) -> list[tuple[str, object, object]]:
        """Return text, place and, for added tokens, tokens of each piece."""
        ...


class _Words:
    """A last pre-tokenizer that changes nothing and notes the words that the model will see."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def pre_tokenize(self, text: _Split) -> None:
        self.seen.update(word for word, _, tokens in text.get_splits() if tokens is None)


class NarrowTokenizer:
    """Encodes as the whole tokenizer does, as long as few different words come."""

    def __init__(self, vocabulary: Vocabulary, shell: FastTokenizer) -> None:
        """Take over `shell`, which the vocabulary's shell describes."""
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._words, self._known = _Words(), set[str]()
        steps = [] if shell.pre_tokenizer is None else [shell.pre_tokenizer]
        shell.pre_tokenizer = pre_tokenizers.Sequence(
            [*steps, pre_tokenizers.PreTokenizer.custom(self._words)]
        )
        self._fast = shell
        model = json.loads(vocabulary.shell)["model"]
        self._settings = {name: model.get(name) for name in ("unk_token", "fuse_unk")}
        self._settings |= {name: bool(model.get(name)) for name in ("byte_fallback", "ignore_merges")}
        self._tokens: dict[str, int] = {}
        self._merges: dict[int, tuple[str, str]] = {}
        unknown, fallback = (
            model.get("unk_token"),
            byte_tokens() if self._settings["byte_fallback"] else set(),
        )
        self._add(fallback | ({unknown} if unknown else set()))
        self._drops = unknown not in self._tokens and not (fallback and fallback <= self._tokens.keys())

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int] | None:
        """Return the tokens of `text`, None if the whole tokenizer would be faster."""
        with self._lock:
            self._words.seen.clear()
            encoding = self._fast.encode(text, add_special_tokens=add_special_tokens)
            if new := self._words.seen - self._known:
                if not self._learn(new):
                    return None
                encoding = self._fast.encode(text, add_special_tokens=add_special_tokens)
            return list(encoding.ids)

    def _learn(self, words: set[str]) -> bool:
        """Add the tokens that can occur in `words`; returns False if the whole tokenizer is to be asked."""
        longest = self._vocabulary.longest
        if sum(len(word) * min(len(word), longest) for word in words) > MOST_LOOKUPS:
            return False
        parts = {
            word[start:end]
            for word in words
            for start in range(len(word))
            for end in range(start + 1, min(start + longest, len(word)) + 1)
        }
        self._add(parts - self._tokens.keys())
        self._known |= words
        if self._drops and any(character not in self._tokens for word in words for character in word):
            return False
        return len(self._tokens) <= MOST_TOKENS

    def _add(self, texts: set[str]) -> None:
        vocabulary = self._vocabulary
        for text in texts:
            token = vocabulary.find(text)
            if token is not None:
                self._tokens[text] = token
                self._merges.update(vocabulary.merges(token, text))
        merges = [self._merges[rank] for rank in sorted(self._merges)]
        self._fast.model = models.BPE(vocab=self._tokens, merges=merges, **self._settings)
