"""A process that is told to stop: it finishes what runs, or says that it could not."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.conftest import repository

BODY = {"prompt": "once", "max_tokens": 60, "ignore_eos": True, "stream": True}

Start = Callable[[float], tuple[subprocess.Popen[str], httpx.Client]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a server process."""
    with ExitStack() as stack:

        def run(drain_s: float) -> tuple[subprocess.Popen[str], httpx.Client]:
            command = [sys.executable, "-m", "tests.runtime.server.serve_slow_model", str(drain_s)]
            process = stack.enter_context(
                subprocess.Popen(command, cwd=repository(), stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            port = int(process.stdout.readline())
            return process, stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20))

        yield run


def wait_until_running(client: httpx.Client) -> None:
    while "tokc_requests_running 1" not in client.get("/metrics").text:
        time.sleep(0.01)


def events(client: httpx.Client, **change: object) -> list[str]:
    answer = client.post("/v1/completions", json={**BODY, **change})
    assert answer.status_code == 200, answer.text
    return [line[6:] for line in answer.text.splitlines() if line]


def test_the_first_signal_lets_what_runs_finish(start: Start) -> None:
    process, client = start(20)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(events, client)
        wait_until_running(client)
        process.send_signal(signal.SIGTERM)
        while client.get("/ready").status_code == 200:
            time.sleep(0.01)
        assert client.get("/health").json() == {"status": "stopping"}
        refused = client.post("/v1/completions", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        lines = running.result()
    assert json.loads(lines[-2])["choices"][0]["finish_reason"] == "length"
    assert lines[-1] == "[DONE]"
    assert process.wait(10) == 0


def test_after_the_deadline_what_still_runs_is_told_so(start: Start) -> None:
    process, client = start(0.3)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(events, client, max_tokens=1500)
        wait_until_running(client)
        process.send_signal(signal.SIGTERM)
        lines = running.result()
    assert json.loads(lines[-2])["error"]["code"] == "stopping"
    assert process.wait(10) == 0


def test_the_second_signal_stops_at_once(start: Start) -> None:
    process, client = start(60)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(events, client, max_tokens=1500)
        wait_until_running(client)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(10) == 1
        assert time.monotonic() - began < 2
        assert running.exception() is not None or "stopping" in running.result()[-2]
