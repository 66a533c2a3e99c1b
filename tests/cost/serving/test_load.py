"""Load: what is counted from when, against an endpoint whose times are known."""

import asyncio
import time

import pytest

from tests.runtime.conftest import MakeEngine
from tests.runtime.server.background import Served, serving
from tokc.cost.prices import parse_price
from tokc.cost.serving.endpoint import EngineEndpoint, Heard, http_endpoint
from tokc.cost.serving.load import Arrival, Effort, run
from tokc.cost.serving.record import Plan, Subject, costs_of, measure_load, point_of
from tokc.cost.serving.slo import parse_slo
from tokc.cost.serving.workload import Ask, Workload
from tokc.errors import TokcError, UnknownOption
from tokc.runtime.server.service import Service

ASKS = tuple(Ask(f"prompt {index}", 4, index * 0.01) for index in range(6))
TRACE = Workload("trace", "six requests", "", trace=ASKS)
UNTIMED = Workload("trace", "six requests", "", trace=tuple(Ask(ask.prompt, 4) for ask in ASKS))
ONCE = Effort(requests=6, repetitions=1)


class OneAtATime:
    """Answers each request in `seconds`, one after another, in two pieces."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.turn = seconds, asyncio.Lock()
        self.most = self.now = 0

    async def answer(self, ask: Ask, salt: str) -> Heard:
        if ask.prompt == "bad":
            raise TokcError("refused")
        self.now += 1
        self.most = max(self.most, self.now)
        async with self.turn:
            await asyncio.sleep(self.seconds / 2)
            first = time.perf_counter()
            await asyncio.sleep(self.seconds / 2)
        self.now -= 1
        return Heard((first, time.perf_counter()), 10, ask.output_tokens, 5)

    def state(self) -> None:
        return None

    def busy(self) -> None:
        return None


def test_what_waits_for_its_turn_has_waited_since_it_was_due() -> None:
    async def measure() -> list[float]:
        [outcome] = await run(OneAtATime(0.05), TRACE, Arrival(), ONCE)
        return sorted(outcome.waits["e2e"])

    waits = asyncio.run(measure())
    # Requests come every 10 ms and leave every 50 ms: the last has waited 6 * 50 - 5 * 10 ms.
    assert waits[0] == pytest.approx(0.05, abs=0.03)
    assert waits[-1] == pytest.approx(0.25, abs=0.05)


def test_a_closed_loop_has_as_many_clients_as_it_says() -> None:
    async def most() -> int:
        endpoint = OneAtATime(0.005)
        await run(endpoint, UNTIMED, Arrival(concurrency=3), ONCE)
        return endpoint.most

    assert asyncio.run(most()) == 3


def test_failures_are_counted_apart() -> None:
    workload = Workload("trace", "", "", trace=(Ask("bad", 4), *UNTIMED.trace))

    async def measure() -> tuple[int, int]:
        [outcome] = await run(OneAtATime(0.001), workload, Arrival(concurrency=2), Effort(7, 1))
        return len(outcome.heard), len(outcome.failures)

    assert asyncio.run(measure()) == (6, 1)


def test_a_load_that_nobody_answers_is_an_error() -> None:
    workload = Workload("trace", "", "", trace=(Ask("bad", 4),))
    with pytest.raises(TokcError, match="every request failed; the first: refused"):
        asyncio.run(run(OneAtATime(0.001), workload, Arrival(concurrency=1), ONCE))


def test_a_trace_without_times_needs_a_load() -> None:
    with pytest.raises(UnknownOption, match="does not say when"):
        asyncio.run(run(OneAtATime(0.001), UNTIMED, Arrival(), ONCE))


def test_goodput_counts_requests_that_kept_every_objective() -> None:
    slos = (parse_slo("e2e_p50=120ms"),)

    async def measure() -> tuple[int, bool | None]:
        outcomes = await run(OneAtATime(0.05), TRACE, Arrival(), Effort(6, 1, slos))
        return outcomes[0].kept, point_of(Arrival(), outcomes, slos).slo_kept

    kept, slo_kept = asyncio.run(measure())
    assert 1 <= kept <= 3
    assert slo_kept is False


def test_an_engine_is_seen_from_inside(make_engine: MakeEngine) -> None:
    engine = make_engine(max_tokens=64, num_pages=512)
    asks = tuple(Ask(f"prompt {index:02}", 40) for index in range(80))
    plan = Plan(
        Workload("trace", "", "", trace=asks), (Arrival(concurrency=2), Arrival(rate=400.0)), Effort(80, 3)
    )
    bench = asyncio.run(measure_load(EngineEndpoint(engine), Subject("hash"), plan, lambda _: None))
    for point in bench.points:
        assert (point.requests, point.failed, point.output_tokens) == (80, 0, 80 * 40)
        assert point.prompt_tokens == sum(len(ask.prompt) for ask in asks)
        assert 0 < (point.prefill_share or 0) < 1
        assert 0 < (point.pages_peak or 0) <= 1
        assert point.output_tokens_per_s.repetitions == 3


def test_a_server_counts_the_same_tokens(make_engine: MakeEngine) -> None:
    async def measure(served: Served) -> tuple[float, float, str]:
        async with http_endpoint(served.url, None, None) as endpoint:
            outcomes = await run(endpoint, UNTIMED, Arrival(concurrency=2), ONCE)
            point = point_of(Arrival(concurrency=2), outcomes, ())
            return point.prompt_tokens, point.output_tokens, endpoint.model

    with serving(Service(make_engine(max_tokens=64, num_pages=512))) as served:
        assert asyncio.run(measure(served)) == (sum(len(ask.prompt) for ask in ASKS), 24, "hash")


def test_a_server_that_is_not_there_is_an_error() -> None:
    async def ask() -> None:
        async with http_endpoint("http://127.0.0.1:9", None, None):
            pass

    with pytest.raises(TokcError, match="cannot list the models"):
        asyncio.run(ask())


def test_input_and_output_share_all_that_was_paid(make_engine: MakeEngine) -> None:
    plan = Plan(UNTIMED, (Arrival(concurrency=2),), Effort(6, 3))
    endpoint = EngineEndpoint(make_engine(max_tokens=64, num_pages=512))
    [point] = asyncio.run(measure_load(endpoint, Subject("hash"), plan, lambda _: None)).points
    full, half = costs_of(point, parse_price("3.60/h"), (1.0, 0.5))
    assert full.input is not None
    assert full.output is not None
    output = point.output_tokens_per_s.median
    prompt = point.total_tokens_per_s.median - output
    assert full.input * prompt + full.output * output == pytest.approx(3.60 / 3600 * 1e6)
    assert full.blended * (prompt + output) == pytest.approx(3.60 / 3600 * 1e6)
    assert half.blended == pytest.approx(2 * full.blended)
