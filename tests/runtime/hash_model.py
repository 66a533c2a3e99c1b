"""A tiny deterministic language model over a paged cache, and a byte tokenizer for it.

Each token's logits depend on every token before it, read back through the pages of the block table. So a
page that is shared, freed or written wrongly changes the tokens; a page that was never written fails at
once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from tokc.runtime.executors.base import Batch, Float32s
from tokc.runtime.tokenizer import Tokenizer

EOS = 256
SPECIALS = ("<|im_end|>", "<|im_start|>", "<s>")
VOCAB = 256 + len(SPECIALS)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MULTIPLIER = 0x9E37_79B9_7F4A_7C15
_MASK = (1 << 64) - 1


def history_logits(tokens: list[int], vocab: int = VOCAB) -> Float32s:
    """Return the logits after `tokens`, without any cache: the reference."""
    state = 0
    for position, token in enumerate(tokens):
        state = mix(state, entry_of(token, position))
    return logits_of(state, vocab)


class HashModel:
    """An executor whose cache holds one number a token."""

    likeliest = None  # the host finds it
    blocks: Any = None
    trees: Any = None

    def __init__(
        self,
        *,
        vocab_size: int = VOCAB,
        page_size: int = 4,
        num_pages: int = 64,
        max_tokens: int = 16,
        max_seqs: int = 8,
        context_length: int = 64,
        memory: int | None = None,
    ) -> None:
        """Make a cache of numbers that were never written.

        With `memory` a token depends on so many tokens before it and not on where they are, so that the
        text soon repeats itself.
        """
        self.memory = memory
        self.vocab_size, self.page_size, self.num_pages = vocab_size, page_size, num_pages
        self.max_tokens, self.max_seqs, self.context_length = max_tokens, max_seqs, context_length
        self.cache: npt.NDArray[np.object_] = np.full((num_pages, page_size), None, object)
        self.steps: list[Batch] = []
        self.closed = False

    def step(self, batch: Batch) -> Float32s:
        """Write every token of the step, then read each wanted row's whole history."""
        assert 1 <= len(batch.input_ids) <= self.max_tokens, "a step must hold 1..max_tokens tokens"
        assert len(batch.block_tables) <= self.max_seqs, "too many sequences"
        places = set(zip(batch.sequences.tolist(), batch.positions.tolist(), strict=True))
        assert len(places) == len(batch.positions), "a token is computed twice in a step"
        self.steps.append(batch)
        for token, position, row in zip(
            batch.input_ids.tolist(), batch.positions.tolist(), batch.sequences.tolist(), strict=True
        ):
            page = batch.block_tables[row, position // self.page_size]
            self.cache[page, position % self.page_size] = entry_of(token, 0 if self.memory else position)
        return np.stack(
            [logits_of(self._read(batch, index), self.vocab_size) for index in batch.logit_rows.tolist()]
            or [np.zeros(self.vocab_size, np.float32)]
        )[: len(batch.logit_rows)]

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def _read(self, batch: Batch, index: int) -> int:
        state, row = 0, batch.sequences[index]
        last = int(batch.positions[index])
        for position in range(max(0, last + 1 - self.memory) if self.memory else 0, last + 1):
            page = batch.block_tables[row, position // self.page_size]
            entry = self.cache[page, position % self.page_size]
            assert entry is not None, f"slot {position % self.page_size} of page {page} was never written"
            state = mix(state, entry)
        return state


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens 0..255 are a byte each, and three special tokens."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(characters)}
    assert len(vocab) == EOS, "a byte-level alphabet has 256 characters"
    fast = FastTokenizer(models.BPE(vocab=vocab, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return Tokenizer(fast.to_str())


def entry_of(token: int, position: int) -> int:
    """Return what the cache holds of a token."""
    return ((token + 1) * _MULTIPLIER + (position + 1) * 0xC2B2_AE3D_27D4_EB4F) & _MASK


def mix(state: int, entry: int) -> int:
    """Return the state after one more entry."""
    state = ((state ^ entry) * _MULTIPLIER) & _MASK
    return state ^ (state >> 29)


def logits_of(state: int, vocab: int) -> Float32s:
    """Return the logits of a state."""
    return np.random.Generator(np.random.Philox(key=state)).standard_normal(vocab, np.float32) * np.float32(3)
