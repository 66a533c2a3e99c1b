"""The OpenAI endpoints over one engine, as an ASGI application."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tokc.errors import RequestRefused
from tokc.runtime.engine import Engine
from tokc.runtime.request import Request
from tokc.runtime.sequence import SamplingParams
from tokc.runtime.server.metrics import CONTENT_TYPE, exposition
from tokc.runtime.server.protocol import (
    Completion,
    Json,
    Writer,
    chat_request,
    completion_request,
    usage_json,
)

Parse = Callable[[object, SamplingParams], Completion]
Endpoint = Callable[[HttpRequest], Awaitable[Response]]

DISCONNECT_POLL_S = 0.1
BAD_REQUEST, NOT_FOUND = 400, 404


def create_app(engine: Engine) -> Starlette:
    """Return the application; the engine's own thread makes the steps."""
    routes = [
        Route("/v1/chat/completions", completions(engine, chat_request), methods=["POST"]),
        Route("/v1/completions", completions(engine, completion_request), methods=["POST"]),
        Route("/v1/models", models(engine)),
        Route("/v1/models/{model:path}", model(engine)),
        Route("/health", health),
        Route("/metrics", metrics(engine)),
    ]
    handlers: Any = {RequestRefused: refused, HTTPException: http_error}
    return Starlette(routes=routes, exception_handlers=handlers)


def completions(engine: Engine, parse: Parse) -> Endpoint:
    """Return the endpoint that continues prompts or answers chats."""

    async def endpoint(http: HttpRequest) -> Response:
        try:
            body = await http.json()
        except ValueError as error:
            raise RequestRefused(f"the body is not JSON: {error}", where="body") from error
        wanted = body.get("model") if isinstance(body, dict) else None
        if wanted is not None and wanted != engine.name:
            return failure(
                NOT_FOUND, f"the model '{wanted}' does not exist; this is '{engine.name}'", "model"
            )
        request = parse(body, engine.defaults)
        running = requests_of(engine, request)
        writer = Writer(request, engine.name, engine.tokenizer)
        if request.stream:
            return StreamingResponse(events(engine, request, running, writer), media_type="text/event-stream")
        return await whole(engine, request, running, writer, http)

    return endpoint


def requests_of(engine: Engine, request: Completion) -> list[Request]:
    """Return one engine request a choice, prompt by prompt; choices after the first take the next seeds."""
    prompts: list[Any] = [engine.chat_prompt(prompt) for prompt in request.conversations]
    prompts += request.prompts
    return [
        engine.request(prompt, seeded(request.params, index))
        for prompt in prompts
        for index in range(request.n)
    ]


def seeded(params: SamplingParams, index: int) -> SamplingParams:
    """Return the parameters of choice `index`: a seed of its own, if one was given."""
    return params if params.seed is None else replace(params, seed=params.seed + index)


async def whole(
    engine: Engine, request: Completion, running: list[Request], writer: Writer, http: HttpRequest
) -> Response:
    """Wait for every choice; a client that goes away ends them."""

    async def finish(one: Request) -> None:
        async with aclosing(engine.follow(one)) as deltas:
            async for _ in deltas:
                pass

    work = asyncio.gather(*(finish(one) for one in running))
    while not work.done():
        await asyncio.wait([work], timeout=DISCONNECT_POLL_S)
        if not work.done() and await http.is_disconnected():
            work.cancel()
            return Response(status_code=499)
    await work
    results = [one.result() for one in running]
    choices = [
        writer.choice(
            index, opening(engine, request, index) + result.text, result.finish_reason, result.logprobs
        )
        for index, result in enumerate(results)
    ]
    return JSONResponse(writer.answer(choices, usage_json([result.usage for result in results], request.n)))


def opening(engine: Engine, request: Completion, index: int) -> str:
    """Return the prompt's text, where the request wants it echoed."""
    if not request.echo:
        return ""
    prompt = request.prompts[index // request.n]
    return prompt if isinstance(prompt, str) else engine.tokenizer.decode(prompt)


async def events(
    engine: Engine, request: Completion, running: list[Request], writer: Writer
) -> AsyncIterator[str]:
    """Yield server-sent events: the choices' pieces as they come, then the counts, then [DONE]."""
    pieces: asyncio.Queue[Json | None] = asyncio.Queue()

    async def follow(index: int, one: Request) -> None:
        if request.chat or request.echo:
            text = None if request.chat else opening(engine, request, index)
            await pieces.put(writer.chunk(index, text, None, ()))
        try:
            async with aclosing(engine.follow(one)) as deltas:
                async for delta in deltas:
                    if delta.text or delta.logprobs or delta.finish_reason:
                        await pieces.put(writer.chunk(index, delta.text, delta.finish_reason, delta.logprobs))
        except RequestRefused as error:
            await pieces.put(error_json(str(error), None))
        finally:
            await pieces.put(None)

    tasks = [asyncio.create_task(follow(index, one)) for index, one in enumerate(running)]
    try:
        open_choices = len(tasks)
        while open_choices:
            piece = await pieces.get()
            if piece is None:
                open_choices -= 1
            else:
                yield event(piece)
        if request.include_usage:
            yield event(writer.usage_chunk(usage_json([one.sequence.usage for one in running], request.n)))
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event(body: Json) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def models(engine: Engine) -> Endpoint:
    """Return the endpoint that lists the one model."""

    async def endpoint(_: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [description(engine)]})

    return endpoint


def model(engine: Engine) -> Endpoint:
    """Return the endpoint that describes the one model."""

    async def endpoint(http: HttpRequest) -> Response:
        wanted = http.path_params["model"]
        if wanted != engine.name:
            return failure(
                NOT_FOUND, f"the model '{wanted}' does not exist; this is '{engine.name}'", "model"
            )
        return JSONResponse(description(engine))

    return endpoint


def description(engine: Engine) -> Json:
    """Return the model as OpenAI's API describes one."""
    return {
        "id": engine.name,
        "object": "model",
        "created": 0,
        "owned_by": "tokc",
        "max_model_len": engine.context_length,
    }


async def health(_: HttpRequest) -> Response:
    """Answer that the server is up."""
    return JSONResponse({"status": "ok"})


def metrics(engine: Engine) -> Endpoint:
    """Return the endpoint that Prometheus reads."""

    async def endpoint(_: HttpRequest) -> Response:
        return PlainTextResponse(exposition(engine.counters, engine.gauges), media_type=CONTENT_TYPE)

    return endpoint


def error_json(message: str, field: str | None, kind: str = "invalid_request_error") -> Json:
    """Return an error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": field, "code": None}}


def failure(status: int, message: str, field: str | None) -> Response:
    """Return an error response."""
    return JSONResponse(error_json(message, field), status_code=status)


async def refused(_: HttpRequest, error: Exception) -> Response:
    """Answer a request that was refused."""
    where = error.where if isinstance(error, RequestRefused) else None
    return failure(BAD_REQUEST, str(error), where)


async def http_error(_: HttpRequest, error: Exception) -> Response:
    """Answer an unknown path or method."""
    status = error.status_code if isinstance(error, HTTPException) else BAD_REQUEST
    return failure(status, str(getattr(error, "detail", error)), None)
