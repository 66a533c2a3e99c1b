"""What a draft has computed of its own cache, which has the pages of the model's cache by the same numbers.

A sequence's entries lie in its own pages, so that what shares, frees or preempts these does so with the
draft's entries too. The draft may begin late, at an `origin`: its positions count from there, and it sees
nothing before.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tokc.runtime.executors.base import Batch
from tokc.runtime.sequence import Sequence


@dataclass(slots=True, eq=False)
class Entries:
    """The entries of one sequence: from `origin`, the first of a page, up to `filled` they are right.

    `pages` is the sequence's own list: it gets another when it loses its pages. `ahead` are the drafted
    tokens whose entries follow.
    """

    pages: list[int]
    origin: int = 0
    filled: int = 0
    ahead: list[int] = field(default_factory=list)

    def restart(self, at: int) -> None:
        """Begin anew at the first entry of a page."""
        self.origin = self.filled = at
        self.ahead.clear()


class Part(NamedTuple):
    """Ask for the entries from `start` on of one sequence, made from `ids`; its last row has logits."""

    entries: Entries
    start: int
    ids: Items[int]


class DraftCache:
    """Remembers the entries of each sequence, and of which beginning a page holds all entries."""

    def __init__(self, page_size: int) -> None:
        """Start with nothing computed."""
        self.page_size = page_size
        self._entries: dict[Sequence, Entries] = {}
        self._content: dict[int, tuple[bytes, int]] = {}

    def of(self, sequence: Sequence) -> Entries:
        """Return the entries of a sequence; one that got its pages anew keeps those that are still there."""
        entries = self._entries.get(sequence)
        if entries is None or entries.pages is not sequence.pages:
            entries = self._entries[sequence] = Entries(sequence.pages)
            shared = zip(sequence.pages, sequence.digests[: sequence.sealed], strict=False)
            for page, digest in shared:
                if self._content.get(page) != (digest, 0):
                    break
                entries.filled += self.page_size
        return entries

    def write(self, sequence: Sequence, start: int, end: int) -> None:
        """Note that the entries from `start` to `end` were written, in whatever pages they lie."""
        entries, size = self.of(sequence), self.page_size
        for index in range(start // size, -(-end // size)):
            page = sequence.pages[index]
            if (index + 1) * size <= entries.filled and index < len(sequence.digests):
                self._content[page] = sequence.digests[index], entries.origin
            else:
                self._content.pop(page, None)

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence; its pages may be found by others."""
        self._entries.pop(sequence, None)

    def batch(self, parts: Items[Part]) -> Batch:
        """Return the step that computes the parts, with a row of logits for each."""
        size = self.page_size
        counts = [len(part.ids) for part in parts]
        tables = [
            part.entries.pages[part.entries.origin // size : -(-(part.start + count) // size)]
            for part, count in zip(parts, counts, strict=True)
        ]
        block_tables = np.zeros((len(parts), max(map(len, tables))), np.int32)
        for row, table in zip(block_tables, tables, strict=True):
            row[: len(table)] = table
        first = [part.start - part.entries.origin for part in parts]
        return Batch(
            input_ids=np.concatenate([np.asarray(part.ids, np.int32) for part in parts]),
            positions=np.concatenate(
                [np.arange(at, at + count, dtype=np.int32) for at, count in zip(first, counts, strict=True)]
            ),
            sequences=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
            block_tables=block_tables,
            logit_rows=np.cumsum(counts, dtype=np.int32) - 1,
        )
