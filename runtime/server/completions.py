"""/v1/completions and /v1/chat/completions."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tokc.runtime.sequence import SamplingParams
from tokc.runtime.server.body import read_json
from tokc.runtime.server.errors import invalid
from tokc.runtime.server.protocol import Completion, chat_request, completion_request
from tokc.runtime.server.service import Service, call_of
from tokc.runtime.server.supervision import CLIENT_LEFT, ClientLeft
from tokc.runtime.server.tools import held_to_calls
from tokc.runtime.server.turn import EventStream, Turn

Parse = Callable[[object, SamplingParams], Completion]
Endpoint = Callable[[HttpRequest], Awaitable[Response]]

MAX_SEQUENCES = 128
QUICK_CHARACTERS = 4096


def completions(service: Service) -> Endpoint:
    """Return the endpoint that continues prompts."""
    return _endpoint(service, completion_request)


def chat_completions(service: Service) -> Endpoint:
    """Return the endpoint that answers chats."""
    return _endpoint(service, chat_request)


def _endpoint(service: Service, parse: Parse) -> Endpoint:
    async def endpoint(http: HttpRequest) -> Response:
        body, call = await read_json(http, service.settings), call_of(http)
        service.require_model(body.get("model") if isinstance(body, dict) else None)
        request = held_to_calls(parse(body, service.engine.defaults), service.engine)
        count = max(len(request.prompts), 1) * request.best_of
        if count > MAX_SEQUENCES:
            raise invalid(f"the request asks for {count} answers, expected at most {MAX_SEQUENCES}", "n")
        service.admission.check(count)
        prompts = await _tokens(service, request)
        if request.params.constraint is not None:  # compiled here, beside the event loop, and kept
            await asyncio.to_thread(service.engine.grammars.matcher, request.params.constraint)
        for prompt in prompts:
            _check_lengths(service, request, len(prompt))
        turn = Turn(service, call, request, prompts)
        if request.stream:
            return EventStream(turn)
        try:
            return await turn.whole(http.receive)
        except ClientLeft:
            return Response(status_code=CLIENT_LEFT)
        finally:
            turn.close()

    return endpoint


async def _tokens(service: Service, request: Completion) -> list[list[int]]:
    """Return the tokens of each prompt; long texts are read beside the event loop."""
    engine = service.engine

    def tokens() -> list[list[int]]:
        chats = [
            engine.chat_prompt(one, tools=request.tools, variables=request.template_variables)
            for one in request.conversations
        ]
        return chats + [
            engine.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            for prompt in request.prompts
        ]

    size = sum(len(prompt) for prompt in request.prompts if isinstance(prompt, str))
    size += sum(len(str(message["content"])) for one in request.conversations for message in one)
    return tokens() if size <= QUICK_CHARACTERS else await asyncio.to_thread(tokens)


def _check_lengths(service: Service, request: Completion, length: int) -> None:
    context, most = service.engine.context_length, service.settings.max_prompt_tokens
    where = "messages" if request.chat else "prompt"
    if length == 0:
        raise invalid(f"'{where}' is empty", where)
    if most is not None and length > most:
        problem = f"the prompt has {length} tokens; this server takes at most {most}"
        raise invalid(problem, where, "prompt_too_long")
    wanted = request.limit or 1
    if length + wanted > context:
        raise invalid(
            f"this model's context is {context} tokens; the request has {length} in the prompt"
            f" and asks for {wanted} more",
            where if length >= context else "max_tokens",
            "context_length_exceeded",
        )
