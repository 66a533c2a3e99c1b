"""Drafts by EAGLE: a layer that reads the model's features and the tokens that followed them.

Source: Li et al. 2024, arXiv:2401.15077. Entry i of its cache is made from feature i and token i + 1; what it
drafts itself goes on from its own features, and is overwritten by what the model says of the same tokens.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Protocol, runtime_checkable

import numpy as np

from tokc.runtime.executors.base import Executor, Float32s, Logits
from tokc.runtime.executors.drafting import DraftExecutor
from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.autoregressive import Asked, AutoregressiveDrafter
from tokc.runtime.speculation.draft_cache import Entries
from tokc.runtime.speculation.drafter import Computed, Node

# Features of so many tokens are kept for a draft that does not run; of a longer text it sees the end only.
WINDOW_TOKENS = 1024


@runtime_checkable
class DraftingExecutor(Executor, Protocol):
    """An executor that tells the features of its last step's tokens, and runs what drafts from them."""

    @property
    def features(self) -> Float32s | None:
        """Return f32[tokens, hidden], valid until the next step."""
        ...

    @property
    def draft(self) -> DraftExecutor | None:
        """Return what drafts, None if the artifact has nothing that does."""
        ...


class EagleDrafter(AutoregressiveDrafter):
    """Keeps features of tokens that the draft has not read, and those that it made itself, by node."""

    shift, keeps_drafted = 1, False

    def __init__(self, executor: DraftingExecutor, draft: DraftExecutor) -> None:
        """Draft for `executor`."""
        super().__init__(
            page_size=executor.page_size,
            max_tokens=executor.max_tokens,
            context_length=executor.context_length,
            vocabulary=draft.vocabulary,
            branches=draft.trees is not None,
        )
        self._executor, self._draft = executor, draft
        self._unread: dict[Sequence, _Unread] = {}
        self._own: dict[Node, Float32s] = {}

    def due(self, sequence: Sequence) -> int | None:
        """Return how many features were not read; None if those of the latest tokens are not there."""
        unread = self._unread.get(sequence)
        if unread is None or unread.entries is not self.cache.of(sequence):
            return None
        return super().due(sequence) if unread.end == len(sequence.tokens) - 1 > 0 else None

    def run(self, asked: Items[Asked]) -> Logits:
        """Compute parts; returns logits f32[parts, draft vocab]."""
        features = [
            self._own[node.parent][None] if node.parent else self._unread[draft.sequence].take(len(part.ids))
            for draft, node, part in asked
        ]
        given = features[0] if len(features) == 1 else np.concatenate(features)
        made = self._draft.step(self.cache.batch([one.part for one in asked]), given)
        assert made.features is not None, "an eagle goes on from its own features"
        self._own |= {one.node: row for row, one in zip(made.features.copy(), asked, strict=True)}
        return made.logits

    def observe(self, computed: Iterable[Computed]) -> None:
        """Keep the features of tokens that stay."""
        self._own.clear()
        found = self._executor.features
        assert found is not None, "an artifact with an eagle tells its features"
        features = found.copy()
        for sequence, start, rows in computed:
            entries, unread = self.cache.of(sequence), self._unread.get(sequence)
            if unread is None or unread.entries is not entries or unread.end != start:
                unread = self._unread[sequence] = _Unread(entries, start, self.cache.page_size)
            first, last = rows[0], rows[-1]
            unread.add(features[first : last + 1] if last - first == len(rows) - 1 else features[rows])

    def forget(self, sequence: Sequence) -> None:
        """Forget the entries and features of a sequence."""
        super().forget(sequence)
        self._unread.pop(sequence, None)


class _Unread:
    """Features behind the entries that are filled, in the order of their tokens; `end` is behind the last."""

    def __init__(self, entries: Entries, start: int, page_size: int) -> None:
        """Begin with feature `start`; what the entries lack before it will not be filled."""
        self.entries, self.end, self._page_size = entries, start, page_size
        self._rows: list[Float32s] = []
        if entries.filled < start:
            self._restart(start)
        else:
            entries.filled = start

    def add(self, rows: Float32s) -> None:
        """Append f32[tokens, hidden], letting go of the oldest, page by page."""
        skipped = min(max(self.entries.filled - self.end, 0), len(rows))
        self.end += len(rows)
        self._rows.append(rows[skipped:])
        while self.end - self.entries.filled > WINDOW_TOKENS:
            before = self.entries.filled
            self._restart(before + 1)
            self.take(self.entries.filled - before)

    def take(self, count: int) -> Float32s:
        """Return the first `count` rows and let go of them."""
        rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
        self._rows = [rows[count:]]
        return rows[:count]

    def _restart(self, start: int) -> None:
        """Let the entries begin at the first page from `start` on."""
        page = self._page_size
        self.entries.restart(-(-start // page) * page)
