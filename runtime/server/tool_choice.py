"""Tools of a chat's request: which the model is told of, and which it must call."""

import json

from tokc.runtime.server.errors import Json, invalid
from tokc.runtime.tool_calls import Tool


def tools_of(given: Json) -> tuple[Tool, ...]:
    """Return the tools that the model is told of.

    Raises: ApiError if two have one name.
    """
    if given.get("tool_choice") == "none":
        return ()
    tools: list[Tool] = []
    for index, one in enumerate(given.get("tools", ())):
        function = one["function"]
        if any(tool.name == function["name"] for tool in tools):
            where = f"tools[{index}].function.name"
            raise invalid(f"two tools have the name '{function['name']}'", where)
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        tools.append(Tool(function["name"], function.get("description") or "", parameters))
    return tuple(tools)


def must_call(given: Json, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """Return the tools of which the answer must call one.

    Raises: ApiError if `tool_choice` names none of them, or there are none.
    """
    choice = given.get("tool_choice", "auto")
    if choice in ("none", "auto"):
        if given.get("parallel_tool_calls") is False and tools:
            raise invalid(
                "'parallel_tool_calls' can be false where a call must be made; set 'tool_choice'",
                "parallel_tool_calls",
            )
        return ()
    if not tools:
        raise invalid("'tool_choice' needs 'tools'", "tool_choice")
    if choice == "required":
        return tools
    name = choice["function"]["name"]
    found = tuple(tool for tool in tools if tool.name == name)
    if not found:
        raise invalid(f"'{name}' is not among the tools", "tool_choice.function.name")
    return found


def with_objects(calls: list[Json], where: str) -> list[Json]:
    """Return a message's calls with their arguments as objects, which chat templates expect.

    Raises: ApiError if arguments are not the text of an object.
    """
    found = []
    for index, call in enumerate(calls):
        function, place = call["function"], f"{where}[{index}].function.arguments"
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except ValueError as error:
            raise invalid(f"'{place}' is not JSON", place) from error
        if not isinstance(arguments, dict):
            raise invalid(f"'{place}' is not the text of an object", place)
        found.append({**call, "function": {**function, "arguments": arguments}})
    return found
