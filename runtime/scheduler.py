"""Decides which tokens the next step computes.

First come, first served. Sequences that decode come first in a step, then prompts, in chunks, until the
token budget is used up; then waiting sequences are admitted. When pages run out the newest sequence gives
its pages back and waits at the head of the queue to be computed again, so the oldest always moves on.
"""

from collections import deque
from dataclasses import dataclass

from tokc.runtime.block_manager import BlockManager, extend_digests
from tokc.runtime.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute the next `count` tokens of a sequence."""

    sequence: Sequence
    count: int


class Scheduler:
    """Keeps the waiting and the running sequences, both in order of arrival."""

    def __init__(
        self, blocks: BlockManager, *, max_seqs: int, token_budget: int, prefix_cache: bool = True
    ) -> None:
        """Bound a step to `token_budget` tokens and the running sequences to `max_seqs`."""
        assert token_budget >= 1, "a step must compute at least one token"
        assert max_seqs >= 1, "at least one sequence must run"
        self.blocks = blocks
        self.max_seqs = min(max_seqs, token_budget)
        self.token_budget = token_budget
        self.prefix_cache = prefix_cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._arrivals = 0
        self._slots = list(range(self.max_seqs - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit the cache when alone."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, finished or not, and give its pages back; one that is not here is ignored."""
        if sequence.slot is not None:
            self.running.remove(sequence)
            self._give_back(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step, their pages in place; empty when there is nothing to do."""
        counts: dict[Sequence, int] = {}
        preemptions = self.preemptions
        budget = self.token_budget
        for sequence in self._decodes_first():
            count = min(len(sequence.tokens) - sequence.computed, budget)
            if sequence.slot is None or count == 0:
                continue
            budget += self._make_room(sequence, count, counts)
            if sequence.slot is not None:
                counts[sequence] = count
                budget -= count
        if self.preemptions == preemptions:
            self._admit(budget, counts)
        return [Chunk(sequence, count) for sequence, count in counts.items()]

    def computed(self, chunk: Chunk) -> None:
        """Note that a chunk was computed; full pages can be found by others from now on."""
        sequence = chunk.sequence
        sequence.computed += chunk.count
        full = sequence.computed // self.blocks.page_size
        if self.prefix_cache and full > sequence.sealed:
            extend_digests(sequence.digests, sequence.tokens, self.blocks.page_size)
            for index in range(sequence.sealed, full):
                self.blocks.seal(sequence.pages[index], sequence.digests[index])
            sequence.sealed = full

    def _decodes_first(self) -> list[Sequence]:
        decodes = [s for s in self.running if len(s.tokens) - s.computed == 1]
        if len(decodes) == len(self.running):
            return decodes
        return decodes + [s for s in self.running if len(s.tokens) - s.computed != 1]

    def _make_room(self, sequence: Sequence, count: int, counts: dict[Sequence, int]) -> int:
        """Allocate pages for `count` more tokens, preempting the newest; returns the tokens unscheduled."""
        missing = self._pages_for(sequence.computed + count) - len(sequence.pages)
        unscheduled = 0
        while missing > self.blocks.available:
            victim = self.running.pop()
            unscheduled += counts.pop(victim, 0)
            self._give_back(victim)
            self.waiting.appendleft(victim)
            self.preemptions += 1
            if victim is sequence:
                assert self.running, "a sequence was admitted that does not fit the cache alone"
                return unscheduled
        for _ in range(missing):
            sequence.pages.append(self.blocks.allocate())
        return unscheduled

    def _admit(self, budget: int, counts: dict[Sequence, int]) -> None:
        while budget > 0 and self.waiting and self._slots:
            sequence = self.waiting[0]
            if not self._start(sequence):
                return
            self.waiting.popleft()
            count = min(len(sequence.tokens) - sequence.computed, budget)
            counts[sequence] = count
            budget -= count
            for _ in range(self._pages_for(sequence.computed + count) - len(sequence.pages)):
                sequence.pages.append(self.blocks.allocate())

    def _start(self, sequence: Sequence) -> bool:
        """Give a sequence a place and the pages of its known beginning, if all its tokens would fit now."""
        reused: list[int] = []
        if self.prefix_cache:
            page = self.blocks.page_size
            extend_digests(sequence.digests, sequence.tokens, page)
            # At least one token must be computed, for its logits.
            reused = self.blocks.find(sequence.digests[: (len(sequence.tokens) - 1) // page])
        missing = self._pages_for(len(sequence.tokens)) - len(reused)
        if missing > self.blocks.available - self.blocks.kept_among(reused) - self._promised():
            return False
        self.blocks.take(reused)
        sequence.pages = reused
        sequence.sealed = len(reused)
        sequence.computed = len(reused) * self.blocks.page_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        sequence.slot = self._slots.pop()
        self.running.append(sequence)
        return True

    def _promised(self) -> int:
        """Return the pages that running sequences still need for their tokens, and one more each to go on."""
        return sum(
            self._pages_for(len(sequence.tokens)) - len(sequence.pages) + 1 for sequence in self.running
        )

    def _give_back(self, sequence: Sequence) -> None:
        assert sequence.slot is not None, "a sequence without a place has no pages"
        self.blocks.release(sequence.pages)
        sequence.pages = []
        sequence.sealed = 0
        sequence.computed = 0
        sequence.tabled = 0
        self._slots.append(sequence.slot)
        self._slots.sort(reverse=True)
        sequence.slot = None

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.blocks.page_size)
