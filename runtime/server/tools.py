"""Calls of tools in an answer, as OpenAI's chats have them."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tokc.runtime.engine import Engine
from tokc.runtime.sequence import FinishReason
from tokc.runtime.server.errors import Json, invalid
from tokc.runtime.server.protocol import Completion
from tokc.runtime.tool_calls import Tool, ToolCall, ToolParser

FINISH_REASONS: Mapping[FinishReason, str] = {"stop": "stop", "length": "length", "abort": "stop"}


def held_to_calls(request: Completion, engine: Engine) -> Completion:
    """Return the request with the grammar of the calls that it must make, if it must.

    Raises: RequestRefused if the model's calls cannot be read; ApiError if it is held to something else.
    """
    if not request.tools:
        return request
    form = engine.tool_format
    if not request.must_call:
        return request
    if request.params.constraint is not None:
        raise invalid("an answer that must be a call is held to nothing else", "tool_choice")
    constraint = form.constraint(request.must_call, several=request.parallel_calls)
    return replace(request, params=replace(request.params, constraint=constraint))


class Answer:
    """The message of one choice as it comes."""

    def __init__(self, tools: tuple[Tool, ...], engine: Engine) -> None:
        """Look for calls, if there are `tools`."""
        self._parser = ToolParser(engine.tool_format, [tool.name for tool in tools]) if tools else None
        self._count = 0

    def reason(self, reason: FinishReason) -> str:
        """Return OpenAI's word for why the answer ended."""
        return "tool_calls" if self._count and reason == "stop" else FINISH_REASONS[reason]

    def push(self, text: str, *, last: bool) -> tuple[str, list[Json]]:
        """Add text; return what is said, and the calls that are now whole, as a stream has them."""
        if self._parser is None:
            return text, []
        said, calls = self._parser.push(text)
        if last:
            rest, more = self._parser.finish()
            said, calls = said + rest, calls + more
        return said, self._numbered(calls)

    def _numbered(self, calls: Iterable[ToolCall]) -> list[Json]:
        found = []
        for call in calls:
            function = {"name": call.name, "arguments": call.arguments}
            found.append(
                {"index": self._count, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
                | {"function": function}
            )
            self._count += 1
        return found
