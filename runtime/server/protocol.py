"""OpenAI's requests: JSON in, checked parameters out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.runtime.chat import Message
from tokc.runtime.sequence import SamplingParams
from tokc.runtime.server.constraints import constraint_of
from tokc.runtime.server.errors import Json, invalid
from tokc.runtime.server.parameters import (
    CHAT,
    CHAT_REFUSED,
    COMPLETION,
    COMPLETION_REFUSED,
    checked,
)
from tokc.runtime.server.tool_choice import must_call, tools_of, with_objects
from tokc.runtime.tool_calls import Tool

Prompt = str | tuple[int, ...]

LEGACY_MAX_TOKENS = 16
RESERVED = {"self", "messages", "tools", "documents", "add_generation_prompt"}


@dataclass(frozen=True)
class Completion:
    """A checked request: prompts or, for a chat, conversations.

    Each is continued `best_of` times, of which `n` return; `limit` is the number of tokens that the client
    asked for, None where it left that to the server.
    """

    prompts: tuple[Prompt, ...]
    conversations: tuple[tuple[Message, ...], ...]
    params: SamplingParams
    n: int
    best_of: int
    stream: bool
    include_usage: bool
    echo: bool
    limit: int | None
    logprobs: bool
    user: str | None
    priority: int | None
    cache_salt: str
    template_variables: Mapping[str, object]
    tools: tuple[Tool, ...]
    must_call: tuple[Tool, ...]
    parallel_calls: bool

    @property
    def chat(self) -> bool:
        """Say whether the answer is in the shape of a chat's."""
        return bool(self.conversations)


def completion_request(body: object, defaults: SamplingParams) -> Completion:
    """Read the body of /v1/completions.

    Raises: ApiError or RequestRefused naming the parameter.
    """
    given = checked(body, COMPLETION, COMPLETION_REFUSED, "prompt")
    echo, top = given.get("echo", False), given.get("logprobs")
    if echo and top is not None:
        raise invalid("'logprobs' are not available for the prompt; leave out 'echo'", "echo")
    limit = given.get("max_tokens")
    params = _params(given, defaults, limit or LEGACY_MAX_TOKENS, top)
    return _request(given, params, limit, prompts=_prompts(given["prompt"]))


def chat_request(body: object, defaults: SamplingParams) -> Completion:
    """Read the body of /v1/chat/completions.

    Raises: ApiError or RequestRefused naming the parameter.
    """
    given = checked(body, CHAT, CHAT_REFUSED, "messages")
    wanted = given.get("logprobs", False)
    if "top_logprobs" in given and not wanted:
        raise invalid("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    if limit != given.get("max_tokens", limit):
        raise invalid("'max_tokens' and 'max_completion_tokens' differ; give one", "max_tokens")
    params = _params(given, defaults, limit, given.get("top_logprobs", 0) if wanted else None)
    return _request(given, params, limit, conversations=(messages_of(given["messages"]),))


def messages_of(messages: list[Json]) -> tuple[Message, ...]:
    """Return messages as chat templates know them: contents are texts.

    Raises: ApiError naming the message.
    """
    return tuple(_message(index, message) for index, message in enumerate(messages))


def check_variables(variables: Mapping[str, object]) -> Mapping[str, object]:
    """Return variables for the chat template, none of which is the server's own.

    Raises: ApiError naming the variable.
    """
    for name in RESERVED & variables.keys():
        where = f"chat_template_kwargs.{name}"
        raise invalid(f"'{where}' is set by the server", where)
    return variables


def _request(
    given: Json,
    params: SamplingParams,
    limit: int | None,
    *,
    prompts: tuple[Prompt, ...] = (),
    conversations: tuple[tuple[Message, ...], ...] = (),
) -> Completion:
    stream, n = given.get("stream", False), given.get("n", 1)
    tools = tools_of(given)
    best_of: int = given.get("best_of") or n
    if best_of < n:
        raise invalid(f"'best_of' is {best_of}, expected at least 'n', {n}", "best_of")
    if stream and best_of > n:
        raise invalid("the best of several is not known while they stream; leave out 'stream'", "best_of")
    if "stream_options" in given and not stream:
        raise invalid("'stream_options' needs 'stream' to be true", "stream_options")
    return Completion(
        prompts=prompts,
        conversations=conversations,
        params=params,
        n=n,
        best_of=best_of,
        stream=stream,
        include_usage=given.get("stream_options", {}).get("include_usage") is True,
        echo=given.get("echo", False),
        limit=limit,
        logprobs=params.logprobs is not None,
        user=given.get("safety_identifier", given.get("user")),
        priority=given.get("priority"),
        cache_salt=given.get("cache_salt", ""),
        template_variables=check_variables(given.get("chat_template_kwargs", {})),
        tools=tools,
        must_call=must_call(given, tools),
        parallel_calls=given.get("parallel_tool_calls", True),
    )


def _params(given: Json, defaults: SamplingParams, limit: int | None, top: int | None) -> SamplingParams:
    stop = given.get("stop", [])
    top_k = given.get("top_k", defaults.top_k)
    return SamplingParams(
        max_tokens=limit,
        temperature=float(given.get("temperature", defaults.temperature)),
        top_k=None if top_k in {0, -1} else top_k,
        top_p=float(given.get("top_p", defaults.top_p)),
        min_p=float(given.get("min_p", defaults.min_p)),
        repetition_penalty=float(given.get("repetition_penalty", defaults.repetition_penalty)),
        presence_penalty=float(given.get("presence_penalty", 0.0)),
        frequency_penalty=float(given.get("frequency_penalty", 0.0)),
        logit_bias=_logit_bias(given.get("logit_bias", {})),
        seed=given.get("seed"),
        logprobs=top,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(given.get("stop_token_ids", ())),
        ignore_eos=given.get("ignore_eos", False),
        min_tokens=given.get("min_tokens", 0),
        constraint=constraint_of(given),
    )


def _logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    for token in bias:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise invalid("'logit_bias' maps token ids to numbers", "logit_bias")
    return {int(token): float(value) for token, value in bias.items()}


def _prompts(prompt: str | list[Any]) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (tuple(prompt),)
    return tuple(item if isinstance(item, str) else tuple(item) for item in prompt)


def _message(index: int, message: Json) -> Message:
    where = f"messages[{index}]"
    role, content = message["role"], message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    if content is None:
        if role != "assistant" or not message.get("tool_calls"):
            raise invalid(f"'{where}.content' is missing", f"{where}.content", "missing_required_parameter")
        content = ""
    if message.get("tool_calls"):
        message = {**message, "tool_calls": with_objects(message["tool_calls"], f"{where}.tool_calls")}
    # Templates know the older name of a developer's message.
    return {**message, "role": "system" if role == "developer" else role, "content": content}
