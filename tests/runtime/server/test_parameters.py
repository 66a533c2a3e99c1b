"""Every parameter does what OpenAI says, or is refused by name."""

import json

import openai
import pytest

from tests.runtime.conftest import MakeEngine
from tests.runtime.hash_model import EOS, HashModel, byte_tokenizer
from tests.runtime.server.background import MESSAGES, PROMPT, Served, serving
from tokc.runtime.engine import Engine
from tokc.runtime.executors.base import Batch, Float32s
from tokc.runtime.server.parameters import CHAT, CHAT_REFUSED, COMPLETION, COMPLETION_REFUSED
from tokc.runtime.server.service import Service

LONG = {"prompt": PROMPT, "max_tokens": 40, "ignore_eos": True}
# One value that asks for something, for every parameter that is refused.
ASKING = {"store": True, "metadata": {"a": "b"}}


def text_of(served: Served, **body: object) -> str:
    answer = served.post("/v1/completions", {**LONG, **body})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def refusal(served: Served, path: str, body: object) -> dict[str, str]:
    answer = served.post(path, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return dict(error)


def test_no_parameter_is_in_two_tables() -> None:
    assert not COMPLETION.keys() & COMPLETION_REFUSED.keys()
    assert not CHAT.keys() & CHAT_REFUSED.keys()


@pytest.mark.parametrize(
    ("path", "least", "refused"),
    [
        ("/v1/completions", {"prompt": PROMPT}, COMPLETION_REFUSED),
        ("/v1/chat/completions", {"messages": MESSAGES}, CHAT_REFUSED),
    ],
)
def test_what_is_not_available_is_refused_by_name_unless_it_asks_for_nothing(
    served: Served, path: str, least: dict[str, object], refused: dict[str, object]
) -> None:
    for name, row in refused.items():
        error = refusal(served, path, {**least, name: ASKING.get(name, "something")})
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        for value in row.harmless:  # type: ignore[attr-defined]
            assert served.post(path, {**least, "max_tokens": 1, name: value}).status_code == 200, name
        assert served.post(path, {**least, "max_tokens": 1, name: None}).status_code == 200, name


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"tempreature": 1}, "tempreature", "unknown_parameter"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": 10**400}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", None),
        ({"stop_token_ids": [9999]}, "stop_token_ids", None),
        ({"prompt": [9999]}, "prompt", None),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [["a"]]}, "prompt", "invalid_value"),
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": "x" * 64}, "prompt", "context_length_exceeded"),
        ({"max_tokens": 61}, "max_tokens", "context_length_exceeded"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", None),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"prompt": ["a"] * 100, "n": 2}, "n", "invalid_value"),
        ({"echo": True, "logprobs": 1}, "echo", "invalid_value"),
        ({"priority": 1000}, "priority", "invalid_value"),
    ],
)
def test_a_wrong_value_is_named(
    served: Served, change: dict[str, object], param: str, code: str | None
) -> None:
    error = refusal(served, "/v1/completions", {"prompt": PROMPT, **change})
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].text"),
        ({"messages": "hi"}, "messages"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ],
)
def test_a_wrong_chat_is_named(served: Served, change: dict[str, object], param: str) -> None:
    assert refusal(served, "/v1/chat/completions", {"messages": MESSAGES, **change})["param"] == param


def test_a_stop_text_across_tokens_ends_a_stream_before_it(served: Served) -> None:
    text = text_of(served)
    start = next(i for i in range(2, len(text) - 3) if text[i : i + 3].isascii())
    stop = text[start : start + 3]
    stream = served.client.completions.create(
        model="hash", prompt=PROMPT, max_tokens=40, stop=["never", stop], stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_min_tokens_holds_back_the_end_and_stop_texts(served: Served) -> None:
    ends = {"logit_bias": {str(EOS): 100}, "ignore_eos": False, "max_tokens": 9, "logprobs": 0}
    answer = served.post("/v1/completions", {**LONG, **ends, "min_tokens": 5}).json()
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["choices"][0]["finish_reason"] == "stop"
    plain = text_of(served)
    character = next(c for c in plain if c.isascii())
    assert plain.index(character) < 20
    kept = text_of(served, stop=character, min_tokens=39)
    assert kept.startswith(plain[: plain.index(character) + 1])


def test_stop_token_ids_end_even_where_the_models_end_is_ignored(served: Served) -> None:
    tokens = served.post("/v1/completions", {**LONG, "logprobs": 0}).json()["choices"][0]
    first = served.engine.generate(PROMPT, max_tokens=5, ignore_eos=True).token_ids
    answer = served.post("/v1/completions", {**LONG, "stop_token_ids": [first[4]]}).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == first.index(first[4]) + 1
    assert tokens["finish_reason"] == "length"


@pytest.mark.parametrize(
    "change",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 5.0},
        {"logit_bias": {"65": 100}},
        {"temperature": 1.5, "seed": 3},
    ],
)
def test_what_changes_the_choice_does_as_in_the_engine(
    served: Served, make_engine: MakeEngine, change: dict[str, object]
) -> None:
    bias = {int(token): value for token, value in change.get("logit_bias", {}).items()}  # type: ignore[attr-defined]
    options = {**change, **({"logit_bias": bias} if bias else {})}
    expected = make_engine().generate(PROMPT, max_tokens=40, ignore_eos=True, **options)  # type: ignore[arg-type]
    assert text_of(served, **change) == expected.text
    assert text_of(served) != expected.text


@pytest.mark.parametrize("change", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_filters_that_leave_one_token_are_greedy(served: Served, change: dict[str, object]) -> None:
    assert text_of(served, temperature=1.8, seed=1, **change) == text_of(served)


def test_best_of_returns_the_likeliest(served: Served) -> None:
    sampling = {**LONG, "temperature": 1.0, "seed": 5, "max_tokens": 8, "logprobs": 0}
    every = served.post("/v1/completions", {**sampling, "n": 4}).json()["choices"]
    best = max(every, key=lambda choice: sum(choice["logprobs"]["token_logprobs"]) / 8)
    answer = served.post("/v1/completions", {**sampling, "best_of": 4}).json()
    assert [choice["text"] for choice in answer["choices"]] == [best["text"]]
    assert answer["usage"]["completion_tokens"] == 32
    silent = {name: value for name, value in sampling.items() if name != "logprobs"}
    assert served.post("/v1/completions", {**silent, "best_of": 4}).json()["choices"][0]["logprobs"] is None


def test_log_probabilities_of_a_completion_add_up_to_its_text(served: Served) -> None:
    choice = served.post("/v1/completions", {**LONG, "logprobs": 2}).json()["choices"][0]
    logprobs = choice["logprobs"]
    offsets = [0]
    for token in logprobs["tokens"][:-1]:
        offsets.append(offsets[-1] + len(token))
    assert logprobs["text_offset"] == offsets
    assert all(token.startswith("bytes:\\x") or len(token) == 1 for token in logprobs["tokens"])
    for token, value, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == value
        assert 2 <= len(top) <= 3
    events = list(
        served.client.completions.create(
            model="hash", prompt=PROMPT, max_tokens=40, logprobs=2, stream=True,
            extra_body={"ignore_eos": True},
        )
    )  # fmt: skip
    streamed = [event.choices[0].logprobs for event in events if event.choices[0].logprobs]
    assert [offset for part in streamed for offset in part.text_offset or []] == offsets


def test_chat_log_probabilities_carry_the_bytes(served: Served) -> None:
    answer = served.client.chat.completions.create(
        model="hash", messages=MESSAGES, max_tokens=12, logprobs=True, extra_body={"ignore_eos": True}
    )
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    said = b"".join(bytes(one.bytes or []) for one in content if one.bytes and len(one.bytes) == 1)
    assert len(said) == len([one for one in content if len(one.bytes or []) == 1])
    assert all(one.top_logprobs == [] for one in content)


class Reciter(HashModel):
    """Says one text after any prompt of one token, byte by byte."""

    text = "añ→😀 née 中文 👩‍🔬 \x85\u2028\u2029\x1c\r\n.".encode()

    def step(self, batch: Batch) -> Float32s:
        logits = super().step(batch) * 0
        for row, index in enumerate(batch.logit_rows.tolist()):
            logits[row, self.tokens[int(batch.positions[index]) % len(self.tokens)]] = 50
        return logits

    tokens = byte_tokenizer().encode(text.decode())


def test_no_character_is_split_in_a_stream() -> None:
    engine = Engine(Reciter(), byte_tokenizer(), name="hash")
    count = len(Reciter.text)
    with serving(Service(engine)) as served:
        body = {"prompt": [65], "max_tokens": count, "stream": True}
        with served.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
        pieces = [json.loads(line[6:])["choices"][0]["text"] for line in lines]
        assert "".join(pieces) == Reciter.text.decode()
        assert pieces[:4] == ["a", "ñ", "→", "😀"]
        cut = served.post("/v1/completions", {**body, "stream": False, "max_tokens": 8}).json()
        assert cut["choices"][0]["text"] == "añ→"
    engine.close()


def test_messages_may_be_parts_and_from_a_developer(served: Served) -> None:
    parts = [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    plain = [{"role": "system", "content": "a"}, {"role": "user", "content": "hi"}]
    one, other = (
        served.client.chat.completions.create(model="hash", messages=messages, max_tokens=5)  # type: ignore[arg-type]
        for messages in (parts, plain)
    )
    assert one.choices[0].message.content == other.choices[0].message.content
    assert one.usage is not None
    assert other.usage is not None
    assert one.usage.prompt_tokens == other.usage.prompt_tokens


def test_streams_of_several_choices_are_the_whole_ones(served: Served) -> None:
    body = {"messages": MESSAGES, "n": 3, "temperature": 1.0, "seed": 1, "max_tokens": 8}
    whole = served.client.chat.completions.create(model="hash", **body)  # type: ignore[call-overload]
    texts = ["", "", ""]
    for chunk in served.client.chat.completions.create(model="hash", stream=True, **body):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_an_error_of_a_stream_before_its_first_piece_is_an_ordinary_one(served: Served) -> None:
    with pytest.raises(openai.BadRequestError):
        served.client.completions.create(model="hash", prompt="x" * 64, stream=True)
