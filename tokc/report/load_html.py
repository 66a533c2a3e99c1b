"""A load test in the HTML report: what tokens cost at each load, and what clients waited."""

from html import escape

from tokc.cost.prices import Price
from tokc.cost.serving.record import ServingBench, ServingPoint, costs_of
from tokc.cost.serving.slo import METRICS, PERCENTILES, parse_slo
from tokc.report import units
from tokc.report.html_parts import bar, row, table
from tokc.report.load_text import NAMES, verdict


def render(load: ServingBench, price: Price) -> str:
    """Return charts and a table; costs are at full use of the machine."""
    return f"{_costs(load, price)}\n{_waits(load)}"


def lead(load: ServingBench) -> str:
    """Return what was sent, as a paragraph."""
    slos = f" Objectives: {', '.join(load.slos)}." if load.slos else ""
    return (
        f"{load.workload}, {load.workload_summary}; {load.repetitions} repetitions, measured "
        f"{units.moment(load.measured_at)}. Times count from when a request was due.{slos}"
    )


def _costs(load: ServingBench, price: Price) -> str:
    rows = []
    for point in load.points:
        [cost] = costs_of(point, price, (1.0,))
        rows.append((point, cost))
    greatest = max(cost.output_alone for _, cost in rows)
    bars = "\n".join(
        _bar(
            point, units.usd(cost.output_alone), _split(cost.input, cost.output), cost.output_alone / greatest
        )
        for point, cost in rows
    )
    title = "<h3>USD for 1M output tokens, prompts included</h3>"
    return f'<figure class="bars">\n{title}\n{bars}\n</figure>'


def _split(prompt: float | None, output: float | None) -> str:
    if prompt is None or output is None:
        return ""
    return f"alone: 1M input {units.usd(prompt)}, 1M output {units.usd(output)}"


def _bar(point: ServingPoint, value: str, small: str, share: float) -> str:
    kept = {True: ", objectives kept", False: ", objectives not kept", None: ""}[point.slo_kept]
    rate = units.figures(point.output_tokens_per_s.median)
    note = f"<small>{rate} tokens/s{escape(kept)}{'; ' if small else ''}{small}</small>"
    return bar(point.arrival, f"{value} {note}", share)


def _waits(load: ServingBench) -> str:
    heads = ("load", "wait", *(f"p{one}" for one in PERCENTILES))
    limits = {(slo.metric, slo.percentile): slo.limit_s for slo in map(parse_slo, load.slos)}
    rows = (
        _row(point, metric, limits, heads) for point in load.points for metric in METRICS if metric != "itl"
    )
    return table(heads, rows)


def _row(
    point: ServingPoint, metric: str, limits: dict[tuple[str, int], float], heads: tuple[str, ...]
) -> str:
    latency = getattr(point, metric)
    cells = [point.arrival, NAMES[metric]]
    for percentile in PERCENTILES:
        median = latency.percentile(percentile).median
        cells.append(f"{units.seconds(median)}{verdict(median, limits.get((metric, percentile)))}")
    return row(heads, map(escape, cells))
