"""Drafts are measured in turns with and without, and the tokens of both are the same."""

import pytest

from tests.runtime.hash_model import HashModel
from tests.runtime.speculation.drafting import Eager, engine_of
from tokc.cost.measure import Load
from tokc.cost.speculation import Passages, measure
from tokc.errors import TokcError


def test_each_batch_is_measured_with_drafts_and_without() -> None:
    model = HashModel(memory=1, num_pages=512, max_tokens=64, context_length=128)
    engine = engine_of(model, Eager())
    found = measure(engine, "To be or not to be. " * 40, (1, 3), Load(12, 60, 3))
    assert [one.batch for one in found] == [1, 3]
    for one in found:
        assert one.tokens_per_s.repetitions == one.speedup.repetitions == 3
        assert one.drafts > 0
        assert 1 < one.mean_acceptance_length < 13
        assert sum(one.accepted_at) <= sum(one.verified_at)
    assert sum(sum(one.accepted_at) for one in found) == engine.counters.drafts.accepted


def test_passages_are_each_seen_once_while_there_are_such() -> None:
    passages = Passages(list(range(10)), 4)
    assert passages.take(3) == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    with pytest.raises(TokcError, match="the text has 3 tokens, a prompt 4"):
        Passages([1, 2, 3], 4)
