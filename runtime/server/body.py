"""Reads a request's body: JSON of bounded size, depth and time."""

import asyncio
import json
from http import HTTPStatus
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request

from tokc.runtime.server.errors import ApiError, invalid
from tokc.runtime.server.settings import Settings

DISCARDED = 4  # so many times the limit are read and thrown away, for the client to see the answer


async def read_json(http: Request, settings: Settings) -> object:
    """Return the decoded body.

    Raises: ApiError.
    """
    _require_json(http)
    return parse_json(await read_body(http, settings), settings.max_json_depth)


def _require_json(http: Request) -> None:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the content type is '{kind}', expected 'application/json'",
            code="unsupported_media_type",
        )


async def read_body(http: Request, settings: Settings) -> bytes:
    """Return the bytes of the body.

    Raises: ApiError if it is too large or comes too slowly.
    """
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read(http, settings.max_body_bytes)
    except TimeoutError as error:
        problem = f"the body did not arrive within {settings.body_timeout_s:g} s"
        headers = {"Connection": "close"}
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT, problem, code="request_timeout", headers=headers
        ) from error


def parse_json(content: bytes, max_depth: int) -> object:
    """Return the value that JSON text stands for.

    Raises: ApiError if it is not JSON, nests deeper than `max_depth`, or holds text that is no Unicode.
    """
    try:
        value = json.loads(content.decode(), parse_constant=_no_constant)
    except RecursionError as error:
        raise _too_deep(max_depth) from error
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}", None, "invalid_json") from error
    _walk(value, max_depth)
    return value


async def _read(http: Request, limit: int) -> bytes:
    parts, size = [], 0
    try:
        async for part in http.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
            elif size > DISCARDED * limit:
                break
    except ClientDisconnect as error:
        raise invalid("the body ended early", None) from error
    if size > limit:
        raise ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body has more than {limit} bytes",
            code="request_too_large",
            headers={"Connection": "close"},
        )
    return b"".join(parts)


def _walk(value: object, max_depth: int) -> None:
    level: list[object] = [value]
    for _ in range(max_depth + 1):
        deeper: list[object] = []
        for item in level:
            if isinstance(item, str):
                _require_unicode(item)
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, dict):
                deeper += item
                deeper += item.values()
        if not deeper:
            return
        level = deeper
    raise _too_deep(max_depth)


def _require_unicode(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid("the body holds half of a surrogate pair", None, "invalid_json") from error


def _too_deep(max_depth: int) -> ApiError:
    return invalid(f"the body nests deeper than {max_depth} levels", None, "invalid_json")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"'{name}' is no number of JSON")
