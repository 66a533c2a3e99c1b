"""Calls of tools are found in text however it comes in pieces, and nothing of the text is lost."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.hash_model import CHATML, EOS, byte_tokenizer
from tokc.errors import RequestRefused
from tokc.runtime.chat import ChatTemplate
from tokc.runtime.grammar import Grammars
from tokc.runtime.tool_calls import (
    HERMES,
    LLAMA,
    Tool,
    ToolCall,
    ToolFormat,
    ToolParser,
    format_of,
    spelled_out,
)

WEATHER = Tool(
    "weather",
    "The weather of a city.",
    {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
)
CLOCK = Tool("clock", "", {"type": "object", "properties": {}, "additionalProperties": False})
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OSLO = ToolCall("weather", '{"city": "Oslo"}')


def parsed(pieces: list[str], form: ToolFormat = HERMES) -> tuple[str, list[ToolCall]]:
    parser = ToolParser(form, ["weather", "clock"])
    said, calls = "", []
    for piece in pieces:
        text, found = parser.push(piece)
        said, calls = said + text, calls + found
    text, found = parser.finish()
    return said + text, calls + found


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("no call", "no call", []),
        (CALL, "", [OSLO]),
        (f"I look.\n{CALL}\n{CALL}", "I look.", [OSLO, OSLO]),
        (f"{CALL} and more", " and more", [OSLO]),
        (CALL.removesuffix("\n</tool_call>"), "", [OSLO]),
        ('<tool_call>{"name": "weather"', '<tool_call>{"name": "weather"', []),
        ('<tool_call>{"name": "rob", "arguments": {}}</tool_call>', None, []),
        ("<tool_call>not json</tool_call>", None, []),
        ("a < b <tool", "a < b <tool", []),
    ],
)
def test_calls_are_taken_out_of_the_text(text: str, said: str | None, calls: list[ToolCall]) -> None:
    assert parsed([text]) == (text if said is None else said, calls)


@given(
    st.lists(st.sampled_from([CALL, "<tool_call>", "</tool_call>", "x", " ", "\n", "{}", "<"]), max_size=6),
    st.data(),
)
def test_pieces_make_no_difference(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, calls = parsed([text])
    assert parsed(pieces) == (whole, calls)
    if not calls:
        assert whole == text


def test_a_bare_object_is_a_call_where_nothing_marks_one() -> None:
    call = '{"name": "weather", "parameters": {"city": "Oslo"}}'
    assert parsed([call[:9], call[9:]], LLAMA) == ("", [OSLO])
    assert parsed(["{not", " json}"], LLAMA) == ("{not json}", [])
    assert parsed(["Hi ", call], LLAMA) == (f"Hi {call}", [])


@pytest.mark.parametrize("form", [HERMES, LLAMA])
def test_the_grammar_of_a_call_is_what_the_parser_reads(form: ToolFormat) -> None:
    tokenizer = byte_tokenizer()
    matcher = Grammars(tokenizer, 259, [EOS]).matcher(form.constraint([WEATHER, CLOCK], several=False))
    text = f'{form.opening}{{"name": "weather", "{form.key}": {{"city": "Oslo"}}}}{form.closing}'
    for token in tokenizer.encode(text):
        matcher.accept(token)
    assert matcher.complete
    assert parsed([text], form) == ("", [OSLO])
    matcher.accept(tokenizer.encode("\n")[0])
    assert not matcher.complete


@pytest.mark.parametrize(
    "wrong",
    [
        '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        '<tool_call>\n{"name": "clock", "arguments": {"city": "Rome"}}\n</tool_call>',
        "hello",
    ],
)
def test_the_grammar_of_a_call_leaves_nothing_else(wrong: str) -> None:
    tokenizer = byte_tokenizer()
    matcher = Grammars(tokenizer, 259, [EOS]).matcher(HERMES.constraint([WEATHER, CLOCK], several=True))
    for token in tokenizer.encode(wrong):
        matcher.accept(token)
    assert not matcher.complete


def test_a_template_that_knows_no_tools_gets_them_written_out() -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "content": "rain"},
    ]
    text = ChatTemplate(CHATML, {}).render(spelled_out(messages, [WEATHER]))
    found = re.search(r"<tools>\n(.*)\n</tools>", text)
    assert found is not None
    assert json.loads(found[1]) == WEATHER.for_template
    assert CALL in text
    assert "<|im_start|>user\n<tool_response>\nrain\n</tool_response>" in text


def test_rules_follow_a_system_message_that_is_there() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    first, second = spelled_out(messages, [CLOCK])
    assert str(first["content"]).startswith("Be brief.\n\nYou may call functions.")
    assert second == messages[1]


def test_messages_without_tools_are_left_alone() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert spelled_out(messages, []) == messages


def test_the_form_of_a_template_is_recognized_or_refused() -> None:
    assert format_of(CHATML) is None
    assert format_of("{% if tools %}<tool_call>{% endif %}") is HERMES
    assert format_of('{{ tools }}{"name": function name, "parameters": ...}') is LLAMA
    with pytest.raises(RequestRefused, match="form that is not read"):
        format_of("{{ tools }}[TOOL_CALLS]")
