"""The engine over a model that reads its whole cache for each logit: a wrong page changes the tokens."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.conftest import MakeEngine
from tests.runtime.hash_model import EOS, history_logits
from tokc.errors import RequestRefused
from tokc.runtime.engine import Engine

PROMPTS = st.lists(st.binary(min_size=1, max_size=14).map(list), min_size=1, max_size=6)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def walk(prompt: list[int], count: int) -> list[int]:
    """Return the greedy continuation, computed without an engine or a cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(history_logits(tokens).argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


def idle(engine: Engine) -> bool:
    """Say whether no request holds a page."""
    gauges = engine.gauges
    return gauges.running == gauges.waiting == gauges.pages_used == 0


def test_greedy_tokens_are_the_models_likeliest(make_engine: MakeEngine) -> None:
    prompt = list(b"once upon a time")
    assert list(make_engine().generate(prompt, max_tokens=30).token_ids) == walk(prompt, 30)


@given(PROMPTS, st.integers(1, 16), st.integers(8, 24), st.booleans())
@FEW
def test_no_answer_depends_on_the_batch_the_chunks_the_pages_or_the_prefix_cache(
    make_engine: MakeEngine, prompts: list[list[int]], budget: int, pages: int, prefix_cache: bool
) -> None:
    engine = make_engine(token_budget=budget, prefix_cache=prefix_cache, num_pages=pages)
    for _ in range(2):
        results = engine.generate_all(prompts, max_tokens=12)
        assert [list(result.token_ids) for result in results] == [walk(prompt, 12) for prompt in prompts]
    assert idle(engine)


@given(PROMPTS, st.integers(1, 16), st.integers(0, 2**63 - 1))
@FEW
def test_a_seeded_draw_depends_on_the_seed_alone(
    make_engine: MakeEngine, prompts: list[list[int]], budget: int, seed: int
) -> None:
    sampling = {"max_tokens": 8, "temperature": 0.9, "top_p": 0.9, "seed": seed}
    alone = [make_engine().generate(prompt, **sampling).token_ids for prompt in prompts]  # type: ignore[arg-type]
    together = make_engine(token_budget=budget).generate_all(prompts, **sampling)  # type: ignore[arg-type]
    assert [result.token_ids for result in together] == alone


def test_preemption_happens_and_changes_nothing(make_engine: MakeEngine) -> None:
    prompts = [list(f"prompt number {index}".encode()) for index in range(6)]
    engine = make_engine(num_pages=14)
    results = engine.generate_all(prompts, max_tokens=24, ignore_eos=True)
    assert engine.gauges.preemptions > 0
    plain = make_engine(num_pages=256).generate_all(prompts, max_tokens=24, ignore_eos=True)
    assert [result.token_ids for result in results] == [result.token_ids for result in plain]


def test_a_repeated_prompt_is_found_in_the_cache(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = list(b"the same twelve and more")
    first, second = (engine.generate(prompt, max_tokens=4) for _ in range(2))
    assert first.usage.cached_tokens == 0
    assert (
        second.usage.cached_tokens >= len(prompt) // engine.executor.page_size * engine.executor.page_size - 4
    )
    assert second.token_ids == first.token_ids


def test_the_stream_is_the_answer_in_pieces(make_engine: MakeEngine) -> None:
    engine = make_engine()
    whole = engine.generate("abc", max_tokens=20)
    assert "".join(delta.text for delta in engine.stream("abc", max_tokens=20)) == whole.text


def test_leaving_a_stream_gives_the_pages_back(make_engine: MakeEngine) -> None:
    engine = make_engine()
    stream = engine.stream("abc", max_tokens=40, ignore_eos=True)
    next(stream)
    assert not idle(engine)
    stream.close()  # type: ignore[attr-defined]
    assert idle(engine)


def test_a_stop_string_may_lie_across_tokens_and_is_not_shown(make_engine: MakeEngine) -> None:
    engine = make_engine()
    text = engine.generate("abc", max_tokens=30, ignore_eos=True).text
    start = next(i for i in range(3, len(text) - 3) if text[i : i + 3].isascii() and text[i : i + 3].strip())
    stop = text[start : start + 3]
    result = engine.generate("abc", max_tokens=30, ignore_eos=True, stop=(stop,))
    assert result.text == text[: text.index(stop)]
    assert result.finish_reason == "stop"


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(make_engine: MakeEngine) -> None:
    with pytest.raises(RequestRefused, match=r"70 tokens; the context of 64"):
        make_engine().generate([1] * 70)


def test_an_empty_prompt_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(RequestRefused, match="empty"):
        make_engine().generate("")


def test_asynchronous_answers_are_the_synchronous_ones(make_engine: MakeEngine) -> None:
    prompts = [f"prompt {index}" for index in range(8)]
    expected = [result.text for result in make_engine().generate_all(prompts, max_tokens=10)]
    engine = make_engine()

    async def ask() -> list[str]:
        results = await asyncio.gather(*(engine.agenerate(prompt, max_tokens=10) for prompt in prompts))
        return [result.text for result in results]

    assert asyncio.run(ask()) == expected


def test_cancelling_a_task_gives_the_pages_back(make_engine: MakeEngine) -> None:
    engine = make_engine(context_length=4096, num_pages=1024)

    async def start_and_cancel() -> None:
        task = asyncio.create_task(engine.agenerate("abc", max_tokens=4000, ignore_eos=True))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(200):
            if idle(engine):
                return
            await asyncio.sleep(0.01)

    asyncio.run(start_and_cancel())
    assert idle(engine)
