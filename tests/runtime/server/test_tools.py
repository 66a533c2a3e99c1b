"""Tool calls as OpenAI's client sees them."""

import json
import re

import pytest

from tests.runtime.server.background import MESSAGES, Served

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "clock"}},
]
WEATHER = {"type": "function", "function": {"name": "weather"}}
ONE_CALL = {"tools": TOOLS, "tool_choice": WEATHER, "parallel_tool_calls": False, "max_tokens": 400}
SPOKEN = re.escape('Well. <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>')


def test_a_call_that_must_be_made_is_made(roomy: Served) -> None:
    answer = roomy.client.chat.completions.create(model="hash", messages=MESSAGES, **ONE_CALL)  # type: ignore[call-overload]
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in {"Rome", "Oslo"}


def test_a_streamed_call_is_the_same(roomy: Served) -> None:
    whole = roomy.client.chat.completions.create(model="hash", messages=MESSAGES, **ONE_CALL)  # type: ignore[call-overload]
    with roomy.client.chat.completions.stream(model="hash", messages=MESSAGES, **ONE_CALL) as stream:  # type: ignore[arg-type]
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    assert [call.function.arguments for call in final.message.tool_calls] == [
        call.function.arguments for call in whole.choices[0].message.tool_calls
    ]


def test_one_of_the_tools_is_called_where_one_is_required(roomy: Served) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS[:1], "tool_choice": "required", "parallel_tool_calls": False}
    answer = roomy.post("/v1/chat/completions", {**body, "max_tokens": 400}).json()
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_said_before_a_call_is_its_content(roomy: Served, stream: bool) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "guided_regex": SPOKEN, "max_tokens": 200, "stream": stream}
    answer = roomy.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        content = "".join(delta.get("content") or "" for delta in deltas)
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [call["index"] for call in calls] == [0]
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = answer.json()["choices"][0]
        content, calls = choice["message"]["content"], choice["message"]["tool_calls"]
        reason = choice["finish_reason"]
    assert content.strip() == "Well."
    assert [call["function"]["arguments"] for call in calls] == ['{"city": "Oslo"}']
    assert reason == "tool_calls"


def test_tools_that_may_not_be_called_are_not_told_of(roomy: Served) -> None:
    plain = {"messages": MESSAGES, "max_tokens": 12}
    none = {**plain, "tools": TOOLS, "tool_choice": "none"}
    told = {**plain, "tools": TOOLS}
    lengths = [
        roomy.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]
        for body in (plain, none, told)
    ]
    assert lengths[0] == lengths[1] < lengths[2]


def test_a_conversation_with_calls_and_results_goes_on(roomy: Served) -> None:
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    messages = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    answer = roomy.post("/v1/chat/completions", {"messages": messages, "tools": TOOLS, "max_tokens": 3})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": [{"type": "plugin", "function": {"name": "x"}}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nobody"}}},
            "tool_choice.function.name",
        ),
        ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}, "tool_choice"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
                ]
            },
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_is_wrong_with_tools_is_named(roomy: Served, extra: dict[str, object], param: str) -> None:
    answer = roomy.post("/v1/chat/completions", {"messages": MESSAGES, **extra})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
