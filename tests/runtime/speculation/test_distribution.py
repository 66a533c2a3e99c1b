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
from tokc.runtime.executors.base import Batch, Float32s
from tokc.runtime.sequence import SamplingParams
from tokc.runtime.sequence import Sequence as Tokens
from tokc.runtime.speculation.draft_model import DraftModelDrafter
from tokc.runtime.speculation.drafter import Branch

VOCAB, ANSWERS, TOKENS, TEMPERATURE = 8, 130, 400, 3.0
DRAWS = ANSWERS * TOKENS
LEAST_PROBABILITY = 1e-4
TABLE = np.stack([history_logits([token], VOCAB) for token in range(VOCAB)])


class Chain(HashModel):
    """A model whose next token depends on the last one only: logits f32[vocab, vocab]."""

    def __init__(self, table: Float32s) -> None:
        super().__init__(
            vocab_size=VOCAB, num_pages=4096, page_size=16, max_tokens=1024, max_seqs=1024, context_length=512
        )
        self.table = table

    def step(self, batch: Batch) -> Float32s:
        return self.table[batch.input_ids[batch.logit_rows]]


class AcceptedByTheDraft(Eager):
    """A wrong rule: a drafted token is taken with the probability that the draft gave it."""

    def __init__(self, drafter: DraftModelDrafter) -> None:
        super().__init__(drafter, most=4)
        self.random = Random(3)
        self.begun: dict[Tokens, tuple[int, Branch]] = {}

    def _drafted(self, branches: Any, setting: Any, grow: Any) -> list[Any]:
        self.begun = {branch.sequence: (branch.sequence.output_length, branch) for branch in branches}
        return super()._drafted(branches, setting, grow)

    def sample(self, logits: Any, sequences: Sequence[Tokens], *rest: Any) -> Any:
        choices = sampler.sample(logits, sequences, *rest)
        for at, sequence in enumerate(sequences):
            begin, branch = self.begun.get(sequence, (0, None))
            place = sequence.output_length - begin
            if branch is None or place >= len(branch.tokens):
                continue
            if self.random.random() < branch.confidences[place]:
                choices[at] = branch.tokens[place], None
        return choices


def drafter() -> DraftModelDrafter:
    """Return a draft that is nearly right: some of its tokens are likelier than the model's."""
    tilt = np.where(np.arange(VOCAB) % 3 == 0, np.float32(3), np.float32(0))
    return DraftModelDrafter(Chain(TABLE + tilt), vocab_size=VOCAB)


def transitions(speculation: Eager) -> Counter[tuple[int, int]]:
    """Return how often each token followed each."""
    engine = engine_of(Chain(TABLE), speculation, prefix_cache=False)
    requests = []
    for seed in range(ANSWERS):
        params = SamplingParams(max_tokens=TOKENS, temperature=TEMPERATURE, seed=seed)
        requests.append(engine.request([seed % VOCAB], params))
        engine._loop.submit(requests[-1])
    while not all(request.done for request in requests):
        engine.step()
    counts = engine.counters.drafts
    assert 0.2 * counts.verified < counts.accepted < counts.verified
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


def test_tokens_behind_drafts_follow_the_models_distribution() -> None:
    pairs = transitions(Eager(drafter(), most=4))
    assert pairs.total() == DRAWS >= 50_000
    assert probability_of(pairs) > LEAST_PROBABILITY


def test_the_test_finds_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    speculation = AcceptedByTheDraft(drafter())
    monkeypatch.setattr(core, "sample", speculation.sample)
    pairs = transitions(speculation)
    assert pairs.total() == DRAWS
    assert probability_of(pairs) < LEAST_PROBABILITY
