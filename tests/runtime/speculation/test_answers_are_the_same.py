"""Whatever is drafted, the answers are the same: with chunks, few pages, shared pages, stops and grammars."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.conftest import MakeEngine
from tests.runtime.speculation.drafting import Arbitrary, Eager
from tokc.runtime.engine import Engine
from tokc.runtime.grammar import Constraint
from tokc.runtime.sequence import Result, SamplingParams
from tokc.runtime.speculation.answers import Answers
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.speculation import Speculation

PROMPTS = st.lists(st.binary(min_size=1, max_size=14).map(list), min_size=1, max_size=5)
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PARAMS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "top_p": 0.9, "seed": 5},
    {"temperature": 0.5, "repetition_penalty": 1.2, "presence_penalty": 0.5, "seed": 3, "logprobs": 2},
    {"logit_bias": {65: 4.0, 66: 4.0}},
    {"constraint": Constraint("regex", "[a-c]{3,9}x"), "temperature": 0.8, "seed": 1},
)
KINDS = ("lookup", "arbitrary", "arbitrary heads", "chosen")


def speculation(kind: str, plain: list[Result], prompts: list[list[int]], seed: int) -> Speculation:
    if kind == "lookup":
        return Eager(NgramDrafter(Answers()))
    known = {tuple(prompt): result.token_ids for prompt, result in zip(prompts, plain, strict=True)}
    drafter = Arbitrary(known, seed=seed, stride=3 if kind == "arbitrary heads" else 1)
    return Speculation(drafter) if kind == "chosen" else Eager(drafter)


def assert_same(plain: list[Result], drafted: list[Result]) -> None:
    for left, right in zip(plain, drafted, strict=True):
        assert (left.text, left.token_ids, left.logprobs) == (right.text, right.token_ids, right.logprobs)
        assert left.finish_reason == right.finish_reason
        assert left.usage.completion_tokens == right.usage.completion_tokens


@pytest.mark.parametrize("params", PARAMS)
@given(
    prompts=PROMPTS,
    sizes=st.fixed_dictionaries({"token_budget": st.integers(1, 16), "num_pages": st.integers(9, 24)}),
    memory=st.integers(1, 3),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 9),
)
@FEW
def test_whatever_is_drafted(
    make_engine: MakeEngine,
    params: dict[str, Any],
    prompts: list[list[int]],
    *,
    sizes: dict[str, int],
    memory: int,
    kind: str,
    seed: int,
) -> None:
    plain = make_engine(memory=memory).generate_all(prompts, max_tokens=20, **params)
    drafting = speculation(kind, plain, prompts, seed)
    engine = make_engine(memory=memory, speculation=drafting, **sizes)
    for _ in range(2):
        assert_same(plain, engine.generate_all(prompts, max_tokens=20, **params))
    gauges = engine.gauges
    assert gauges.running == gauges.waiting == gauges.pages_used == 0


@given(st.binary(min_size=1, max_size=20), st.integers(2, 4), st.integers(0, 9))
@FEW
def test_several_answers_of_one_prompt(make_engine: MakeEngine, prompt: bytes, forks: int, seed: int) -> None:
    params = [SamplingParams(max_tokens=16, temperature=0.9, seed=fork) for fork in range(forks)]

    def all_of(engine: Engine) -> list[Result]:
        requests = [engine.request(list(prompt), one) for one in params]
        for request in requests:
            engine._loop.submit(request)
        while not all(request.done for request in requests):
            engine.step()
        return [request.result() for request in requests]

    plain = all_of(make_engine(memory=2))
    drafter = Arbitrary({tuple(prompt): plain[0].token_ids}, seed=seed)
    assert_same(plain, all_of(make_engine(memory=2, num_pages=16, speculation=Eager(drafter))))
    assert drafter.forgotten == forks


@pytest.mark.parametrize("stop", ["a", "ab", "\x00"])
def test_a_stop_string_within_a_draft_ends_where_it_would_have(make_engine: MakeEngine, stop: str) -> None:
    for seed in range(12):
        options: dict[str, Any] = {
            "max_tokens": 40,
            "temperature": 0.8,
            "seed": seed,
            "logit_bias": dict.fromkeys(b"ab\x00", 6.0),
        }
        plain = make_engine(memory=1).generate(list(b"abab"), stop=[stop], **options)
        drafted = make_engine(memory=1, speculation=Eager()).generate(list(b"abab"), stop=[stop], **options)
        assert (plain.text, plain.token_ids) == (drafted.text, drafted.token_ids)


def test_what_a_step_computed_is_reported_once_and_in_order(make_engine: MakeEngine) -> None:
    prompt = list(b"a prompt of several chunks, and its answer")
    plain = make_engine().generate(prompt, max_tokens=20)
    drafter = Arbitrary({tuple(prompt): plain.token_ids}, seed=3)
    engine = make_engine(token_budget=9, speculation=Eager(drafter))
    result = engine.generate(prompt, max_tokens=20)
    assert result.token_ids == plain.token_ids
    place = 0
    for computed in drafter.observed:
        assert computed.start == place
        place += len(computed.rows)
    assert len(prompt) < place < len(prompt) + 20
    counts = engine.counters.drafts
    assert 0 < counts.accepted < counts.verified
    assert counts.accepted_at == sorted(counts.accepted_at, reverse=True)
    assert engine.counters.steps == len(drafter.observed) + 1
