"""Holds a server under load and looks for leaks, wrong tokens and undeclared failures."""

import asyncio
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from tests.conftest import repository
from tests.soak.clients import Answered, Clients, text_of
from tests.soak.watch import Held, held_by, rss_slope

SAMPLE_S = 1.0
IDLE_S = 20.0
SLOPE_FROM_S = 240.0  # buffers of the connections and the allocator's first arenas come before


@dataclass
class Outcome:
    """What a soak found; `faults` is empty if all went well."""

    seconds: float
    clients: int
    requests: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    rss_first_mib: float = 0.0
    rss_last_mib: float = 0.0
    rss_slope_mib_per_min: float = 0.0
    rss_mib_each_10_s: list[float] = field(default_factory=list)
    fds_before: int = 0
    fds_after: int = 0
    exit_code: int | None = None
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it for a file."""
        return asdict(self)


async def soak(
    *, seconds: float, clients: int, seed: int, keep: int, most_slope_mib_per_min: float
) -> Outcome:
    """Start a server, load it, look, and stop it; the growth of memory is judged from 4 minutes on."""
    command = [sys.executable, "-m", "tests.soak.server"]
    with subprocess.Popen(command, cwd=repository(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "it was asked for"
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            outcome = Outcome(seconds, clients)
            await _load(process.pid, url, outcome, seed, keep)
            if seconds >= SLOPE_FROM_S and outcome.rss_slope_mib_per_min > most_slope_mib_per_min:
                outcome.faults.append(f"memory grows by {outcome.rss_slope_mib_per_min:.2f} MiB a minute")
            process.send_signal(signal.SIGTERM)
            outcome.exit_code = process.wait(20)
            if outcome.exit_code != 0:
                outcome.faults.append(f"the server exited with {outcome.exit_code}")
        finally:
            process.kill()
    return outcome


async def _load(process_id: int, url: str, outcome: Outcome, seed: int, keep: int) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=outcome.clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        await http.get("/health")
        outcome.fds_before = held_by(process_id, 0).fds
        clients = Clients(url, http, seed=seed, keep=keep)
        until_s = asyncio.get_running_loop().time() + outcome.seconds
        watching = asyncio.create_task(_watch(process_id))
        await asyncio.gather(*(clients.work(until_s) for _ in range(outcome.clients)))
        watching.cancel()
        samples: list[Held] = (await asyncio.gather(watching, return_exceptions=True))[0]  # type: ignore[assignment]
        outcome.rss_first_mib, outcome.rss_last_mib = samples[0].rss_mib, samples[-1].rss_mib
        outcome.rss_slope_mib_per_min = rss_slope(samples)
        outcome.rss_mib_each_10_s = [round(one.rss_mib, 1) for one in samples[::10]]
        outcome.statuses = dict(sorted(clients.statuses.items()))
        outcome.requests = sum(clients.statuses.values())
        outcome.faults += clients.faults
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await _settle(http, outcome)
        for answered in clients.answered:
            await _compare(http, answered, outcome)
        await _settle(http, outcome)
    deadline_s = time.monotonic() + IDLE_S
    while held_by(process_id, 0).fds >= outcome.fds_before and time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)
    outcome.fds_after = held_by(process_id, 0).fds
    if outcome.fds_after >= outcome.fds_before:  # one of those was the connection that asked for /health
        outcome.faults.append(f"{outcome.fds_after} file descriptors are open, {outcome.fds_before} before")


async def _watch(process_id: int) -> list[Held]:
    samples, began_s = [held_by(process_id, 0.0)], time.monotonic()
    try:
        while True:
            await asyncio.sleep(SAMPLE_S)
            samples.append(held_by(process_id, time.monotonic() - began_s))
    except asyncio.CancelledError:
        return samples


async def _compare(http: httpx.AsyncClient, answered: Answered, outcome: Outcome) -> None:
    """Make a request again, alone, and compare the texts."""
    answer = await http.post(answered.path, json={**answered.body, "cache_salt": f"alone {outcome.compared}"})
    outcome.compared += 1
    if answer.status_code != 200 or text_of(answer.json()) != answered.text:
        outcome.faults.append(f"another answer alone: {answered.body}")


async def _settle(http: httpx.AsyncClient, outcome: Outcome) -> None:
    """Wait until nothing runs; no page may be in use then."""
    deadline_s = time.monotonic() + IDLE_S
    while True:
        text = (await http.get("/metrics")).text
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        busy = {
            name: samples[name]
            for name in ("tokc_requests_running", "tokc_requests_waiting", "tokc_kv_pages_used")
            if samples[name] != "0"
        }
        if not busy:
            break
        if time.monotonic() > deadline_s:
            outcome.faults.append(f"not idle after {IDLE_S:g} s: {busy}")
            break
        await asyncio.sleep(0.05)
    outcome.preemptions = int(samples["tokc_preemptions_total"])
    outcome.cached_tokens = int(samples["tokc_cached_tokens_total"])
    outcome.output_tokens = int(samples["tokc_output_tokens_total"])
