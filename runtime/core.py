"""One step of serving: schedule, compute, sample. Knows tokens only; used by one thread at a time."""

import time
from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np

from tokc.runtime.block_manager import BlockManager
from tokc.runtime.counters import Counters, Gauges
from tokc.runtime.executors.base import Batch, Executor
from tokc.runtime.sampler import sample
from tokc.runtime.scheduler import Chunk, Scheduler
from tokc.runtime.sequence import Logprob, Sequence


class Event(NamedTuple):
    """Report one new token of a sequence; its `finish_reason` is set when that was the last."""

    sequence: Sequence
    token: int
    logprob: Logprob | None


class Core:
    """Drives an executor for many sequences at once."""

    def __init__(
        self, executor: Executor, *, token_budget: int | None = None, prefix_cache: bool = True
    ) -> None:
        """Take a step of at most `token_budget` tokens, None for as many as the executor can."""
        self.executor = executor
        self.counters = Counters()
        self.blocks = BlockManager(executor.num_pages, executor.page_size)
        budget = min(token_budget or executor.max_tokens, executor.max_tokens)
        self.scheduler = Scheduler(
            self.blocks, max_seqs=executor.max_seqs, token_budget=budget, prefix_cache=prefix_cache
        )
        self.longest = min(executor.context_length, executor.num_pages * executor.page_size)
        blocks = -(-executor.context_length // executor.page_size)
        self._tables = np.zeros((self.scheduler.max_seqs, blocks), np.int32)

    @property
    def idle(self) -> bool:
        """Say whether there is nothing to do."""
        return not self.scheduler.running and not self.scheduler.waiting

    @property
    def gauges(self) -> Gauges:
        """Return the state of this moment."""
        scheduler = self.scheduler
        return Gauges(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages_used=self.blocks.used,
            pages_total=self.blocks.num_pages,
            preemptions=scheduler.preemptions,
        )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.scheduler.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, whether it ended or is aborted."""
        if sequence.finished_s is None:
            sequence.finish_reason = sequence.finish_reason or "abort"
            sequence.finished_s = time.perf_counter()
            self.scheduler.remove(sequence)
            self.counters.finish(sequence)

    def step(self) -> list[Event]:
        """Compute one batch; returns a token for every sequence whose tokens are all computed."""
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        logits = self.executor.step(self._batch(chunks))
        self.counters.steps += 1
        ready = []
        for chunk in chunks:
            self.counters.computed_tokens += chunk.count
            self.scheduler.computed(chunk)
            if chunk.sequence.computed == len(chunk.sequence.tokens):
                ready.append(chunk.sequence)
        if not ready:
            return []
        events = []
        for sequence, (token, logprob) in zip(ready, sample(logits, ready), strict=True):
            sequence.append(token)
            events.append(Event(sequence, token, logprob))
            if sequence.finish_reason is not None:
                self.finish(sequence)
        return events

    def _batch(self, chunks: Items[Chunk]) -> Batch:
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        rows: list[int] = []
        seqs, blocks, now = 0, 0, time.perf_counter()
        for chunk in chunks:
            sequence, count = chunk.sequence, chunk.count
            if sequence.started_s is None:
                sequence.started_s = now
            slot, start = self._update_table(sequence), sequence.computed
            seqs, blocks = max(seqs, slot + 1), max(blocks, len(sequence.pages))
            ids += sequence.tokens[start : start + count]
            positions += range(start, start + count)
            sequences += [slot] * count
            if start + count == len(sequence.tokens):
                rows.append(len(ids) - 1)
        return Batch(
            input_ids=np.array(ids, np.int32),
            positions=np.array(positions, np.int32),
            sequences=np.array(sequences, np.int32),
            block_tables=self._tables[:seqs, :blocks],
            logit_rows=np.array(rows, np.int32),
        )

    def _update_table(self, sequence: Sequence) -> int:
        """Write the pages that were added since the last step; returns the row of the sequence."""
        slot = sequence.slot
        assert slot is not None, "only running sequences are computed"
        filled = sequence.tabled
        if filled < len(sequence.pages):
            self._tables[slot, filled : len(sequence.pages)] = sequence.pages[filled:]
            sequence.tabled = len(sequence.pages)
        return slot
