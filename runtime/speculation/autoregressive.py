"""Drafts a token at a time by a model with a cache of its own: what its kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.base import Logits
from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.acceptance import BUCKETS
from tokc.runtime.speculation.draft_cache import DraftCache, Part
from tokc.runtime.speculation.drafter import Computed, Draft, Node, follow_by

# A draft's probability of a token is taken as the chance that the token holds until that was measured.
PROBABILITIES = tuple((bucket + 0.5) / BUCKETS for bucket in range(BUCKETS))


class Asked(NamedTuple):
    """Ask for what follows a node of a draft: the part that makes its entry."""

    draft: Draft
    node: Node
    part: Part


class AutoregressiveDrafter(ABC):
    """Computes the entries that a sequence's cache lacks, and then one more for each node that is followed.

    Entry i is made from token i + `shift`; with `keeps_drafted` those of drafted tokens that held are as good
    as others. What a draft is behind is computed when it is first wanted. Where its executor computes trees,
    nodes beside each other are followed in one call, each behind the entries of its ancestors.
    """

    stride, branches = 1, False
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
        branches: bool = False,
    ) -> None:
        """Compute at most `max_tokens` at once, nodes beside each other if it `branches`.

        `vocabulary` has the token of each of the draft's logits, None where they are all; those from
        `vocab_size` on are not looked at.
        """
        self.cache = DraftCache(page_size)
        self._max_tokens, self._context = max_tokens, context_length
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self.branches = branches

    @abstractmethod
    def run(self, asked: Items[Asked]) -> Logits:
        """Compute parts; returns logits f32[parts, draft vocab]."""

    def due(self, sequence: Sequence) -> int | None:
        """Return how many entries a sequence lacks; None where the draft's context does not reach."""
        if len(sequence.tokens) >= self._context:
            return None
        return len(sequence.tokens) - self.shift - self._filled(sequence)

    def extend(self, drafts: Items[Draft]) -> int:
        """Follow the frontiers; a draft that is too far behind is closed, and caught up with in part."""
        asked, room = [], self._max_tokens
        for draft in drafts:
            for node in draft.frontier:
                part = self._part(draft, node, room)
                if part.ids:
                    asked.append(Asked(draft, node, part))
                    room -= len(part.ids)
                else:
                    draft.follow(node, ())
        if not asked:
            return 0
        logits = self.run(asked)
        for row, (draft, node, part) in enumerate(asked):
            if self._keep(draft, node, part):
                follow_by(logits[row][: self._vocab_size], draft, node, self._vocabulary)
            else:
                draft.follow(node, ())
        return self._max_tokens - room

    def observe(self, computed: Iterable[Computed]) -> None:  # noqa: B027 - the tokens say it all
        """See what a step computed."""

    def forget(self, sequence: Sequence) -> None:
        """Forget the entries of a sequence."""
        self.cache.forget(sequence)

    def close(self) -> None:  # noqa: B027 - nothing, where the draft is the executor's
        """Let go of what this drafter alone uses."""

    def _part(self, draft: Draft, node: Node, room: int) -> Part:
        """Return what makes the entry of a node, or all that lack up to the root's, if there is room."""
        sequence, entries = draft.sequence, self.cache.of(draft.sequence)
        end = len(sequence.tokens) - self.shift
        if node.place < 0:
            start = self._filled(sequence)
            entries.ahead.clear()
            return Part(entries, start, sequence.tokens[start + self.shift :][: max(room, 0)])
        draft.entries[node] = entry = len(draft.entries)
        mask, above = 0, node.parent
        while above is not None and above.place >= 0:
            mask |= 1 << draft.entries[above]
            above = above.parent
        return Part(entries, end + entry, [node.token] if room > 0 else (), end + node.place, mask)

    def _keep(self, draft: Draft, node: Node, part: Part) -> bool:
        """Note the entries of a part; returns whether its row tells what follows the node."""
        sequence, entries, end = draft.sequence, part.entries, part.start + len(part.ids)
        if node.place < 0:
            entries.filled = end
        elif self.keeps_drafted and part.start == part.position:  # all entries before it are its ancestors'
            entries.ahead.append(node.token)
        self.cache.write(sequence, part.start, end)
        return node.place >= 0 or end == len(sequence.tokens) - self.shift

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
