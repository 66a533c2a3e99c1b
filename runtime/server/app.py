"""The server's application: routes, and what becomes of errors."""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokc.errors import TokcError
from tokc.runtime.engine import Engine
from tokc.runtime.server import endpoints
from tokc.runtime.server.completions import chat_completions, completions
from tokc.runtime.server.errors import SERVER, ApiError, api_error
from tokc.runtime.server.page import page_routes
from tokc.runtime.server.service import Call, Service, call_of
from tokc.runtime.server.settings import Settings

Endpoint = Callable[[HttpRequest], Awaitable[Response]]

log = logging.getLogger("tokc.server")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_app(engine: Engine, settings: Settings | None = None) -> Starlette:
    """Return the application of an engine; its own thread makes the steps."""
    return app_of(Service(engine, settings))


def app_of(service: Service) -> Starlette:
    """Return the application of a service."""

    def keyed(endpoint: Endpoint) -> Endpoint:
        async def guarded(http: HttpRequest) -> Response:
            await service.authorize(http, call_of(http))
            return await endpoint(http)

        return guarded

    routes = [
        Route("/v1/chat/completions", keyed(chat_completions(service)), methods=["POST"]),
        Route("/v1/completions", keyed(completions(service)), methods=["POST"]),
        Route("/v1/models", keyed(endpoints.models(service))),
        Route("/v1/models/{model:path}", keyed(endpoints.model(service))),
        Route("/tokenize", keyed(endpoints.tokenize(service)), methods=["POST"]),
        Route("/detokenize", keyed(endpoints.detokenize(service)), methods=["POST"]),
        Route("/metrics", keyed(endpoints.metrics(service))),
        *page_routes(),
        Route("/health", endpoints.health(service)),
        Route("/ready", endpoints.ready(service)),
        Route("/version", endpoints.version),
        Route("/openapi.json", endpoints.openapi(service)),
    ]
    handlers: Any = {TokcError: _refused, HTTPException: _http_error}
    return Starlette(
        routes=routes,
        exception_handlers=handlers,
        middleware=[Middleware(CallMiddleware, service=service)],
    )


class CallMiddleware:
    """Makes a call of every request, named in `X-Request-Id`, and a 500 of what nobody expected."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wrap `app`."""
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _call(scope)
        scope.setdefault("state", {})["call"] = call
        began = False

        async def named(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                call.status = call.status or message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = call.id
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            log.exception("request %s failed", call.id)
            if not began:
                await _response(_unexpected(call))(scope, receive, named)
        finally:
            if self._service.tracing is not None:
                self._service.tracing.trace(call, Headers(scope=scope))
            self._service.end(call)


def _call(scope: Scope) -> Call:
    wanted = Headers(scope=scope).get("x-request-id", "")
    name = wanted if _REQUEST_ID.fullmatch(wanted) else f"req-{secrets.token_hex(12)}"
    client = scope.get("client")
    return Call(name, scope["method"], scope["path"], None if client is None else client[0])


def _unexpected(call: Call) -> ApiError:
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    call.error = "internal_error"
    return ApiError(
        status, f"the server failed; its log has request '{call.id}'", code="internal_error", kind=SERVER
    )


def _response(error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _refused(http: HttpRequest, error: Exception) -> Response:
    """Answer a request that was refused."""
    assert isinstance(error, TokcError), "registered for these"
    told = api_error(error)
    call_of(http).error = told.code or told.kind
    return _response(told)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    """Answer an unknown path or method."""
    assert isinstance(error, HTTPException), "registered for these"
    if error.status_code == HTTPStatus.NOT_FOUND:
        told = ApiError(error.status_code, f"unknown path: '{http.url.path[:128]}'", code="unknown_url")
    else:
        told = ApiError(error.status_code, f"{http.method} is not allowed here", code="method_not_allowed")
    told.headers.update(error.headers or {})
    call_of(http).error = told.code
    return _response(told)
