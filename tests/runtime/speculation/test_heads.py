"""Drafts from features: each entry gets the feature and the token that belong together, whatever happens."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.hash_model import VOCAB, HashModel
from tests.runtime.speculation.draft_models import FeatureModel
from tests.runtime.speculation.drafting import Eager, answers_of, engine_of
from tests.runtime.speculation.test_draft_model import PROMPTS
from tokc.runtime.speculation import eagle
from tokc.runtime.speculation.drafter import Drafter
from tokc.runtime.speculation.eagle import EagleDrafter
from tokc.runtime.speculation.medusa import MedusaDrafter
from tokc.runtime.speculation.speculation import Speculation


def drafter_of(model: FeatureModel) -> Drafter:
    kind = EagleDrafter if model.draft.kind == "eagle" else MedusaDrafter
    return kind(model, model.draft)


@pytest.mark.parametrize("kind", ["eagle", "medusa"])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "top_p": 0.9}])
@given(
    prompts=PROMPTS,
    budget=st.integers(3, 16),
    pages=st.integers(10, 40),
    window=st.sampled_from([8, 99]),
    trees=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_features_entries_and_tokens_belong_together(
    params: dict[str, Any],
    kind: str,
    prompts: list[list[int]],
    budget: int,
    pages: int,
    window: int,
    *,
    trees: bool,
) -> None:
    options = {"max_tokens": 14, **params}
    plain = answers_of(engine_of(HashModel(memory=1, num_pages=pages)), prompts, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eagle, "WINDOW_TOKENS", window)
        for speculating in (Eager, Speculation):
            model = FeatureModel(kind, heads=3 if kind == "medusa" else 1, num_pages=pages, trees=trees)
            speculation = speculating(drafter_of(model), most=4, trees=trees)
            engine = engine_of(model, speculation, token_budget=budget)
            for _ in range(2):
                drafted = answers_of(engine, prompts, **options)
                assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]


@pytest.mark.parametrize(
    ("kind", "heads", "temperature"), [("eagle", 1, 0.0), ("eagle", 1, 1.0), ("medusa", 4, 0.0)]
)
def test_a_perfect_draft_makes_five_tokens_a_step(kind: str, heads: int, temperature: float) -> None:
    model = FeatureModel(kind, heads)
    engine = engine_of(model, Eager(drafter_of(model), most=4))
    answers_of(engine, [b"a prompt"], max_tokens=51, ignore_eos=True, temperature=temperature)
    assert engine.counters.steps == 1 + 10
    assert engine.counters.drafts.accepted_at == [10] * 4


def test_an_eagle_follows_several_nodes_of_a_level_in_one_call() -> None:
    model = FeatureModel(trees=True, num_pages=64, max_tokens=64, max_seqs=64)
    engine = engine_of(model, Eager(drafter_of(model), most=3, trees=True))
    answers_of(engine, [b"a prompt"], max_tokens=41, ignore_eos=True)
    assert engine.counters.steps == 1 + 10
    assert engine.counters.drafts.accepted_at == [10] * 3
    assert [len(step.input_ids) for step in model.draft.steps] == [8, 3, 9, *[4, 3, 9] * 9]


def test_a_drawn_token_is_drafted_with_the_number_that_draws_it() -> None:
    model = FeatureModel()
    drafter = drafter_of(model)
    engine = engine_of(model, Eager(drafter, most=4))
    answers_of(engine, [b"abc"] * 4, max_tokens=40, ignore_eos=True, temperature=1.5)
    counts = engine.counters.drafts
    assert counts.accepted == counts.verified > 60


def test_a_smaller_vocabulary_is_mapped_to_the_models_tokens() -> None:
    vocabulary = np.arange(0, VOCAB, 2, dtype=np.int32)
    model = FeatureModel(vocabulary=vocabulary)
    engine = engine_of(model, Eager(drafter_of(model), most=2))
    plain = answers_of(engine_of(HashModel(memory=1)), [b"abc"], max_tokens=60, ignore_eos=True)
    drafted = answers_of(engine, [b"abc"], max_tokens=60, ignore_eos=True)
    assert drafted[0].token_ids == plain[0].token_ids
    counts = engine.counters.drafts
    assert 0 < counts.accepted < counts.verified


def test_without_drafts_nothing_is_computed_and_a_bounded_window_is_kept() -> None:
    model = FeatureModel(num_pages=64, context_length=200)
    drafter = drafter_of(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eagle, "WINDOW_TOKENS", 16)
        engine = engine_of(model, Eager(drafter, most=4))
        speculation = engine._core.speculation
        assert speculation is not None
        speculation.most = 0
        request = engine.request(list(bytes(range(50))), _params(40))
        engine._loop.submit(request)
        while request.sequence.output_length < 20:
            engine.step()
        assert model.draft.steps == []
        assert drafter.due(request.sequence) <= 16  # type: ignore[operator]
        speculation.most = 4
        while not request.done:
            engine.step()
    counts = engine.counters.drafts
    assert counts.accepted == counts.verified > 10
    assert model.draft.steps[0].positions[0] == 0


def _params(tokens: int) -> Any:
    from tokc.runtime.sequence import SamplingParams

    return SamplingParams(max_tokens=tokens, ignore_eos=True)
