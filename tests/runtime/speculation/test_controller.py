"""Drafts from the text so far: the answers are the same, steps are fewer where the text repeats itself."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.conftest import MakeEngine
from tokc.runtime.engine import Engine
from tokc.runtime.speculation.config import MAX_TOKENS
from tokc.runtime.speculation.controller import Speculation
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.step_time import StepTime
from tokc.runtime.speculation.suffix_index import SuffixAutomaton

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=60)
PROMPTS = st.lists(st.binary(min_size=1, max_size=14).map(list), min_size=1, max_size=5)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PARAMS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "top_p": 0.9, "seed": 5},
    {"temperature": 0.5, "repetition_penalty": 1.2, "presence_penalty": 0.5, "seed": 3, "logprobs": 2},
    {"logit_bias": {65: 4.0, 66: 4.0}},
)


class Eager(Speculation):
    """Drafts all it can, whatever it costs, so that drafts fail often."""

    def drafts(self, sequences: Any, tokens: int, room: int) -> Any:
        found = {}
        for sequence in sequences:
            draft = self._offer(sequence, room)
            room -= len(draft)
            if draft:
                found[sequence] = draft
        return found


class Cheap(StepTime):
    """A machine on which a token more costs a step what it is taken to before one was timed."""

    def learn(self, tokens: int, seconds: float) -> None:
        """Learn nothing: the tiny model's own time is all Python's."""


def longest_repeated_suffix(text: list[int]) -> int:
    for length in range(len(text) - 1, 0, -1):
        if any(text[at : at + length] == text[-length:] for at in range(len(text) - length)):
            return length
    return 0


@given(TEXTS)
def test_the_automaton_finds_the_longest_suffix_that_was_there_before(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for at, token in enumerate(text):
        automaton.extend(token)
        so_far = text[: at + 1]
        length, end = automaton.match_length, automaton.match_end
        assert length == longest_repeated_suffix(so_far)
        if length:
            assert end <= at
            assert so_far[end - length : end] == so_far[-length:]


@pytest.mark.parametrize("params", PARAMS)
@given(PROMPTS, st.integers(1, 16), st.integers(9, 24), st.integers(1, 3))
@FEW
def test_answers_are_the_same_with_and_without_drafts(
    make_engine: MakeEngine,
    params: dict[str, Any],
    prompts: list[list[int]],
    budget: int,
    pages: int,
    memory: int,
) -> None:
    plain = make_engine(memory=memory).generate_all(prompts, max_tokens=20, **params)
    engine = make_engine(token_budget=budget, num_pages=pages, memory=memory, speculation=Eager())
    for _ in range(2):
        drafted = engine.generate_all(prompts, max_tokens=20, **params)
        for left, right in zip(plain, drafted, strict=True):
            assert (left.text, left.token_ids, left.logprobs) == (right.text, right.token_ids, right.logprobs)
            assert left.finish_reason == right.finish_reason
            assert left.usage.completion_tokens == right.usage.completion_tokens
    gauges = engine.gauges
    assert gauges.running == gauges.waiting == gauges.pages_used == 0


@pytest.mark.parametrize("stop", ["a", "ab", "\x00"])
def test_a_stop_string_within_a_draft_ends_where_it_would_have(make_engine: MakeEngine, stop: str) -> None:
    for seed in range(40):
        options = {
            "max_tokens": 40,
            "temperature": 0.8,
            "seed": seed,
            "logit_bias": dict.fromkeys(b"ab\x00", 6.0),
        }
        plain = make_engine(memory=1).generate(list(b"abab"), stop=[stop], **options)  # type: ignore[arg-type]
        drafted = make_engine(memory=1, speculation=Eager()).generate(list(b"abab"), stop=[stop], **options)  # type: ignore[arg-type]
        assert (plain.text, plain.token_ids) == (drafted.text, drafted.token_ids)


def steps_for(engine: Engine, tokens: int) -> int:
    engine.generate(list(b"tell me a story"), max_tokens=tokens, ignore_eos=True)
    return engine.counters.steps


def test_a_text_that_repeats_itself_takes_a_fraction_of_the_steps(make_engine: MakeEngine) -> None:
    speculation = Speculation()
    speculation.time = Cheap()
    engine = make_engine(memory=1, context_length=256, num_pages=80, speculation=speculation)
    assert steps_for(engine, 200) < 100
    assert speculation.held > 100


def test_a_text_that_never_repeats_drafts_nothing(make_engine: MakeEngine) -> None:
    speculation = Speculation()
    assert steps_for(make_engine(context_length=64, speculation=speculation), 40) == 40
    assert speculation.drafted == 0


def test_no_draft_is_made_where_a_token_more_costs_a_step_more() -> None:
    speculation = Speculation()
    for tokens in range(1, 9):
        for _ in range(20):
            speculation.time.learn(tokens, 0.01 * tokens)
    base, slope = speculation.time.line()
    assert slope == pytest.approx(0.01, rel=0.1)
    assert base == pytest.approx(0.0, abs=2e-3)


def test_the_line_is_learned_from_steps_and_begins_with_a_guess() -> None:
    time = StepTime()
    base, slope = time.line()
    assert 0.05 < slope / (base + slope) < 0.3
    for tokens in (1, 2, 4, 8) * 30:
        time.learn(tokens, 0.004 + 0.0001 * tokens)
    base, slope = time.line()
    assert slope == pytest.approx(0.0001, rel=0.1)


def test_drafts_go_round_a_loop_and_stay_bounded() -> None:
    drafter = NgramDrafter()
    assert drafter.draft([1, 2, 3], MAX_TOKENS) == []
    assert drafter.draft([1, 2, 3, 1, 2, 3, 1, 2], 5) == [3, 1, 2, 3, 1]


def test_acceptance_falls_with_refused_drafts_and_recovers_without_any() -> None:
    drafter = NgramDrafter()
    first = drafter.acceptance
    for _ in range(20):
        drafter.learn(4, 0)
    low = drafter.acceptance
    assert low < first / 4
    for _ in range(200):
        drafter.learn(0, 0)
    assert drafter.acceptance > 0.8 * first
