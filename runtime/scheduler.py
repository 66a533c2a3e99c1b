"""Decides which tokens the next step computes.

First come, first served, where one step of priority is worth `ageing_s` seconds of waiting: so a sequence is
overtaken only by those that come within a bounded time after it. Sequences that decode come first in a step,
then prompts, in chunks, until the token budget is used up; then waiting sequences are admitted. When pages
run out the last sequence in this order gives its pages back and waits to be computed again, so the first
always moves on.
"""

from bisect import insort
from dataclasses import dataclass

from tokc.runtime.block_manager import BlockManager, extend_digests
from tokc.runtime.sequence import Sequence

AGEING_S = 10.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute the next `count` tokens of a sequence."""

    sequence: Sequence
    count: int


class Scheduler:
    """Keeps the waiting and the running sequences, both in the order in which they are served."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_seqs: int,
        token_budget: int,
        prefix_cache: bool = True,
        ageing_s: float = AGEING_S,
    ) -> None:
        """Bound a step to `token_budget` tokens and the running sequences to `max_seqs`."""
        assert token_budget >= 1, "a step must compute at least one token"
        assert max_seqs >= 1, "at least one sequence must run"
        self.blocks = blocks
        self.max_seqs = min(max_seqs, token_budget)
        self.token_budget = token_budget
        self.prefix_cache = prefix_cache
        self.ageing_s = ageing_s
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._arrivals = 0
        self._slots = list(range(self.max_seqs - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit the cache when alone."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        insort(self.waiting, sequence, key=self._rank)

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
            extend_digests(sequence.digests, sequence.tokens, self.blocks.page_size, sequence.cache_salt)
            for index in range(sequence.sealed, full):
                self.blocks.seal(sequence.pages[index], sequence.digests[index])
            sequence.sealed = full

    def grow(self, sequence: Sequence, count: int) -> int:
        """Allocate pages for up to `count` tokens behind a sequence's own; return for how many there is room.

        Nobody is preempted for them, and every running sequence is left a page to go on with.
        """
        missing = self._pages_for(len(sequence.tokens) + count) - len(sequence.pages)
        for _ in range(min(missing, self.blocks.available - len(self.running))):
            sequence.pages.append(self.blocks.allocate())
        return min(count, len(sequence.pages) * self.blocks.page_size - len(sequence.tokens))

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
            insort(self.waiting, victim, key=self._rank)
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
            del self.waiting[0]
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
            extend_digests(sequence.digests, sequence.tokens, page, sequence.cache_salt)
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
        insort(self.running, sequence, key=self._rank)
        return True

    def _promised(self) -> int:
        """Return the pages that running sequences still need for their tokens, and one more each to go on."""
        return sum(
            max(self._pages_for(len(sequence.tokens)) - len(sequence.pages) + 1, 0)
            for sequence in self.running
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

    def _rank(self, sequence: Sequence) -> tuple[float, int]:
        """Return the place in the order: it never changes, since all that wait age alike."""
        return sequence.submitted_s + sequence.priority * self.ageing_s, sequence.arrival

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.blocks.page_size)
