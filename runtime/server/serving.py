"""Listens, and stops gracefully: uvicorn with limits on connections and signals of our own.

The first SIGTERM (or SIGINT) stops admission while health and readiness are still answered; what runs may
finish until a deadline. The second stops at once.
"""

import asyncio
import gc
import json
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tokc.errors import TokcError, UnknownOption
from tokc.runtime.server.app import app_of
from tokc.runtime.server.errors import invalid, unavailable
from tokc.runtime.server.service import Service

STOPPED, KILLED = 0, 1
CLOSE_S = 5
SEND_BUFFER_BYTES = 128 << 10
SIGNALS = (signal.SIGTERM, signal.SIGINT)
READERS = 2  # threads that read long prompts and grammars; each keeps megabytes of its own from the first


class Tls(NamedTuple):
    """A certificate chain and its private key, in PEM files."""

    certificate: Path
    key: Path


class Connection(H11Protocol):
    """Closes a connection whose request does not arrive: headers must be whole within a time."""

    header_timeout_s = 15.0
    max_connections = 1024
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self.app = _full
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Read, and wait for the rest of the headers if they began."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_headers()
        else:
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has headers beyond the limit, as OpenAI words errors, and hang up."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            problem = msg.rstrip(".").lower() + "; headers may be too long"
            body = json.dumps(invalid(problem, None, "invalid_http").body).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            start = h11.Response(status_code=400, headers=[*headers, ("connection", "close")])
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request of a connection that is one too many."""
    error = unavailable("there are too many connections", code="too_many_connections")
    headers = {**error.headers, "Connection": "close"}
    await JSONResponse(error.body, status_code=error.status, headers=headers)(scope, receive, send)


class Server(uvicorn.Server):
    """Drains before it exits."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        """Serve a service."""
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None
        self.exit_code = STOPPED

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve_until_stopped`."""
        yield

    def stop(self) -> None:
        """Drain and exit; called again, exit at once."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self.exit_code = KILLED
            self._service.admission.cutoff.set()
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        await self._service.admission.drain(self._service.settings.drain_s)
        self.should_exit = True


def tls_of(certificate: Path | None, key: Path | None) -> Tls | None:
    """Return both files, or None for neither.

    Raises: UnknownOption if one is missing.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UnknownOption("TLS needs a certificate and its key", hint="give both --tls-cert and --tls-key")
    return Tls(certificate, key)


def require_safe_bind(host: str, *, has_keys: bool, has_tls: bool, allow: bool) -> list[str]:
    """Return what to warn of before listening on `host`.

    Raises: UnknownOption if other machines would be let in without a key, unless `allow` says so.
    """
    if is_loopback(host):
        return []
    if not has_keys and not allow:
        raise UnknownOption(
            f"'{host}' lets other machines in, and there are no API keys",
            where="--host",
            hint="give --api-keys FILE, or --allow-public if something else guards it",
        )
    warnings = [] if has_keys else [f"whoever reaches {host} may use this server"]
    return warnings if has_tls else [*warnings, "without TLS, keys and texts cross the network in clear"]


def server_of(service: Service, *, tls: Tls | None = None) -> Server:
    """Return a server for sockets from `listen`."""
    settings = service.settings
    certificate, key = (None, None) if tls is None else tls

    class Bounded(Connection):
        header_timeout_s = settings.header_timeout_s
        max_connections = settings.max_connections

    config = uvicorn.Config(
        app_of(service),
        http=Bounded,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=CLOSE_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as error:
        raise TokcError(
            f"the certificate or its key cannot be used: {error}", where=str(certificate)
        ) from error
    return Server(config, service)


def listen(host: str, port: int, *, write_timeout_s: float) -> socket.socket:
    """Return a listening socket; the kernel disconnects a peer that takes nothing for `write_timeout_s`.

    Raises: TokcError if the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UnknownOption(f"the address '{host}' is not known: {error}", where="--host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these; only the kernel can end one whose peer keeps its window closed.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(write_timeout_s * 1000))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise TokcError(f"cannot listen on {host}:{port}: {error}") from error
    return listener


def serve_until_stopped(
    server: Server, listener: socket.socket, on_start: Callable[[], object] = lambda: None
) -> int:
    """Serve until a signal; returns 0 after a graceful stop, 1 if a second signal cut it short.

    What was loaded so far is taken to stay: Python's collector leaves it alone from now on.
    """

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(READERS, "tokc-reader"))
        for number in SIGNALS:
            loop.add_signal_handler(number, server.stop)
        on_start()
        await server.serve(sockets=[listener])

    # A full collection waits until a quarter as much is new as is old: with all that was imported among the
    # old, requests' cycles pile up to megabytes before, and each collection stops the steps for milliseconds.
    gc.collect()
    gc.freeze()
    asyncio.run(run())
    return server.exit_code


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address.

    Raises: UnknownOption if nobody knows it.
    """
    try:
        found: list[Any] = socket.getaddrinfo(host, None)
    except OSError as error:
        raise UnknownOption(f"the address '{host}' is not known: {error}", where="--host") from error
    return all(entry[4][0] == "::1" or entry[4][0].startswith("127.") for entry in found)
