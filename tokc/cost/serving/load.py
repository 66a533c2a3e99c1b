"""Sends a workload and measures what its clients wait for.

A request's times count from when it was due, not from when it was sent: a client that waits for its turn
waits all the same (Tene 2013, "How not to measure latency", on coordinated omission).
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from tokc.cost.serving.endpoint import Busy, Endpoint, Heard, State
from tokc.cost.serving.slo import METRICS, Slo, kept_by
from tokc.cost.serving.workload import Ask, Workload
from tokc.errors import TokcError, UnknownOption

SAMPLE_S = 0.02
WARM_UP = 2
Progress = Callable[[str], None]
Send = Callable[[Ask, float], Coroutine[None, None, None]]


@dataclass(frozen=True)
class Arrival:
    """When requests come.

    From `concurrency` clients that each send the next when the last was answered; or `rate` a second on
    average, at random (a Poisson process); or, with neither, as the trace says.
    """

    concurrency: int | None = None
    rate: float | None = None

    @property
    def text(self) -> str:
        """Return it as a table prints it."""
        if self.concurrency is not None:
            return f"{self.concurrency} at once"
        return "as traced" if self.rate is None else f"{self.rate:g}/s"


@dataclass(frozen=True)
class Effort:
    """How much is sent: `requests` a repetition, and how often; and what a request should keep."""

    requests: int = 64
    repetitions: int = 3
    slos: tuple[Slo, ...] = ()


@dataclass
class Outcome:
    """What one repetition saw: waits in seconds by metric, one a request (or a gap), counts and states."""

    waits: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in METRICS})
    heard: list[Heard] = field(default_factory=list)
    kept: int = 0
    failures: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    seconds: float = 0.0
    busy: Busy | None = None

    def note(self, due_s: float, heard: Heard, slos: Sequence[Slo]) -> None:
        """Add a request that was answered."""
        first, last = heard.times_s[0], heard.times_s[-1]
        own = {"ttft": first - due_s, "e2e": last - due_s}
        if heard.output_tokens > 1:
            own["tpot"] = (last - first) / (heard.output_tokens - 1)
        gaps = [after - before for before, after in zip(heard.times_s, heard.times_s[1:], strict=False)]
        for name, value in own.items():
            self.waits[name].append(value)
        self.waits["itl"] += gaps
        self.heard.append(heard)
        worst = {**own, "itl": max(gaps, default=0.0)}
        self.kept += kept_by(worst, slos)


async def run(
    endpoint: Endpoint,
    workload: Workload,
    arrival: Arrival,
    effort: Effort,
    progress: Progress = lambda _: None,
    seed: int = 0,
) -> list[Outcome]:
    """Send a workload several times, after a warm-up, and return what each repetition saw.

    Repetitions are numbered from `seed` on; the requests of one number are always the same, and those of
    different ones share no cached beginning, as far as the endpoint can be told so.

    Raises: TokcError if every request of a repetition failed, telling how the first one did.
    """
    if arrival.concurrency is None and arrival.rate is None and not workload.timed:
        raise UnknownOption(
            f"workload '{workload.name}' does not say when its requests come",
            hint="give --rate or --concurrency",
        )
    for ask in workload.asks(seed, WARM_UP):
        with suppress(TokcError):
            await endpoint.answer(ask, "warm-up")
    outcomes = []
    for repetition in range(effort.repetitions):
        progress(f"load {arrival.text}, {repetition + 1} of {effort.repetitions}")
        asks = workload.asks(seed + repetition, effort.requests)
        outcome = await _repetition(endpoint, asks, arrival, seed + repetition, effort.slos)
        if not outcome.heard:
            raise TokcError(f"every request failed; the first: {outcome.failures[0]}")
        outcomes.append(outcome)
    return outcomes


async def _repetition(
    endpoint: Endpoint, asks: Sequence[Ask], arrival: Arrival, number: int, slos: Sequence[Slo]
) -> Outcome:
    outcome, salt = Outcome(), f"repetition {number}"

    async def one(ask: Ask, due_s: float) -> None:
        try:
            heard = await endpoint.answer(ask, salt)
        except TokcError as error:
            outcome.failures.append(str(error))
        else:
            outcome.note(due_s, heard, slos)

    busy, watch = endpoint.busy(), asyncio.create_task(_watch(endpoint, outcome.states))
    start_s = time.perf_counter()
    try:
        if arrival.concurrency is not None:
            await _closed(asks, arrival.concurrency, one)
        else:
            await _open(asks, _due(asks, arrival, number), one)
    finally:
        outcome.seconds = time.perf_counter() - start_s
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    after = endpoint.busy()
    if busy is not None and after is not None:
        outcome.busy = Busy(after.prefill_s - busy.prefill_s, after.decode_s - busy.decode_s)
    return outcome


async def _closed(asks: Sequence[Ask], concurrency: int, one: Send) -> None:
    """Let so many clients take the requests in turn."""
    waiting = iter(asks)

    async def client() -> None:
        for ask in waiting:
            await one(ask, time.perf_counter())

    await asyncio.gather(*(client() for _ in range(concurrency)))


async def _open(asks: Sequence[Ask], due: Sequence[float], one: Send) -> None:
    """Send each request when it is due, whatever became of the others."""
    start_s = time.perf_counter()
    tasks: list[asyncio.Task[None]] = []
    for ask, at_s in zip(asks, due, strict=True):
        await asyncio.sleep(max(0.0, start_s + at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(ask, start_s + at_s)))
    await asyncio.gather(*tasks)


def _due(asks: Sequence[Ask], arrival: Arrival, seed: int) -> list[float]:
    """Return the seconds, from the start, at which requests come."""
    if arrival.rate is None:
        return [ask.at_s or 0.0 for ask in asks]
    gaps = np.random.default_rng(seed).exponential(1 / arrival.rate, len(asks))
    return [float(at_s) for at_s in np.cumsum(gaps) - gaps[0]]


async def _watch(endpoint: Endpoint, states: list[State]) -> None:
    """Look at the endpoint now and then, if it lets itself be looked at."""
    while (state := endpoint.state()) is not None:
        states.append(state)
        await asyncio.sleep(SAMPLE_S)
