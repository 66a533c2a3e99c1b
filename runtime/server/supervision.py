"""Ends a client's work when the client leaves, when its time is over, or when the server stops."""

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import TypeVar

from starlette.types import Receive

from tokc.runtime.server.admission import Admission
from tokc.runtime.server.errors import SERVER, ApiError

T = TypeVar("T")

CLIENT_LEFT = 499


class ClientLeft(Exception):
    """Report that nobody reads the answer any more."""


async def supervised(
    work: Coroutine[object, object, T], receive: Receive, admission: Admission, timeout_s: float | None
) -> T:
    """Return what `work` returns; it is cancelled where that is not waited for.

    Raises: ClientLeft; ApiError with 504 after `timeout_s`, with 503 if the server stops.
    """
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnected(receive))
    cut = asyncio.create_task(admission.cutoff.wait())
    tasks: set[asyncio.Task[object]] = {task, left, cut}
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if left.done():
            raise ClientLeft
        if cut.done():
            raise admission.stopping()
        problem = f"the request was not answered within {timeout_s:g} s"
        raise ApiError(HTTPStatus.GATEWAY_TIMEOUT, problem, code="request_timeout", kind=SERVER)
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
