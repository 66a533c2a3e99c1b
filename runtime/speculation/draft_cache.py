"""What a draft has computed of its own cache, which has the pages of the model's cache by the same numbers.

A sequence's entries lie in its own pages, so that what shares, frees or preempts these does so with the
draft's entries too. The draft may begin late, at an `origin`: its positions count from there, and it sees
nothing before.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tokc.runtime.executors.base import Batch, Int32s
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
    _table: Int32s = field(default_factory=lambda: np.zeros(0, np.int32))

    def restart(self, at: int) -> None:
        """Begin anew at the first entry of a page."""
        self.origin = self.filled = at
        self.ahead.clear()

    @property
    def table(self) -> Int32s:
        """Return the pages as i32[pages], which are only ever added to."""
        if len(self._table) < len(self.pages):
            self._table = np.array(self.pages, np.int32)
        return self._table


class Part(NamedTuple):
    """Ask for the entries from `start` on of one sequence, made from `ids`; its last row has logits.

    A node of a tree is a part of its own, whose position is before its entry where it is not the first there.
    Bit i of `ancestors` is the entry i behind the sequence's own, where those of its draft begin.
    """

    entries: Entries
    start: int
    ids: Items[int]
    position: int | None = None
    ancestors: int = 0


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
        """Return the step that computes the parts, with a row of logits for each.

        Parts of one sequence stand beside each other, their entries ascending.
        """
        ids: list[int] = []
        entries: list[int] = []
        positions: list[int] = []
        ancestors: list[int] = []
        rows: list[int] = []
        tables: list[Int32s] = []
        ends: list[int] = []
        owner = None
        for own, start, part_ids, position, mask in parts:
            count, origin = len(part_ids), own.origin
            if own is not owner:
                owner = own
                tables.append(own.table)
            tables[-1] = own.table[origin // self.page_size : -(-(start + count) // self.page_size)]
            place = start if position is None else position
            ids += part_ids
            entries += range(start - origin, start - origin + count)
            positions += range(place - origin, place - origin + count)
            ancestors += [0 if place == start else mask] * count
            rows += [len(tables) - 1] * count
            ends.append(len(ids) - 1)
        batch = Batch(
            input_ids=np.array(ids, np.int32),
            positions=np.array(positions, np.int32),
            sequences=np.array(rows, np.int32),
            block_tables=_together(tables),
            logit_rows=np.array(ends, np.int32),
        )
        if entries == positions:
            return batch
        masks = np.array(ancestors, np.uint32).view(np.int32)
        return batch._replace(entries=np.array(entries, np.int32), ancestors=masks)


def _together(tables: Items[Int32s]) -> Int32s:
    """Return block tables as rows of i32[seqs, blocks], zeros behind the shorter ones."""
    if len(tables) == 1:
        return tables[0][None]
    whole = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(whole, tables, strict=True):
        row[: len(table)] = table
    return whole
