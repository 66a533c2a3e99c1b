"""The server, as OpenAI's own client sees it."""

import asyncio
import json

import openai
import pytest

from tests.runtime.conftest import MakeEngine
from tests.runtime.hash_model import EOS
from tests.runtime.server.background import MESSAGES, PROMPT, Served
from tests.runtime.server.conftest import Serve


def test_a_completion_is_the_engines_own_text(served: Served, make_engine: MakeEngine) -> None:
    expected = make_engine().generate(PROMPT, max_tokens=12)
    answer = served.client.completions.create(model="hash", prompt=PROMPT, max_tokens=12)
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == len(expected.token_ids)


def test_streamed_pieces_make_the_whole_answer(served: Served) -> None:
    whole = served.client.chat.completions.create(model="hash", messages=MESSAGES, max_tokens=16)
    stream = served.client.chat.completions.create(
        model="hash", messages=MESSAGES, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == [whole.choices[0].finish_reason]


def test_many_clients_at_once_each_get_their_own_answer(served: Served, make_engine: MakeEngine) -> None:
    prompts = [f"prompt {index}" for index in range(12)]
    alone = [make_engine().generate(prompt, max_tokens=10).text for prompt in prompts]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            calls = (client.completions.create(model="hash", prompt=p, max_tokens=10) for p in prompts)
            return [answer.choices[0].text for answer in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == alone


def test_a_seed_repeats_and_each_choice_has_its_own(served: Served) -> None:
    def ask() -> list[str]:
        answer = served.client.completions.create(
            model="hash", prompt=PROMPT, max_tokens=10, temperature=1.0, seed=7, n=3
        )
        return [choice.text for choice in answer.choices]

    first = ask()
    assert first == ask()
    assert len(set(first)) == 3


def test_several_prompts_and_echo(served: Served) -> None:
    answer = served.client.completions.create(model="hash", prompt=["ab", "cd"], max_tokens=3, echo=True)
    assert [choice.text[:2] for choice in answer.choices] == ["ab", "cd"]
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_stop_and_logprobs(served: Served) -> None:
    plain = served.client.completions.create(model="hash", prompt=PROMPT, max_tokens=20)
    character = next(c for c in plain.choices[0].text if c.isascii() and c.isprintable())
    stopped = served.client.completions.create(model="hash", prompt=PROMPT, max_tokens=20, stop=[character])
    assert stopped.choices[0].text == plain.choices[0].text.split(character)[0]
    assert stopped.choices[0].finish_reason == "stop"
    chat = served.client.chat.completions.create(
        model="hash", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in logprobs.content)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ],
)
def test_a_wrong_request_is_answered_with_the_field(
    served: Served, change: dict[str, object], field: str
) -> None:
    body = {"model": "hash", "messages": MESSAGES, "max_tokens": 4, **change}
    with pytest.raises(openai.BadRequestError) as refusal:
        served.client.post("/chat/completions", body=body, cast_to=object)
    assert refusal.value.body["param"] == field  # type: ignore[index]
    assert refusal.value.body["type"] == "invalid_request_error"  # type: ignore[index]


def test_an_unknown_model_and_an_unknown_path(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        served.client.completions.create(model="other", prompt=PROMPT)
    with pytest.raises(openai.NotFoundError):
        served.client.get("/nothing", cast_to=object)


def test_models_health_and_metrics(serve: Serve) -> None:
    served = serve()
    assert [model.id for model in served.client.models.list()] == ["hash"]
    assert served.client.models.retrieve("hash").id == "hash"
    assert json.loads(served.get("/health")) == {"status": "ok"}
    served.client.completions.create(model="hash", prompt=PROMPT, max_tokens=5)
    samples = dict(
        line.rsplit(" ", 1) for line in served.get("/metrics").splitlines() if not line.startswith("#")
    )
    assert float(samples["tokc_output_tokens_total"]) >= 1
    assert float(samples["tokc_ttft_seconds_count"]) == 1
    assert float(samples["tokc_requests_running"]) == 0


def test_a_client_that_leaves_gives_its_pages_back(served: Served) -> None:
    stream = served.client.completions.create(
        model="hash", prompt=PROMPT, max_tokens=50, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    served.wait_until_idle()


def test_the_end_of_text_token_is_no_text(served: Served) -> None:
    answer = served.client.completions.create(
        model="hash", prompt=PROMPT, max_tokens=5, logit_bias={str(EOS): 100}
    )
    assert answer.choices[0].text == ""
    assert answer.choices[0].finish_reason == "stop"
