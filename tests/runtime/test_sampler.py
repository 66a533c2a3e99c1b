"""Choosing tokens: against plain numpy, and the same for a row whatever rows are beside it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokc.errors import RequestRefused
from tokc.runtime.sampler import _nucleus, draw, sample, top_ids, uniform_at
from tokc.runtime.sequence import SamplingParams, Sequence

VOCAB = 50


def logits_of(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * 3).astype(np.float32)


def choose(logits: np.ndarray, prompt: list[int] | None = None, **options: object) -> int:
    sequence = Sequence(prompt or [0], SamplingParams(**options), seed=1, last_output=10)  # type: ignore[arg-type]
    return sample(logits[None], [sequence], [0])[0][0]


def allowed(logits: np.ndarray, **options: object) -> set[int]:
    """Return the tokens that can be drawn, by sweeping the random number."""
    params = SamplingParams(temperature=1.0, **options)  # type: ignore[arg-type]
    return {draw(logits, params, uniform) for uniform in np.linspace(0, 1, 4000, endpoint=False)}


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[[7, 30]] = 5
    assert choose(logits) == 7


@given(st.integers(0, 99), st.integers(1, VOCAB))
@settings(deadline=None)
def test_top_k_leaves_the_k_likeliest(seed: int, k: int) -> None:
    logits = logits_of(seed)
    assert allowed(logits, top_k=k) <= set(np.argsort(-logits, kind="stable")[:k].tolist())


@given(st.integers(0, 99), st.floats(0.05, 0.99))
@settings(deadline=None)
def test_top_p_leaves_the_smallest_set_that_reaches_p(seed: int, p: float) -> None:
    logits = logits_of(seed)
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(logits - logits.max(), dtype=np.float64)
    reached = np.cumsum(probabilities[order]) / probabilities.sum()
    size = int(np.searchsorted(reached, p)) + 1
    assert allowed(logits, top_p=p) <= set(order[: size + 1].tolist())
    assert int(order[0]) in allowed(logits, top_p=p)


@given(
    st.integers(0, 99),
    st.integers(1, 3000),
    st.sampled_from([0.01, 0.3, 1.0, 4.0]),
    st.floats(1e-6, 1, exclude_max=True),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_a_nucleus_is_the_beginning_of_all_tokens_in_order(
    seed: int, vocab: int, spread: float, p: float, equals: bool
) -> None:
    logits = np.random.default_rng(seed).standard_normal(vocab).astype(np.float32) * np.float32(spread)
    weights = np.exp(np.round(logits - logits.max(), 1 if equals else 9))
    order = np.argsort(-weights, kind="stable")
    reached = np.cumsum(weights[order], dtype=np.float64)
    size = int(np.searchsorted(reached, p * float(weights.sum(dtype=np.float64)))) + 1
    assert _nucleus(weights, p).tolist() == order[:size].tolist()


@given(st.integers(0, 99), st.floats(0.01, 0.9))
@settings(deadline=None)
def test_min_p_leaves_tokens_near_the_likeliest(seed: int, p: float) -> None:
    logits = logits_of(seed)
    ratios = np.exp(logits - logits.max())
    assert allowed(logits, min_p=p) <= set(np.flatnonzero(ratios >= p * 0.999).tolist())


def test_draws_follow_the_probabilities() -> None:
    logits = logits_of(3)
    probabilities = np.exp(logits - logits.max(), dtype=np.float64)
    probabilities /= probabilities.sum()
    params = SamplingParams(temperature=1.0)
    draws = [draw(logits, params, uniform_at(5, index)) for index in range(20_000)]
    found = np.bincount(draws, minlength=VOCAB) / len(draws)
    assert np.abs(found - probabilities).max() < 0.012


def test_a_bias_and_the_penalties_move_the_choice() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[3], logits[4] = 2.0, 1.9
    assert choose(logits, logit_bias={9: 5.0}) == 9
    assert choose(logits, prompt=[3], repetition_penalty=1.5) == 4
    sequence = Sequence([0], SamplingParams(frequency_penalty=0.5), seed=1, last_output=10)
    said = [sample(logits[None], [sequence], [0])[0][0] for _ in range(3)]
    assert said == [3, 4, 3]


def test_log_probabilities_are_the_models_own() -> None:
    logits = logits_of(9)
    sequence = Sequence([0], SamplingParams(logprobs=3, temperature=0.5, seed=1), seed=1, last_output=9)
    token, reported = sample(logits[None], [sequence], [0])[0]
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    assert reported is not None
    assert reported.logprob == pytest.approx(float(expected[token]), abs=1e-5)
    assert [one for one, _ in reported.top] == np.argsort(-logits, kind="stable")[:3].tolist()


def test_a_row_is_chosen_alike_beside_any_others() -> None:
    rows = np.stack([logits_of(seed) for seed in range(6)])
    params = SamplingParams(temperature=0.8, top_p=0.9)
    sequences = [Sequence([0], params, seed=seed, last_output=9) for seed in range(6)]
    together = [token for token, _ in sample(rows, sequences, range(6))]
    alone = [sample(rows, [sequences[i]], [i])[0][0] for i in range(6)]
    assert together == alone


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 40))
@settings(deadline=None)
def test_top_ids_orders_equal_values_by_id(values: list[int], count: int) -> None:
    row = np.array(values, np.float32)
    assert top_ids(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_p": 0}, {"top_k": 0}, {"max_tokens": 0}, {"stop": ("",)}]
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(RequestRefused, match=next(iter(options))):
        SamplingParams(**options)  # type: ignore[arg-type]
