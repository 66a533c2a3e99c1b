"""The endpoints that make no text: models, tokens, health, version, metrics, the API's own description."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

import tokc
from tokc.errors import RequestRefused
from tokc.runtime.server.body import read_json
from tokc.runtime.server.errors import Json, invalid
from tokc.runtime.server.metrics import CONTENT_TYPE, exposition
from tokc.runtime.server.openapi import document
from tokc.runtime.server.parameters import DETOKENIZE, TOKENIZE, checked
from tokc.runtime.server.protocol import check_variables, messages_of
from tokc.runtime.server.service import Service

Endpoint = Callable[[HttpRequest], Awaitable[Response]]

UNAVAILABLE = 503


def models(service: Service) -> Endpoint:
    """Return the endpoint that lists the one model."""

    async def endpoint(_: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [_description(service)]})

    return endpoint


def model(service: Service) -> Endpoint:
    """Return the endpoint that describes the one model."""

    async def endpoint(http: HttpRequest) -> Response:
        service.require_model(http.path_params["model"])
        return JSONResponse(_description(service))

    return endpoint


def health(service: Service) -> Endpoint:
    """Return the endpoint that says whether the process should live on."""

    async def endpoint(_: HttpRequest) -> Response:
        failure = service.engine.failure
        if failure is None:
            return JSONResponse({"status": service.status})
        return JSONResponse({"status": "failed", "error": str(failure)}, status_code=UNAVAILABLE)

    return endpoint


def ready(service: Service) -> Endpoint:
    """Return the endpoint that says whether new requests should come here."""

    async def endpoint(_: HttpRequest) -> Response:
        status = service.status
        if status == "ok":
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": status}, status_code=UNAVAILABLE)

    return endpoint


def metrics(service: Service) -> Endpoint:
    """Return the endpoint that Prometheus reads."""

    async def endpoint(_: HttpRequest) -> Response:
        engine = service.engine
        text = exposition(engine.counters, engine.gauges, service.responses)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    return endpoint


async def version(_: HttpRequest) -> Response:
    """Answer with the version of tokc."""
    return JSONResponse({"version": tokc.__version__})


def openapi(service: Service) -> Endpoint:
    """Return the endpoint that describes the API."""
    described = document(tokc.__version__, model=service.engine.name, keyed=service.keyed)

    async def endpoint(_: HttpRequest) -> Response:
        return JSONResponse(described)

    return endpoint


def tokenize(service: Service) -> Endpoint:
    """Return the endpoint that shows a prompt's tokens."""

    async def endpoint(http: HttpRequest) -> Response:
        given = checked(await read_json(http, service.settings), TOKENIZE, {})
        service.require_model(given.get("model"))
        tokens = _tokens(service, given)
        tokenizer = service.engine.tokenizer
        texts = [tokenizer.decode([token], skip_special_tokens=False) for token in tokens]
        return JSONResponse(
            {
                "count": len(tokens),
                "max_model_len": service.engine.context_length,
                "tokens": tokens,
                "token_strs": texts if given.get("return_token_strs") else None,
            }
        )

    return endpoint


def detokenize(service: Service) -> Endpoint:
    """Return the endpoint that shows the text of tokens."""

    async def endpoint(http: HttpRequest) -> Response:
        given = checked(await read_json(http, service.settings), DETOKENIZE, {}, "tokens")
        service.require_model(given.get("model"))
        vocab = service.engine.executor.vocab_size
        wrong = next((token for token in given["tokens"] if token >= vocab), None)
        if wrong is not None:
            raise RequestRefused(f"token {wrong} is not in the vocabulary of {vocab}", where="tokens")
        text = service.engine.tokenizer.decode(given["tokens"], skip_special_tokens=False)
        return JSONResponse({"prompt": text})

    return endpoint


def _tokens(service: Service, given: Json) -> list[int]:
    if ("prompt" in given) == ("messages" in given):
        raise invalid("give either 'prompt' or 'messages'", "prompt", "missing_required_parameter")
    if "prompt" in given:
        for name in ("add_generation_prompt", "chat_template_kwargs"):
            if name in given:
                raise invalid(f"'{name}' needs 'messages'", name)
        special = given.get("add_special_tokens", True)
        return service.engine.tokenizer.encode(given["prompt"], add_special_tokens=special)
    if given.get("add_special_tokens"):
        raise invalid("the chat template writes the special tokens", "add_special_tokens")
    return service.engine.chat_prompt(
        messages_of(given["messages"]),
        add_generation_prompt=given.get("add_generation_prompt", True),
        variables=check_variables(given.get("chat_template_kwargs", {})),
    )


def _description(service: Service) -> Json:
    return {
        "id": service.engine.name,
        "object": "model",
        "created": 0,
        "owned_by": "tokc",
        "max_model_len": service.engine.context_length,
    }
