"""Tools that a model may call: how its chat template knows them, and how its calls are read from the text.

A template that knows no tools gets them as a system message in the form that Hermes made usual, and calls and
their results as messages of that form.
Source: NousResearch, Hermes-Function-Calling; huggingface.co/docs/transformers, chat templates for tools.
"""

import json
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

from tokc.errors import RequestRefused
from tokc.runtime.chat import Message
from tokc.runtime.grammar import WHITESPACE, Constraint
from tokc.runtime.tokenizer import overlap


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, object]

    @property
    def for_template(self) -> dict[str, object]:
        """Return it as chat templates read it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


class ToolCall(NamedTuple):
    """A call that the model wrote; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """The way a family of models writes a call: a JSON object of `name` and `key`, between two marks."""

    opening: str
    closing: str
    key: str

    def constraint(self, tools: Items[Tool], *, several: bool) -> Constraint:
        """Return the grammar of an answer that is a call of one of `tools`, or `several` calls."""
        objects = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, self.key: tool.parameters},
                "required": ["name", self.key],
                "additionalProperties": False,
            }
            for tool in tools
        ]
        calls = [f"call_{index}" for index in range(len(tools))]
        lines = [
            f"start: call{' (NEWLINE call)*' if several and self.opening else ''}",
            f"call: {self._quoted(self.opening)} ({' | '.join(calls)}) {self._quoted(self.closing)}",
            r"NEWLINE: /\n/",
        ]
        for name, one in zip(calls, objects, strict=True):
            lines.append(
                f"{name}: %json {json.dumps({'x-guidance': {'whitespace_pattern': WHITESPACE}, **one})}"
            )
        return Constraint("lark", "\n".join(lines))

    def _quoted(self, mark: str) -> str:
        return json.dumps(mark) if mark else ""


HERMES = ToolFormat("<tool_call>\n", "\n</tool_call>", "arguments")
LLAMA = ToolFormat("", "", "parameters")


def format_of(template: str) -> ToolFormat | None:
    """Return the form of a chat template's calls, None for a template that knows no tools.

    Raises: RequestRefused if it writes them in a form that is not known.
    """
    if "<tool_call>" in template:
        return HERMES
    if "tools" not in template:
        return None
    if '{"name": function name, "parameters":' in template:
        return LLAMA
    raise RequestRefused(
        "the model's chat template writes tool calls in a form that is not read", where="tools"
    )


def spelled_out(messages: Items[Message], tools: Items[Tool]) -> list[Message]:
    """Return messages for a template that knows no tools, with what they are about written into them."""
    signatures = "\n".join(json.dumps(tool.for_template) for tool in tools)
    rules = (
        "You may call functions. They are listed within <tools></tools>, a JSON object each:\n"
        f"<tools>\n{signatures}\n</tools>\n"
        "To call one, write a JSON object with its name and arguments within <tool_call></tool_call>:\n"
        '<tool_call>\n{"name": "function", "arguments": {"argument": "value"}}\n</tool_call>'
    )
    rest = [_spelled(message) for message in messages]
    if tools and rest and rest[0]["role"] == "system":
        return [{**rest[0], "content": f"{rest[0]['content']}\n\n{rules}"}, *rest[1:]]
    return [{"role": "system", "content": rules}, *rest] if tools else rest


def _spelled(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    texts = [str(message["content"])] if message["content"] else []
    for call in calls:
        function = call["function"]
        body = json.dumps({"name": function["name"], "arguments": function["arguments"]})
        texts.append(f"{HERMES.opening}{body}{HERMES.closing}")
    return {"role": message["role"], "content": "\n".join(texts)}


class ToolParser:
    """Takes an answer apart as it comes: what is said, and the calls, each when it is whole.

    What turns out to be no call of one of the tools stays text, so that nothing is lost; blanks before a call
    are not.
    """

    def __init__(self, form: ToolFormat, names: Items[str]) -> None:
        """Know the tools' names."""
        self._form, self._names = form, frozenset(names)
        self._opening, self._closing = form.opening.strip(), form.closing.strip()
        self._held = self._blank = ""
        self._inside = not self._opening

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Add text; return what is certainly said and the calls that are now whole."""
        self._held += text
        if not self._opening:
            return self._push_bare(), []
        said, calls = "", list[ToolCall]()
        while (place := self._held.find(self._closing if self._inside else self._opening)) >= 0:
            mark = self._closing if self._inside else self._opening
            before, self._held = self._held[:place], self._held[place + len(mark) :]
            call = self._read(before) if self._inside else None
            if call is not None:
                calls.append(call)
                self._blank = ""
            else:
                said += self._say(f"{self._opening}{before}{mark}" if self._inside else before)
            self._inside = not self._inside
        if not self._inside:
            safe = len(self._held) - overlap(self._held, self._opening)
            said, self._held = said + self._say(self._held[:safe]), self._held[safe:]
        return said, calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return what is held back; a call that was not closed is one if its object is whole."""
        held, self._held = self._held, ""
        call = self._read(held) if self._inside else None
        if call is not None:
            return "", [call]
        text = f"{self._opening}{held}" if self._inside else held
        return self._blank + text, []

    def _push_bare(self) -> str:
        """Return what is said where nothing marks a call: an answer that begins an object may be one."""
        if self._inside and (not self._held.strip() or self._held.lstrip().startswith("{")):
            return ""
        self._inside = False
        said, self._held = self._held, ""
        return said

    def _say(self, text: str) -> str:
        """Hold back the blanks at the end: a call may follow."""
        text = self._blank + text
        said = text.rstrip()
        self._blank = text[len(said) :]
        return said

    def _read(self, text: str) -> ToolCall | None:
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        return ToolCall(value["name"], json.dumps(value.get(self._form.key, {}), ensure_ascii=False))
