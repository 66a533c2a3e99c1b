"""Drafts a token at a time by a model with a cache of its own: what its kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.base import Float32s, Logits
from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.acceptance import BUCKETS
from tokc.runtime.speculation.draft_cache import DraftCache, Part
from tokc.runtime.speculation.drafter import Branch, Computed, draft_token

# A draft's probability of a token is taken as the chance that the token holds until that was measured.
PROBABILITIES = tuple((bucket + 0.5) / BUCKETS for bucket in range(BUCKETS))


class AutoregressiveDrafter(ABC):
    """Computes the entries that a sequence's cache lacks, and then one more for each drafted token.

    Entry i is made from token i + `shift`; with `keeps_drafted` those of drafted tokens that held are as good
    as others. What a draft is behind is computed when it is first wanted.
    """

    stride = 1
    priors = PROBABILITIES
    shift: ClassVar[int]
    keeps_drafted: ClassVar[bool]

    def __init__(
        self,
        *,
        page_size: int,
        max_tokens: int,
        context_length: int,
        vocabulary: npt.NDArray[np.int32] | None,
        vocab_size: int | None = None,
    ) -> None:
        """Compute at most `max_tokens` at once.

        `vocabulary` has the token of each of the draft's logits, None where they are all; those from
        `vocab_size` on are not looked at.
        """
        self.cache = DraftCache(page_size)
        self._max_tokens, self._context = max_tokens, context_length
        self._vocabulary, self._vocab_size = vocabulary, vocab_size

    @abstractmethod
    def run(self, parts: Items[tuple[Branch, Part]]) -> Logits:
        """Compute parts; returns logits f32[parts, draft vocab]."""

    def due(self, sequence: Sequence) -> int | None:
        """Return how many entries a sequence lacks; None where the draft's context does not reach."""
        if len(sequence.tokens) >= self._context:
            return None
        return len(sequence.tokens) - self.shift - self._filled(sequence)

    def extend(self, branches: Items[Branch]) -> int:
        """Append a token to each branch; one that is too far behind is closed, and caught up with in part."""
        parts, room = [], self._max_tokens
        for branch in branches:
            part = self._part(branch, room)
            if part.ids:
                parts.append((branch, part))
                room -= len(part.ids)
            else:
                branch.close()
        if not parts:
            return 0
        logits = self.run(parts)
        for row, (branch, part) in enumerate(parts):
            self._note(branch, part, logits[row][: self._vocab_size])
        return self._max_tokens - room

    def observe(self, computed: Items[Computed]) -> None:  # noqa: B027 - the tokens say it all
        """See what a step computed."""

    def forget(self, sequence: Sequence) -> None:
        """Forget the entries of a sequence."""
        self.cache.forget(sequence)

    def close(self) -> None:  # noqa: B027 - nothing, where the draft is the executor's
        """Let go of what this drafter alone uses."""

    def _part(self, branch: Branch, room: int) -> Part:
        sequence, entries = branch.sequence, self.cache.of(branch.sequence)
        end = len(sequence.tokens) - self.shift + len(branch.tokens)
        if branch.tokens:
            return Part(entries, end - 1, branch.tokens[-1:] if room > 0 else ())
        start = self._filled(sequence)
        entries.ahead.clear()
        return Part(entries, start, sequence.tokens[start + self.shift : end + self.shift][: max(room, 0)])

    def _note(self, branch: Branch, part: Part, logits: Float32s) -> None:
        """Note the entries of a part and the token that follows it."""
        sequence, entries, end = branch.sequence, part.entries, part.start + len(part.ids)
        if not branch.tokens:
            entries.filled = end
        elif self.keeps_drafted:
            entries.ahead.append(branch.tokens[-1])
        self.cache.write(sequence, part.start, end)
        if end == len(sequence.tokens) - self.shift + len(branch.tokens):
            draft_token(logits, branch, self._vocabulary)
        else:
            branch.close()

    def _filled(self, sequence: Sequence) -> int:
        """Return up to where the entries are right, those that were drafted and held among them."""
        entries = self.cache.of(sequence)
        before, last = entries.filled, len(sequence.tokens) - self.shift - 1
        while entries.ahead and entries.filled < last:
            if entries.ahead.pop(0) != sequence.tokens[entries.filled + self.shift]:
                entries.ahead.clear()
                break
            entries.filled += 1
        if entries.filled > before:
            self.cache.write(sequence, before, entries.filled)
        return entries.filled
