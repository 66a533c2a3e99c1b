"""A model of hashes whose steps hold trees: a node reads what came before its tree, and its own ancestors."""

from typing import Any

import numpy as np

from tests.runtime.hash_model import HashModel, entry_of, logits_of, mix
from tokc.runtime.executors.base import Batch, Float32s, Int32s


class TreeModel(HashModel):
    """Keeps a number an entry; an entry that is read must be of the position that it is read for."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.trees = self  # type: ignore[assignment]
        self.moved = 0

    def step(self, batch: Batch) -> Float32s:
        if batch.entries is None:
            return super().step(batch)
        assert batch.ancestors is not None, "a tree has both"
        self.steps.append(batch)
        fields = batch.input_ids, batch.positions, batch.sequences, batch.entries
        for token, position, row, entry in zip(*(field.tolist() for field in fields), strict=True):
            page = batch.block_tables[row, entry // self.page_size]
            self.cache[page, entry % self.page_size] = entry_of(token, 0 if self.memory else position)
        return np.stack([self._node(batch, row) for row in batch.logit_rows.tolist()])

    def _node(self, batch: Batch, row: int) -> Float32s:
        assert batch.entries is not None
        assert batch.ancestors is not None
        mask, table = int(batch.ancestors[row]) & 0xFFFFFFFF, batch.block_tables[batch.sequences[row]]
        base = int(batch.positions[row]) - mask.bit_count()
        above = [base + bit for bit in range(32) if mask >> bit & 1]
        state, entries = 0, [*range(base), *above, int(batch.entries[row])]
        for entry in entries[-self.memory :] if self.memory else entries:
            found = self.cache[table[entry // self.page_size], entry % self.page_size]
            assert found is not None, "an entry was never written"
            state = mix(state, found)
        return logits_of(state, self.vocab_size)

    def move(self, sources: Int32s, targets: Int32s) -> None:
        flat: Any = self.cache.reshape(-1)
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            flat[target] = flat[source]
            self.moved += 1
