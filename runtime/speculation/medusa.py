"""Drafts by Medusa: heads that each guess a token further from one feature of the model.

Source: Cai et al. 2024, arXiv:2401.10774.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np

from tokc.runtime.executors.base import Batch, Float32s
from tokc.runtime.executors.drafting import DraftExecutor
from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.autoregressive import PROBABILITIES
from tokc.runtime.speculation.drafter import Computed, Draft, follow_by
from tokc.runtime.speculation.eagle import DraftingExecutor


class MedusaDrafter:
    """Keeps the feature of each sequence's last computed token; one call drafts a token a head."""

    branches, priors = False, PROBABILITIES

    def __init__(self, executor: DraftingExecutor, draft: DraftExecutor) -> None:
        """Draft for `executor`."""
        self.stride = draft.heads
        self._executor, self._draft = executor, draft
        self._latest: dict[Sequence, tuple[int, Float32s]] = {}

    def due(self, sequence: Sequence) -> int | None:
        """Return 1, the row that the heads read; None if the feature of the latest token is not there."""
        end, _ = self._latest.get(sequence, (None, None))
        return 1 if end == len(sequence.tokens) - 1 else None

    def extend(self, drafts: Items[Draft]) -> int:
        """Follow each draft's root by a token of each head, as far as it goes, and close it."""
        features = np.stack([self._latest[draft.sequence][1] for draft in drafts])
        rows = np.arange(len(drafts), dtype=np.int32)
        none = np.zeros((len(drafts), 1), np.int32)
        logits = self._draft.step(Batch(rows * 0, rows * 0, rows, none, rows), features).logits
        for draft, heads in zip(drafts, logits, strict=True):
            node = draft.root
            for row in heads[: draft.most]:
                follow_by(row, draft, node, self._draft.vocabulary)
                node = node.children[0]
            draft.close()
        return len(drafts)

    def observe(self, computed: Iterable[Computed]) -> None:
        """Keep the last feature of tokens that stay."""
        features = self._executor.features
        assert features is not None, "an artifact with heads tells its features"
        for sequence, start, rows in computed:
            self._latest[sequence] = start + len(rows), features[rows[-1]].copy()

    def forget(self, sequence: Sequence) -> None:
        """Forget the feature of a sequence."""
        self._latest.pop(sequence, None)

    def close(self) -> None:
        """Let go of nothing: the heads are the executor's."""
