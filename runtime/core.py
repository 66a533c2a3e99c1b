"""One step of serving: schedule, compute, sample. Knows tokens only; used by one thread at a time."""

import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np

from tokc.runtime.block_manager import BlockManager
from tokc.runtime.counters import Counters, Gauges
from tokc.runtime.executors.base import Batch, Executor, Logits
from tokc.runtime.sampler import sample
from tokc.runtime.scheduler import Chunk, Scheduler
from tokc.runtime.sequence import FinishReason, Logprob, Sequence
from tokc.runtime.speculation.drafter import Computed
from tokc.runtime.speculation.speculation import Speculation
from tokc.runtime.speculation.tree import TokenTree

Drafts = Mapping[Sequence, TokenTree]


class Event(NamedTuple):
    """Report one new token of a sequence, and why that was the last, if it was."""

    sequence: Sequence
    token: int
    logprob: Logprob | None
    finish_reason: FinishReason | None


class Core:
    """Drives an executor for many sequences at once."""

    def __init__(
        self,
        executor: Executor,
        *,
        token_budget: int | None = None,
        prefix_cache: bool = True,
        speculation: Speculation | None = None,
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
        self.speculation = speculation
        self._paths: dict[Sequence, list[int]] = {}
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
            if self.speculation is not None:
                self.speculation.forget(sequence)

    def step(self) -> list[Event]:
        """Compute one batch; returns a token for every sequence whose tokens are all computed."""
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        began_s = time.perf_counter()
        drafts = self._drafts(chunks)
        drafted_s = time.perf_counter()
        logits = self.executor.step(self._batch(chunks, drafts))
        self.counters.steps += 1
        ready, starts = [], [chunk.sequence.computed for chunk in chunks]
        for chunk in chunks:
            self.counters.computed_tokens += chunk.count + len(drafts.get(chunk.sequence, ()))
            self.scheduler.computed(chunk)
            if chunk.sequence.computed == len(chunk.sequence.tokens):
                ready.append(chunk.sequence)
        events = self._choose(logits, ready, drafts)
        self._time(chunks, drafts, began_s, drafted_s)
        if self.speculation is not None:
            self.speculation.observe(_kept(chunks, starts, drafts, self._paths))
        return events

    def _choose(self, logits: Logits, ready: list[Sequence], drafts: Drafts) -> list[Event]:
        """Append a token to each sequence that is ready, and more while its draft holds."""
        events = []
        rows, first = {}, 0
        for sequence in ready:
            rows[sequence] = first
            first += 1 + len(drafts.get(sequence, ()))
        nodes: dict[Sequence, int | None] = dict.fromkeys(ready)
        self._paths.clear()
        while ready:
            wanted = [rows[sequence] + _row(nodes[sequence]) for sequence in ready]
            choices = sample(logits, ready, wanted, self.executor.likeliest, self.executor.blocks)
            on = []
            for sequence, (token, logprob) in zip(ready, choices, strict=True):
                sequence.append(token)
                events.append(Event(sequence, token, logprob, sequence.finish_reason))
                tree, node = drafts.get(sequence), nodes[sequence]
                child = None if tree is None or sequence.finish_reason else tree.child(node, token)
                if child is None:
                    self._settle(sequence, tree, node)
                else:
                    nodes[sequence] = child
                    on.append(sequence)
            ready = on
        self.counters.generated_tokens += len(events)
        return events

    def _settle(self, sequence: Sequence, tree: TokenTree | None, node: int | None) -> None:
        """Keep what was computed of a draft up to the node that held, and end the sequence if it ended."""
        path: list[int] = []
        if tree is not None:
            path = self._paths[sequence] = tree.path(node)
            self.counters.drafts.add(len(tree), tree.depth, len(path))
        if tree is not None and path:
            self._move(sequence, *tree.moves(node, sequence.computed))
            self.scheduler.computed(Chunk(sequence, len(path)))
        if self.speculation is not None:
            self.speculation.learn(sequence, len(path) + 1)
        if sequence.finish_reason is not None:
            self.finish(sequence)

    def _move(self, sequence: Sequence, sources: list[int], targets: list[int]) -> None:
        """Copy entries of a sequence's cache."""
        if sources:
            trees, size = self.executor.trees, self.executor.page_size
            assert trees is not None, "a step held a tree that branches"
            at = np.array([sources, targets], np.int32)
            trees.move(*(np.array(sequence.pages, np.int32)[at // size] * size + at % size))

    def _drafts(self, chunks: Items[Chunk]) -> Drafts:
        """Return the tokens to verify beside the chunks, with room in the cache for them."""
        if self.speculation is None:
            return {}
        ends = [c.sequence for c in chunks if c.sequence.computed + c.count == len(c.sequence.tokens)]
        decodes = [sequence for sequence in ends if sequence.output_length]
        tokens = sum(chunk.count for chunk in chunks)
        room = min(self.scheduler.token_budget - tokens, self.executor.max_seqs - len(ends))
        return self.speculation.drafts(decodes, tokens, room, self._grow) if decodes else {}

    def _grow(self, sequence: Sequence, count: int) -> int:
        """Allocate pages for up to `count` drafted tokens; a tree's reach further than its paths."""
        return self.scheduler.grow(sequence, min(count, self.longest - len(sequence.tokens)))

    def _time(self, chunks: Items[Chunk], drafts: Drafts, began_s: float, drafted_s: float) -> None:
        """Count the time of a step that ends now; learn from one of decoding alone."""
        now_s = time.perf_counter()
        prefill = sum(c.count for c in chunks if c.count > 1 or not c.sequence.output_length)
        decode = sum(c.count for c in chunks) - prefill
        self.counters.busy(now_s - began_s, prefill=prefill, decode=decode)
        if self.speculation is not None and all(chunk.count == 1 for chunk in chunks):
            self.speculation.timed(len(chunks) + sum(map(len, drafts.values())), now_s - drafted_s)

    def _batch(self, chunks: Items[Chunk], drafts: Drafts) -> Batch:
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        rows: list[int] = []
        scales: list[float] = []
        seqs, blocks, now = 0, 0, time.perf_counter()
        for chunk in chunks:
            sequence, count = chunk.sequence, chunk.count
            if sequence.started_s is None:
                sequence.started_s = now
            slot, start = self._update_table(sequence), sequence.computed
            draft = drafts[sequence].tokens if sequence in drafts else ()
            seqs, blocks = max(seqs, slot + 1), max(blocks, len(sequence.pages))
            ids += sequence.tokens[start : start + count]
            ids += draft
            count += len(draft)
            positions += range(start, start + count)
            sequences += [slot] * count
            if start + count == len(sequence.tokens) + len(draft):
                rows += range(len(ids) - 1 - len(draft), len(ids))
                scales += [sequence.params.scale] * (1 + len(draft))
        batch = Batch(
            input_ids=np.array(ids, np.int32),
            positions=np.array(positions, np.int32),
            sequences=np.array(sequences, np.int32),
            block_tables=self._tables[:seqs, :blocks],
            logit_rows=np.array(rows, np.int32),
            scales=np.array(scales, np.float32) if any(scales) else None,
        )
        return batch if all(tree.is_chain for tree in drafts.values()) else _branching(batch, chunks, drafts)

    def _update_table(self, sequence: Sequence) -> int:
        """Write the pages that were added since the last step; returns the row of the sequence."""
        slot = sequence.slot
        assert slot is not None, "only running sequences are computed"
        filled = sequence.tabled
        if filled < len(sequence.pages):
            self._tables[slot, filled : len(sequence.pages)] = sequence.pages[filled:]
            sequence.tabled = len(sequence.pages)
        return slot


def _row(node: int | None) -> int:
    """Return the row of a tree's node behind that of its sequence's last token."""
    return 0 if node is None else node + 1


def _branching(batch: Batch, chunks: Items[Chunk], drafts: Drafts) -> Batch:
    """Return a batch of chains with the trees' positions, entries and ancestors."""
    positions, entries, ancestors = batch.positions.copy(), batch.positions, np.zeros_like(batch.positions)
    row = 0
    for chunk in chunks:
        row += chunk.count
        tree = drafts.get(chunk.sequence)
        if tree is not None:
            nodes, told = slice(row, row + len(tree)), tree.rows(len(chunk.sequence.tokens))
            positions[nodes], ancestors[nodes] = told.positions, told.ancestors
            row += len(tree)
    return batch._replace(positions=positions, entries=entries, ancestors=ancestors)


def _kept(
    chunks: Items[Chunk], starts: Items[int], drafts: Drafts, paths: Mapping[Sequence, list[int]]
) -> Iterator[Computed]:
    """Yield which rows of a step belong to tokens that stay, of sequences that go on."""
    row = 0
    for chunk, start in zip(chunks, starts, strict=True):
        sequence, behind = chunk.sequence, row + chunk.count
        if sequence.finish_reason is None:
            path = paths.get(sequence, ())
            yield Computed(sequence, start, [*range(row, behind), *(behind + node for node in path)])
        row = behind + len(drafts.get(sequence, ()))
