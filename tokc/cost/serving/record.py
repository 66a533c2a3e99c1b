"""A load test's figures, each with its spread over repetitions."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from tokc.cost.devices import CpuWatch
from tokc.cost.energy import EnergyCounter
from tokc.cost.measure import peak_rss_bytes
from tokc.cost.prices import HOUR_S, Price
from tokc.cost.serving.endpoint import Endpoint
from tokc.cost.serving.load import Arrival, Effort, Outcome, Progress, run
from tokc.cost.serving.slo import Slo
from tokc.cost.serving.workload import Workload
from tokc.cost.spread import Spread

MTOK = 1e6


@dataclass(frozen=True)
class Latency:
    """Percentiles of what was waited, in seconds."""

    p50: Spread
    p90: Spread
    p95: Spread
    p99: Spread

    def percentile(self, percent: int) -> Spread:
        """Return one of them: 50, 90, 95 or 99."""
        return {50: self.p50, 90: self.p90, 95: self.p95, 99: self.p99}[percent]


@dataclass(frozen=True)
class ServingPoint:
    """What was measured at one load; counts are of one repetition, on average.

    `goodput_per_s` are requests a second that kept every objective. `pages_peak` is the largest share of the
    cache in use, `prefix_hit` the share of prompt tokens that were found in it. `prefill_share` is the part
    of the steps' time that prompts took. What a server does not show is None.
    """

    arrival: str
    concurrency: int | None
    rate: float | None
    requests: float
    failed: float
    seconds: float
    prompt_tokens: float
    output_tokens: float
    ttft: Latency
    tpot: Latency
    itl: Latency
    e2e: Latency
    requests_per_s: Spread
    output_tokens_per_s: Spread
    total_tokens_per_s: Spread
    goodput_per_s: Spread | None = None
    slo_kept: bool | None = None
    running: float | None = None
    waiting: float | None = None
    waiting_most: int | None = None
    pages_peak: float | None = None
    prefix_hit: float | None = None
    prefill_share: float | None = None
    joules_per_output_token: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a load test sends: a workload, at each of the loads, with so much effort."""

    workload: Workload
    arrivals: tuple[Arrival, ...]
    effort: Effort


@dataclass(frozen=True)
class ServingBench:
    """A load test; of an artifact in this process, or of the server at `url`, whose machine is not seen."""

    artifact: str
    manifest_sha256: str | None
    url: str | None
    measured_at: str
    workload: str
    workload_summary: str
    workload_sha256: str
    slos: tuple[str, ...]
    repetitions: int
    points: tuple[ServingPoint, ...]
    foreign_cpu: float = 0.0
    peak_rss_bytes: int | None = None
    schema_version: int = 1


@dataclass(frozen=True)
class Subject:
    """What is tested, and on what machine; the fields are those of ServingBench."""

    artifact: str
    manifest_sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class LoadCost:
    """USD for a million tokens at one load and utilization.

    `input` and `output` are None where it is not known how the time was split; both, times the tokens of
    either kind, add up to all that was paid. `blended` is for any token.
    """

    utilization: float
    blended: float
    input: float | None
    output: float | None
    output_alone: float


async def measure_load(endpoint: Endpoint, subject: Subject, plan: Plan, progress: Progress) -> ServingBench:
    """Send the workload at each load; energy is that of the whole machine, where it counts it.

    Raises: TokcError if every request failed at a load.
    """
    watch, points = CpuWatch(), []
    for index, arrival in enumerate(plan.arrivals):
        energy, seed = EnergyCounter(), index * plan.effort.repetitions
        outcomes = await run(endpoint, plan.workload, arrival, plan.effort, progress, seed)
        joules = energy.joules() if subject.url is None else None
        points.append(point_of(arrival, outcomes, plan.effort.slos, joules))
    own = subject.url is None
    return ServingBench(
        artifact=subject.artifact,
        manifest_sha256=subject.manifest_sha256,
        url=subject.url,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        workload=plan.workload.name,
        workload_summary=plan.workload.summary,
        workload_sha256=plan.workload.sha256,
        slos=tuple(slo.text for slo in plan.effort.slos),
        repetitions=plan.effort.repetitions,
        points=tuple(points),
        foreign_cpu=watch.foreign_share() if own else 0.0,
        peak_rss_bytes=peak_rss_bytes() if own else None,
    )


def point_of(
    arrival: Arrival, outcomes: Sequence[Outcome], slos: Sequence[Slo], joules: float | None = None
) -> ServingPoint:
    """Summarize the repetitions at one load; `joules` were used by all of them together."""
    output = [float(sum(heard.output_tokens for heard in one.heard)) for one in outcomes]
    prompt = [float(sum(heard.prompt_tokens for heard in one.heard)) for one in outcomes]
    cached = sum(heard.cached_tokens for one in outcomes for heard in one.heard)
    latencies = {name: _latency(name, outcomes) for name in ("ttft", "tpot", "itl", "e2e")}
    kept = [latencies[slo.metric].percentile(slo.percentile).median <= slo.limit_s for slo in slos]
    busy = [one.busy for one in outcomes if one.busy is not None]
    busy_s = sum(one.prefill_s + one.decode_s for one in busy)
    states = [state for one in outcomes for state in one.states]
    return ServingPoint(
        arrival=arrival.text,
        concurrency=arrival.concurrency,
        rate=arrival.rate,
        requests=statistics.fmean(len(one.heard) for one in outcomes),
        failed=statistics.fmean(len(one.failures) for one in outcomes),
        seconds=statistics.fmean(one.seconds for one in outcomes),
        prompt_tokens=statistics.fmean(prompt),
        output_tokens=statistics.fmean(output),
        **latencies,
        requests_per_s=_rate(outcomes, lambda one: len(one.heard)),
        output_tokens_per_s=Spread.of([n / one.seconds for n, one in zip(output, outcomes, strict=True)]),
        total_tokens_per_s=Spread.of(
            [(n + m) / one.seconds for n, m, one in zip(output, prompt, outcomes, strict=True)]
        ),
        goodput_per_s=_rate(outcomes, lambda one: one.kept) if slos else None,
        slo_kept=all(kept) and not any(one.failures for one in outcomes) if slos else None,
        running=statistics.fmean(state.running for state in states) if states else None,
        waiting=statistics.fmean(state.waiting for state in states) if states else None,
        waiting_most=max(state.waiting for state in states) if states else None,
        pages_peak=max(state.pages for state in states) if states else None,
        prefix_hit=cached / sum(prompt) if sum(prompt) else None,
        prefill_share=sum(one.prefill_s for one in busy) / busy_s if busy_s else None,
        joules_per_output_token=None if joules is None else joules / sum(output),
    )


def costs_of(point: ServingPoint, price: Price, utilizations: Sequence[float]) -> tuple[LoadCost, ...]:
    """Return what a million tokens cost at a load if the machine serves it for a share of the paid time."""
    usd_per_s = price.usd_per_hour / HOUR_S
    total, output = point.total_tokens_per_s.median, point.output_tokens_per_s.median
    found = []
    for utilization in utilizations:
        paid = usd_per_s / utilization * MTOK
        split: tuple[float | None, float | None] = (None, None)
        if point.prefill_share is not None and total > output:
            split = (paid * point.prefill_share / (total - output), paid * (1 - point.prefill_share) / output)
        found.append(LoadCost(utilization, paid / total, *split, output_alone=paid / output))
    return tuple(found)


def _latency(metric: str, outcomes: Sequence[Outcome]) -> Latency:
    values = [one.waits[metric] or [0.0] for one in outcomes]
    return Latency(*(Spread.of([float(np.percentile(v, p)) for v in values]) for p in (50, 90, 95, 99)))


def _rate(outcomes: Sequence[Outcome], count: Callable[[Outcome], int]) -> Spread:
    return Spread.of([count(one) / one.seconds for one in outcomes])
