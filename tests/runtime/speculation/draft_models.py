"""Executors of the tests that draft from features, and fail at once if they are given wrong ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.runtime.hash_model import history_logits
from tests.runtime.speculation.tree_model import TreeModel
from tokc.runtime.executors.base import Batch, Float32s
from tokc.runtime.executors.drafting import DraftRows


def feature_of(tokens: Sequence[int]) -> list[float]:
    """Return a feature that says which token it is of and how many were before it."""
    return [float(tokens[-1]), float(len(tokens) - 1)]


class FeatureModel(TreeModel):
    """A model whose features say of which token and position they are; each token depends on the last."""

    def __init__(
        self,
        kind: str = "eagle",
        heads: int = 1,
        vocabulary: Any = None,
        *,
        trees: bool = False,
        **sizes: int,
    ) -> None:
        super().__init__(memory=1, **sizes)
        self.trees = self if trees else None
        self.draft = FeatureDraft(self, kind, heads, vocabulary)
        self.features: Float32s | None = None

    def step(self, batch: Batch) -> Any:
        self.features = np.stack([batch.input_ids, batch.positions], axis=1).astype(np.float32)
        return super().step(batch)


class FeatureDraft:
    """Guesses what the model will say, provided that features, entries and tokens belong together."""

    def __init__(self, model: FeatureModel, kind: str, heads: int, vocabulary: Any) -> None:
        self.kind, self.heads, self.vocabulary = kind, heads, vocabulary
        self._page, self._vocab, self.trees = model.page_size, model.vocab_size, model.trees
        self.cache = np.full((model.num_pages, model.page_size, 2), -1.0)
        self.steps: list[Batch] = []

    def step(self, batch: Batch, features: Float32s) -> DraftRows:
        assert len(features) == len(batch.input_ids)
        self.steps.append(batch)
        if self.kind == "medusa":
            return self._heads(features)
        entries = batch.positions if batch.entries is None else batch.entries
        for token, entry, row, feature in zip(
            batch.input_ids, entries, batch.sequences, features, strict=True
        ):
            page = batch.block_tables[row, entry // self._page]
            self.cache[page, entry % self._page] = feature[1], token
        for row in batch.logit_rows:
            self._check(batch, int(row), features[row])
        made = np.stack([batch.input_ids, features[:, 1] + 1], axis=1)[batch.logit_rows]
        logits = [history_logits([int(batch.input_ids[row])], self._vocab) for row in batch.logit_rows]
        return DraftRows(self._picked(np.stack(logits)), made.astype(np.float32))

    def _check(self, batch: Batch, row: int, feature: Float32s) -> None:
        """Require that the entries on a row's path are of tokens that follow each other."""
        last, table = int(batch.positions[row]), batch.block_tables[batch.sequences[row]]
        mask = 0 if batch.ancestors is None else int(batch.ancestors[row]) & 0xFFFFFFFF
        base, origin = last - mask.bit_count(), int(feature[1]) - last
        assert origin % self._page == 0
        own = last if batch.entries is None else int(batch.entries[row])
        path = [*range(base), *(base + bit for bit in range(32) if mask >> bit & 1), own]
        found = [self.cache[table[entry // self._page], entry % self._page] for entry in path]
        assert [index for index, _ in found] == list(range(origin, origin + last + 1))
        if last % self._page:  # the last of a page is of the token behind, and may be shared by others
            assert found[-2][1] == feature[0], "an entry is of another token"

    def _heads(self, features: Float32s) -> DraftRows:
        rows = []
        for feature in features:
            token = int(history_logits([int(feature[0])], self._vocab).argmax())
            heads = []
            for _ in range(self.heads):
                heads.append(history_logits([token], self._vocab))
                token = int(heads[-1].argmax())
            rows.append(np.stack(heads))
        return DraftRows(self._picked(np.stack(rows)), None)

    def _picked(self, logits: Float32s) -> Float32s:
        return logits if self.vocabulary is None else logits[..., self.vocabulary]
