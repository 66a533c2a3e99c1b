"""Replicas of an engine behind one endpoint, on a cluster that Ray runs.

Ray Serve starts, places, watches, scales and addresses the replicas. Here is what it is given: a replica,
which has the application of `tokc serve`; a front, which reads a request's body and hands the request on;
and the order in which replicas are asked, by how the prompt begins, so that its cached beginning is found.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tokc.errors import EngineStopped, TokcError
from tokc.runtime.engine import Engine
from tokc.runtime.server.app import app_of
from tokc.runtime.server.body import read_body
from tokc.runtime.server.errors import ApiError, api_error, too_many, unavailable
from tokc.runtime.server.keys import Key
from tokc.runtime.server.service import Service
from tokc.runtime.server.settings import Settings

APPLICATION, ENGINE, FRONT = "tokc", "engine", "front"
FRONTS, FRONT_REQUESTS = 2, 4096
PREFIX_CHARACTERS = 256
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5.0, 30.0
METHODS = ["GET", "POST"]


class Scale(NamedTuple):
    """How many replicas, from `least` to `most`, with so many cores each.

    A replica has at most `ongoing` requests; where more come or wait on average, replicas are added.
    """

    least: int = 1
    most: int = 1
    ongoing: int = 16
    cores: float = 1.0


class Forwarded(NamedTuple):
    """A request on its way to a replica; `prefix` decides which is asked first, empty if any will do."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    client: tuple[str, int] | None
    body: bytes
    prefix: str

    @property
    def scope(self) -> Scope:
        """Return what an application is called with."""
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "headers": self.headers,
            "client": self.client,
        }


class Replica:
    """One engine, and the application of `tokc serve` before it."""

    def __init__(self, load: Callable[[], Engine], settings: Settings, keys: Iterable[Key] | None) -> None:
        """Load the engine in this process."""
        self._engine = load()
        self._engine.prepare()
        self._app = app_of(Service(self._engine, settings, keys=keys))

    async def respond(self, request: Forwarded) -> AsyncIterator[Message]:
        """Yield the messages of the response; the request is aborted when nobody reads them."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()  # an answer is bounded by the context
        parts = [{"type": "http.request", "body": request.body, "more_body": False}]

        async def receive() -> Message:
            return parts.pop() if parts else await asyncio.get_running_loop().create_future()

        task = asyncio.ensure_future(self._app(request.scope, receive, messages.put))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()

    def check_health(self) -> None:
        """Tell Ray whether to go on with this replica.

        Raises: EngineStopped.
        """
        if self._engine.failure is not None:
            raise EngineStopped(f"the engine failed: {self._engine.failure}")

    def __del__(self) -> None:
        """Stop the engine's threads."""
        with suppress(AttributeError):
            self._engine.close()


class PrefixRouter(RequestRouter):  # type: ignore[misc] # Ray is not typed here
    """Asks replicas in an order that the prompt's beginning fixes; one without room is passed over.

    A replica that goes or comes moves only the beginnings that were or become its own.
    Source: Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates".
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they are asked."""
        given = [] if pending_request is None else pending_request.args
        prefix = next((one.prefix for one in given if isinstance(one, Forwarded)), "")
        if not prefix:
            return [list(candidate_replicas)]
        ranked = sorted(candidate_replicas, key=lambda one: weight(prefix, one.replica_id.unique_id))
        return [[one] for one in ranked]


def weight(prefix: str, replica: str) -> bytes:
    """Return where a replica stands for a prefix, the least first."""
    return hashlib.blake2b(f"{replica}\0{prefix}".encode(), digest_size=8).digest()


def prefix_of(body: bytes) -> str:
    """Return how the prompt or the conversation begins, empty if there is none; nothing is checked here."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    prompt = (value.get("prompt") or value.get("messages")) if isinstance(value, dict) else None
    return json.dumps(prompt)[:PREFIX_CHARACTERS] if prompt else ""


class Relayed(Response):
    """Passes a replica's messages on, and tells the client to try again when the replica is lost.

    Before the first byte that is 503; in a stream it is the last event; a whole answer comes in one piece.
    """

    def __init__(self, messages: Any) -> None:
        """Take the response of a deployment's handle."""
        super().__init__()
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        held: list[Message] = []
        begun = ended = False
        try:
            async for message in self._messages:
                held.append(message)
                if message["type"] == "http.response.start":
                    del MutableHeaders(scope=message)["X-Request-Id"]  # Ray names it, alike
                    continue  # sent with the first piece
                ended = not message.get("more_body", False)
                begun = True
                while held:
                    await send(held.pop(0))
        except (RayError, RayServeException) as error:
            if not ended:
                await self._lost(error, scope, receive, send, streaming=begun)
        finally:
            self._messages.cancel()

    async def _lost(
        self, error: Exception, scope: Scope, receive: Receive, send: Send, *, streaming: bool
    ) -> None:
        told = _told(error)
        if not streaming:
            response = JSONResponse(told.body, status_code=told.status, headers=told.headers)
            await response(scope, receive, send)
            return
        event = f"data: {json.dumps(told.body)}\n\ndata: [DONE]\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": False})


def application(
    load: Callable[[], Engine], scale: Scale, settings: Settings, keys: list[Key] | None = None
) -> Any:
    """Return the application that Ray Serve runs; each replica calls `load`, in a process of its own."""
    sizes: dict[str, Any] = {"num_replicas": scale.least}
    if scale.most > scale.least:
        sizes = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scale.least, max_replicas=scale.most, target_ongoing_requests=scale.ongoing
            )
        }
    replica = serve.deployment(
        Replica,
        name=ENGINE,
        max_ongoing_requests=scale.ongoing,
        max_queued_requests=settings.max_queue,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.drain_s,
        ray_actor_options={"num_cpus": scale.cores},
        **sizes,
    )

    def front() -> Starlette:
        return front_of(serve.get_deployment_handle(ENGINE, app_name=APPLICATION), settings)

    return serve.deployment(
        serve.ingress(front)(),
        name=FRONT,
        num_replicas=FRONTS,
        max_ongoing_requests=FRONT_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    ).bind(replica.bind(load, settings, keys))


@contextmanager
def deployed(
    load: Callable[[], Engine],
    scale: Scale,
    settings: Settings,
    keys: list[Key] | None = None,
    *,
    cluster: str | None,
    listen: tuple[str, int],
) -> Iterator[None]:
    """Deploy on a cluster by its address, to stay, or on one that is made here and ends with the block."""
    host, port = listen
    ray.init(address=cluster or "local", log_to_driver=cluster is None)
    try:
        serve.start(http_options={"host": host, "port": port, "keep_alive_timeout_s": settings.keep_alive_s})
        serve.run(application(load, scale, settings, keys), name=APPLICATION, route_prefix="/")
        yield
        if cluster is None:
            serve.shutdown()
    finally:
        ray.shutdown()


def front_of(replicas: DeploymentHandle, settings: Settings) -> Starlette:
    """Return the application that hands requests on."""
    engines = replicas.respond.options(stream=True)

    async def forward(http: HttpRequest) -> Response:
        body = await read_body(http, settings)
        request = Forwarded(
            method=http.method,
            path=http.scope["path"],
            query=http.scope["query_string"],
            headers=list(http.scope["headers"]),
            client=http.scope.get("client"),
            body=body,
            prefix=prefix_of(body),
        )
        return Relayed(engines.remote(request))

    handlers: Any = {TokcError: _refused}
    return Starlette(routes=[Route("/{path:path}", forward, methods=METHODS)], exception_handlers=handlers)


async def _refused(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, TokcError), "registered for these"
    told = api_error(error)
    return JSONResponse(told.body, status_code=told.status, headers=told.headers)


def _told(error: Exception) -> ApiError:
    if isinstance(error, BackPressureError):
        return too_many("the queue is full", retry_after_s=1, code="queue_full")
    return unavailable("the replica was lost; send the request again", code="replica_lost", retry_after_s=1)
