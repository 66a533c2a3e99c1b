"""Structured output as OpenAI's client and vLLM's parameters ask for it."""

import json
import re
from typing import Literal

import openai
import pydantic
import pytest

from tests.runtime.server.background import MESSAGES, PROMPT, Served

SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer", "minimum": 1, "maximum": 9}, "kind": {"enum": ["a", "b"]}},
    "required": ["size", "kind"],
    "additionalProperties": False,
}


class Pet(pydantic.BaseModel):
    size: Literal[1, 2, 3]
    kind: Literal["cat", "dog"]


def test_the_official_client_parses_what_comes_back(roomy: Served) -> None:
    answer = roomy.client.chat.completions.parse(
        model="hash", messages=MESSAGES, response_format=Pet, max_tokens=200, temperature=1.0, seed=3
    )
    pet = answer.choices[0].message.parsed
    assert isinstance(pet, Pet)
    assert answer.choices[0].finish_reason == "stop"


def test_streamed_pieces_make_the_object(roomy: Served) -> None:
    with roomy.client.chat.completions.stream(
        model="hash", messages=MESSAGES, response_format=Pet, max_tokens=200
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pet)


@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
    ],
)
def test_every_way_to_give_a_schema_is_the_same(roomy: Served, extra: dict[str, object]) -> None:
    body = {"prompt": PROMPT, "max_tokens": 200, "temperature": 1, "seed": 5, **extra}
    text = roomy.post("/v1/completions", body).json()["choices"][0]["text"]
    assert set(json.loads(text)) == {"size", "kind"}
    plain = {**body, "guided_json": SCHEMA}
    for name in ("response_format", "structured_outputs"):
        plain.pop(name, None)
    assert roomy.post("/v1/completions", plain).json()["choices"][0]["text"] == text


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[ab]{4}"}, "[ab]{4}"),
        ({"structured_outputs": {"regex": "[ab]{4}"}}, "[ab]{4}"),
        ({"guided_choice": ["red", "green"]}, "red|green"),
        ({"guided_grammar": 'root ::= "x" | "y"'}, "x|y"),
    ],
)
def test_vllms_parameters_hold_the_answer(roomy: Served, extra: dict[str, object], pattern: str) -> None:
    answer = roomy.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 50, **extra}).json()
    assert re.fullmatch(pattern, answer["choices"][0]["text"])


def test_each_of_several_answers_matches(roomy: Served) -> None:
    answer = roomy.client.chat.completions.create(
        model="hash",
        messages=MESSAGES,
        n=4,
        temperature=1.0,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    )
    for choice in answer.choices:
        assert set(json.loads(choice.message.content or "")) == {"size", "kind"}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
        ({"guided_json": {"type": "nothing"}}, None),
        ({"guided_regex": "(["}, None),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_json": SCHEMA, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_cannot_be_held_to_is_refused(
    roomy: Served, extra: dict[str, object], param: str | None
) -> None:
    answer = roomy.post("/v1/chat/completions", {"messages": MESSAGES, **extra})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_the_client_sees_an_ordinary_error(roomy: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="structured output"):
        roomy.client.chat.completions.create(
            model="hash",
            messages=MESSAGES,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}},
        )
