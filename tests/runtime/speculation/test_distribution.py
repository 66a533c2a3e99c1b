"""Tokens drawn behind drafts follow the model's distribution; a wrong rule is found by the same test."""

from collections import Counter
from collections.abc import Sequence
from math import sqrt
from random import Random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from tests.runtime.hash_model import HashModel, history_logits
from tests.runtime.speculation.drafting import Eager, engine_of
from tokc.runtime import core, sampler
from tokc.runtime.executors.base import Batch, Float32s, Int32s
from tokc.runtime.sequence import SamplingParams
from tokc.runtime.sequence import Sequence as Tokens
from tokc.runtime.speculation.draft_model import DraftModelDrafter
from tokc.runtime.speculation.drafter import Draft

VOCAB, ANSWERS, TOKENS, TEMPERATURE = 8, 130, 400, 3.0
DRAWS = ANSWERS * TOKENS
LEAST_PROBABILITY = 1e-4
TABLE = np.stack([history_logits([token], VOCAB) for token in range(VOCAB)])


class Chain(HashModel):
    """A model whose next token depends on the last one only, so that its cache may hold anything.

    Logits are f32[vocab, vocab]; with `trees` a step may hold trees.
    """

    def __init__(self, table: Float32s, *, trees: bool) -> None:
        super().__init__(
            vocab_size=VOCAB, num_pages=4096, page_size=16, max_tokens=1024, max_seqs=1024, context_length=512
        )
        self.table, self.trees, self.moved = table, self if trees else None, 0

    def move(self, sources: Int32s, targets: Int32s) -> None:
        self.moved += len(sources)

    def step(self, batch: Batch) -> Float32s:
        return self.table[batch.input_ids[batch.logit_rows]]


class AcceptedByTheDraft(Eager):
    """A wrong rule: a drafted token is taken with the probability that the draft gave it."""

    def __init__(self, drafter: DraftModelDrafter, **options: Any) -> None:
        super().__init__(drafter, **options)
        self.random = Random(3)
        self.begun: dict[Tokens, tuple[int, Draft]] = {}

    def _drafted(self, drafts: Any, setting: Any, grow: Any) -> Any:
        self.begun = {draft.sequence: (draft.sequence.output_length, draft) for draft in drafts}
        return super()._drafted(drafts, setting, grow)

    def sample(self, logits: Any, sequences: Sequence[Tokens], *rest: Any) -> Any:
        choices = sampler.sample(logits, sequences, *rest)
        for at, sequence in enumerate(sequences):
            begin, draft = self.begun.get(sequence, (0, None))
            followers = [] if draft is None else [draft.root]
            for token in sequence.output[begin:]:
                followers = [child for node in followers for child in node.children if child.token == token]
            drafted = [child for node in followers for child in node.children]
            taken = next((child for child in drafted if self.random.random() < child.confidence), None)
            if taken is not None:
                choices[at] = taken.token, None
        return choices


def drafter(*, trees: bool) -> DraftModelDrafter:
    """Return a draft that is nearly right: some of its tokens are likelier than the model's."""
    tilt = np.where(np.arange(VOCAB) % 3 == 0, np.float32(3), np.float32(0))
    return DraftModelDrafter(Chain(TABLE + tilt, trees=trees), vocab_size=VOCAB)


def transitions(speculation: Eager, *, trees: bool) -> Counter[tuple[int, int]]:
    """Return how often each token followed each."""
    engine = engine_of(Chain(TABLE, trees=trees), speculation, prefix_cache=False)
    requests = []
    for seed in range(ANSWERS):
        params = SamplingParams(max_tokens=TOKENS, temperature=TEMPERATURE, seed=seed)
        requests.append(engine.request([seed % VOCAB], params))
        engine._loop.submit(requests[-1])
    while not all(request.done for request in requests):
        engine.step()
    counts = engine.counters.drafts
    assert 0.05 * counts.verified < counts.accepted < counts.verified
    assert not trees or engine.executor.moved > 1000  # some of the paths that held were not the first
    pairs: Counter[tuple[int, int]] = Counter()
    for request in requests:
        pairs.update(zip(request.sequence.tokens, request.sequence.output, strict=False))
    return pairs


def probability_of(pairs: Counter[tuple[int, int]]) -> float:
    """Return how likely counts are at least so far from the model's distribution: a G-test, row by row.

    Source: McDonald, Handbook of Biological Statistics, 2014; Wilson and Hilferty 1931 for the chi-square.
    """
    statistic, freedom = 0.0, VOCAB * (VOCAB - 1)
    for first, logits in enumerate(TABLE.astype(np.float64)):
        weights = np.exp(logits / TEMPERATURE)
        row = np.array([pairs[first, second] for second in range(VOCAB)])
        expected = row.sum() * weights / weights.sum()
        assert row.min() > 0, "every pair occurs"
        statistic += 2 * float((row * np.log(row / expected)).sum())
    spread = 2 / (9 * freedom)
    return 1 - NormalDist().cdf(((statistic / freedom) ** (1 / 3) - (1 - spread)) / sqrt(spread))


@pytest.mark.parametrize("trees", [False, True])
def test_tokens_behind_drafts_follow_the_models_distribution(*, trees: bool) -> None:
    pairs = transitions(Eager(drafter(trees=trees), most=2 if trees else 4, trees=trees), trees=trees)
    assert pairs.total() == DRAWS >= 50_000
    assert probability_of(pairs) > LEAST_PROBABILITY


@pytest.mark.parametrize("trees", [False, True])
def test_the_test_finds_a_wrong_rule(monkeypatch: pytest.MonkeyPatch, *, trees: bool) -> None:
    speculation = AcceptedByTheDraft(drafter(trees=trees), most=2 if trees else 4, trees=trees)
    monkeypatch.setattr(core, "sample", speculation.sample)
    pairs = transitions(speculation, trees=trees)
    assert pairs.total() == DRAWS
    assert probability_of(pairs) < LEAST_PROBABILITY
