"""A load test on a terminal."""

from collections.abc import Callable, Iterable

from rich.console import Group

from tokc.cost.energy import Carbon
from tokc.cost.prices import Price, today
from tokc.cost.serving.record import Latency, ServingBench, ServingPoint, costs_of
from tokc.cost.serving.slo import METRICS, PERCENTILES, parse_slo
from tokc.cost.spread import Spread
from tokc.report import emissions, sections, units
from tokc.report.model import DISTURBED_SHARE, UTILIZATIONS
from tokc.report.sections import Section

NAMES = {"ttft": "first token", "tpot": "per token", "itl": "between pieces", "e2e": "whole answer"}


def terminal_of(bench: ServingBench, price: Price, carbon: Carbon | None = None) -> Group:
    """Return the tables for a rich console."""
    found = [*_sections(bench, price)]
    if carbon is not None:
        found.append(emissions.section(emissions.emissions_of(carbon, bench, (), None)))
    return sections.terminal(headline(bench), found)


def verdict(figure: float, limit: float | None) -> str:
    """Return ` over` for a wait above its limit."""
    return " over" if limit is not None and figure > limit else ""


def headline(bench: ServingBench) -> str:
    """Return what was sent where, and when."""
    where = bench.url or "this process"
    return (
        f"{bench.artifact} in {where}: {bench.workload} ({bench.workload_summary}), "
        f"{bench.repetitions} repetitions, measured {units.moment(bench.measured_at)}"
    )


def _sections(bench: ServingBench, price: Price) -> Iterable[Section]:
    yield _rates(bench)
    for metric in METRICS:
        yield _latencies(bench, metric)
    yield _inside(bench)
    yield _costs(bench, price)


def _rates(bench: ServingBench) -> Section:
    rows = tuple(
        (
            point.arrival,
            f"{point.requests:g}",
            f"{point.failed:g}",
            _spread(point.output_tokens_per_s),
            units.figures(point.total_tokens_per_s.median),
            units.figures(point.requests_per_s.median),
            "–" if point.goodput_per_s is None else units.figures(point.goodput_per_s.median),
            {True: "kept", False: "not kept", None: "–"}[point.slo_kept],
        )
        for point in bench.points
    )
    columns = (
        "load",
        "requests",
        "failed",
        "output tokens/s",
        "all tokens/s",
        "requests/s",
        "goodput/s",
        "SLO",
    )
    notes = [f"Goodput and SLO: {', '.join(bench.slos)}."] if bench.slos else []
    if bench.foreign_cpu >= DISTURBED_SHARE:
        notes.append(f"Other programs took {bench.foreign_cpu:.0%} of the cores meanwhile: measure again.")
    return Section("Rates: median, least to greatest", columns, rows, "\n".join(notes) or None)


def _latencies(bench: ServingBench, metric: str) -> Section:
    limits = {(slo.metric, slo.percentile): slo.limit_s for slo in map(parse_slo, bench.slos)}

    def cell(latency: Latency, percentile: int) -> str:
        spread = latency.percentile(percentile)
        text = f"{units.seconds(spread.median)} ({units.seconds(spread.greatest)})"
        return text + verdict(spread.median, limits.get((metric, percentile)))

    rows = tuple(
        (point.arrival, *(cell(getattr(point, metric), percentile) for percentile in PERCENTILES))
        for point in bench.points
    )
    title = f"{NAMES[metric].capitalize()}: {METRICS[metric]}; median (greatest) of the repetitions"
    return Section(title, ("load", *(f"p{percentile}" for percentile in PERCENTILES)), rows)


def _inside(bench: ServingBench) -> Section:
    figures: tuple[tuple[str, Callable[[ServingPoint], float | None], str], ...] = (
        ("running", lambda point: point.running, "{:.1f}"),
        ("waiting", lambda point: point.waiting, "{:.1f}"),
        ("waiting at most", lambda point: point.waiting_most, "{:d}"),
        ("cache in use at most", lambda point: point.pages_peak, "{:.1%}"),
        ("prompt found in the cache", lambda point: point.prefix_hit, "{:.1%}"),
        ("time for prompts", lambda point: point.prefill_share, "{:.1%}"),
        ("J/output token", lambda point: point.joules_per_output_token, "{:.3g}"),
    )
    shown = [row for row in figures if any(row[1](point) is not None for point in bench.points)]

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else form.format(value)

    rows = tuple(
        (point.arrival, *(cell(find(point), form) for _, find, form in shown)) for point in bench.points
    )
    return Section("Inside", ("load", *(name for name, _, _ in shown)), rows if shown else ())


def _costs(bench: ServingBench, price: Price) -> Section:
    rows = []
    for point in bench.points:
        for cost in costs_of(point, price, UTILIZATIONS):
            parts = (cost.input, cost.output, cost.blended, cost.output_alone)
            cells = ("–" if usd is None else units.usd(usd) for usd in parts)
            rows.append((point.arrival, f"{cost.utilization:.0%}", *cells))
    columns = ("load", "machine in use", "input", "output", "any token", "all on output")
    note = (
        f"{price.stated(today())}. Input and output share the cost by the time that the steps took for each."
    )
    return Section("USD for 1M tokens, measured", columns, tuple(rows), note)


def _spread(spread: Spread) -> str:
    least, greatest = units.figures(spread.least), units.figures(spread.greatest)
    return f"{units.figures(spread.median)} ({least} to {greatest})"
