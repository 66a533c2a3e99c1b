"""Drawing for many rows at once: the tokens of `draw`, or none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokc.runtime.drawing import draw_together
from tokc.runtime.executors.base import LogitBlocks
from tokc.runtime.sampler import draw, sample, uniform_at
from tokc.runtime.sequence import SamplingParams, Sequence

WIDTH, ERROR = 64, 1e-6

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([None, 1, 3, 20, 5000]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.4, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)


def blocks_of(logits: np.ndarray, params: list[SamplingParams], noise: np.ndarray) -> LogitBlocks:
    """Return what a step finds, its sums as wrong as they may be."""
    blocks = logits.reshape(len(logits), -1, WIDTH)
    away = blocks - blocks.max(axis=(1, 2), keepdims=True)
    away *= np.array([one.scale for one in params], np.float32)[:, None, None]
    sums = np.exp(away, dtype=np.float64).sum(axis=2)
    return LogitBlocks(blocks.max(axis=2), (sums * (1 + ERROR * noise)).astype(np.float32))


def rows_of(seed: int, rows: int, blocks: int, spread: float, *, equals: bool) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, blocks * WIDTH)) * spread
    return np.round(found, 1 if equals else 9).astype(np.float32)


@given(
    st.lists(PARAMS, min_size=1, max_size=8),
    st.integers(0, 10_000),
    st.integers(1, 30),
    st.sampled_from([0.01, 1.0, 3.0, 9.0]),
    st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_a_token_is_that_of_the_whole_row(
    params: list[SamplingParams], seed: int, blocks: int, spread: float, equals: bool
) -> None:
    logits = rows_of(seed, len(params), blocks, spread, equals=equals)
    random = np.random.default_rng(seed)
    uniforms = random.random(len(params)).tolist()
    known = blocks_of(logits, params, random.uniform(-1, 1, (len(params), blocks)))
    found = draw_together(logits, known, range(len(params)), params, uniforms)
    for token, row, one, uniform in zip(found, logits, params, uniforms, strict=True):
        assert token in {None, draw(row, one, uniform)}


@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.95}, {"top_k": 40}, {"top_k": 20, "top_p": 0.8}, {"min_p": 0.05}], ids=str
)
def test_nearly_every_row_of_a_language_model_is_decided(options: dict[str, float]) -> None:
    params = [SamplingParams(temperature=0.8, **options)] * 100  # type: ignore[arg-type]
    logits = rows_of(3, 100, 128, 4.0, equals=False)
    random = np.random.default_rng(1)
    known = blocks_of(logits, params, random.uniform(-1, 1, (100, 128)))
    found = draw_together(logits, known, range(100), params, random.random(100).tolist())
    assert sum(token is not None for token in found) >= 85


def test_rows_that_are_no_numbers_are_left_to_the_whole_row() -> None:
    params = [SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_p=0.9)]
    for odd in (np.inf, -np.inf, np.nan):
        logits = np.full((2, 2 * WIDTH), odd, np.float32)
        with np.errstate(all="ignore"):
            known = LogitBlocks(logits.reshape(2, 2, WIDTH).max(axis=2), np.ones((2, 2), np.float32))
            assert draw_together(logits, known, [0, 1], params, [0.5, 0.5]) == [None, None]


def test_what_a_step_found_changes_no_choice() -> None:
    """Greedy, drawn, penalized and early rows side by side, over several tokens."""
    kinds = [
        {},
        {"temperature": 0.8},
        {"temperature": 0.8, "top_p": 0.9, "logprobs": 2},
        {"temperature": 1.0, "frequency_penalty": 1.0},
        {"temperature": 1.0, "min_tokens": 3, "min_p": 0.1},
        {"temperature": 1.2, "top_k": 5},
    ]

    def tokens(*, known: bool) -> list[object]:
        sequences = [Sequence([0], SamplingParams(**kind), seed=9, last_output=99) for kind in kinds]  # type: ignore[arg-type]
        said = []
        for step in range(20):
            logits = rows_of(step, len(kinds), 4, 3.0, equals=False)
            # What a row without a scale has is of an earlier step.
            noise = np.zeros((len(kinds), 4))
            blocks = blocks_of(logits, [one.params for one in sequences], noise) if known else None
            choices = sample(logits, sequences, range(len(kinds)), None, blocks)
            for sequence, (token, _) in zip(sequences, choices, strict=True):
                sequence.append(token)
            said += choices
        return said

    assert tokens(known=True) == tokens(known=False)


def test_numbers_ahead_are_those_of_their_tokens() -> None:
    sequence = Sequence([0], SamplingParams(temperature=1.0), seed=2**64 - 3, last_output=99)
    logits = np.zeros((1, WIDTH), np.float32)
    for index in range(40):
        token = sample(logits, [sequence], [0])[0][0]
        assert token == draw(logits[0], sequence.params, uniform_at(sequence.seed, index))
        sequence.append(token)
