"""A server in a thread of the test, over real sockets."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai

from tokc.runtime.engine import Engine
from tokc.runtime.server.service import Service
from tokc.runtime.server.serving import Server, Tls, listen, server_of

PROMPT = "once"
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass
class Served:
    """A running server, its engine, and clients for it."""

    url: str
    service: Service
    server: Server
    client: openai.OpenAI
    http: httpx.Client

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def get(self, path: str) -> str:
        return self.http.get(path).raise_for_status().text

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def wait_until_idle(self, seconds: float = 5.0) -> None:
        """Wait until no request runs or holds a page."""
        deadline = time.monotonic() + seconds
        while not self.idle and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.idle, self.engine.gauges

    @property
    def idle(self) -> bool:
        gauges = self.engine.gauges
        return gauges.running == gauges.waiting == gauges.pages_used == self.service.admission.open == 0


@contextmanager
def serving(service: Service, *, tls: Tls | None = None, key: str = "none") -> Iterator[Served]:
    """Serve on a free port of this machine."""
    listener = listen("127.0.0.1", 0, write_timeout_s=service.settings.write_timeout_s)
    port = listener.getsockname()[1]
    server = server_of(service, tls=tls)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
        assert thread.is_alive(), "the server did not start"
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    verify = str(tls.certificate) if tls else True
    headers = {"Authorization": f"Bearer {key}"}
    with (
        httpx.Client(base_url=url, verify=verify, headers=headers, timeout=20) as http,
        openai.OpenAI(
            base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=httpx.Client(verify=verify)
        ) as client,
    ):
        yield Served(url, service, server, client, http)
    server.should_exit = server.force_exit = True
    thread.join()
