"""The report as one HTML file that needs nothing else: no script, no font, no network."""

import re
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from tokc.cost.devices import Host
from tokc.cost.evaluation import Evaluation
from tokc.cost.profile import Profile
from tokc.cost.serving.record import ServingBench
from tokc.report import (
    drafts,
    emissions,
    kernel_html,
    kernel_table,
    load_html,
    prediction_html,
    quality,
    units,
    waterfall_html,
)
from tokc.report.emissions import Emissions
from tokc.report.html_parts import bar, page, row, table
from tokc.report.model import Batch, Figure, LedgerRow, Report, TokenCost
from tokc.report.prediction import Prediction
from tokc.report.sections import Section


class Part(NamedTuple):
    """A section of the page, as HTML."""

    title: str
    html: str


def render(report: Report) -> str:
    """Return the page."""
    parts = [_costs(report), _speed(report), _bytes(report)]
    parts += map(_plain, drafts.sections(report.drafted, report.price)) if report.drafted else []
    parts += [] if report.load is None else [_load(report.load, report)]
    parts += [] if report.profile is None else [_kernels(report.profile)]
    parts += [] if report.prediction is None else [_prediction(report.prediction)]
    parts += [_ledger(report)]
    parts += [] if report.evaluation is None else [_quality(report.evaluation)]
    parts += [] if report.emissions is None else [_emissions(report.emissions)]
    parts += [_method(report)]
    body = [_head(report), _tiles(report), _contents(parts), *(part.html for part in parts)]
    return page(f"{report.identity.name}: cost of a token", "\n".join(body))


def _contents(parts: Iterable[Part]) -> str:
    """Return links to the sections, which stay in sight."""
    links = (f'<a href="#{_anchor(part.title)}">{escape(part.title)}</a>' for part in parts)
    return '<nav aria-label="Sections">\n' + "\n".join(links) + "\n</nav>"


def _anchor(title: str) -> str:
    return "-".join(re.findall("[a-z0-9]+", title.lower()))


def _head(report: Report) -> str:
    identity, host = report.identity, report.host
    when = (
        "predicted, not measured"
        if report.measured_at is None
        else f"measured {units.moment(report.measured_at)}"
    )
    line = f"{host.cpu}, {host.cores} cores, {identity.target}, {when}"
    return f'<h1>{escape(identity.name)}</h1>\n<p class="lead">The cost of a token on {escape(line)}</p>'


def _tiles(report: Report) -> str:
    full = {cost.batch: cost for cost in report.costs if cost.utilization == 1}
    most, first = full[max(full)], report.batches[0]
    tiles = [(units.usd(most.usd_per_mtok), f"for 1M output tokens, {most.batch} requests at once")]
    if len(full) > 1:
        alone = full[min(full)]
        tiles.append((units.usd(alone.usd_per_mtok), f"for 1M output tokens, {_requests(alone.batch)}"))
    for figure in first.figures[:2]:
        value = figure.predicted if figure.measured is None else figure.measured
        assert value is not None, "a figure is measured or predicted"
        tiles.append((units.quantity(value, figure.unit), f"{figure.name}, {_requests(first.batch)}"))
    cells = (
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles
    )
    return '<div class="tiles">\n' + "\n".join(cells) + "\n</div>"


def _requests(count: int) -> str:
    return "one request at a time" if count == 1 else f"{count} requests at once"


def _costs(report: Report) -> Part:
    by_batch: dict[int, list[TokenCost]] = {}
    for cost in report.costs:
        by_batch.setdefault(cost.batch, []).append(cost)
    charts = "\n".join(_cost_chart(batch, costs, report) for batch, costs in by_batch.items())
    return _section(
        "Cost",
        "A machine is paid for while it waits, too: each bar is the price of a million output tokens if it "
        f"works that share of the time. {report.price_stated}.",
        f'<div class="pair">\n{charts}\n</div>',
    )


def _cost_chart(batch: int, costs: list[TokenCost], report: Report) -> str:
    greatest = max(cost.usd_per_mtok for cost in report.costs)
    rows = [
        bar(
            f"{cost.utilization:.0%} in use",
            f"{units.usd(cost.usd_per_mtok)} <small>per 1M, {units.usd(cost.usd_per_ktok)} per 1k</small>",
            cost.usd_per_mtok / greatest,
        )
        for cost in costs
    ]
    rate = units.figures(costs[0].tokens_per_s)
    title = f"{_requests(batch).capitalize()}: {rate} tokens/s, {costs[0].basis}"
    return f'<figure class="bars">\n<h3>{escape(title)}</h3>\n' + "\n".join(rows) + "\n</figure>"


def _speed(report: Report) -> Part:
    key = (
        '<p class="key"><span><i class="m"></i>measured, median</span>'
        '<span><i class="s"></i>least to greatest</span><span><i class="r"></i>roofline</span></p>'
    )
    charts = "\n".join(_speed_chart(batch) for batch in report.batches)
    first = report.batches[0]
    times = f"{first.repetitions} repetitions after a warm-up" if first.repetitions else "not measured"
    text = (
        f"Closed loop of {first.prompt_tokens} prompt and {first.output_tokens} output tokens, {times}. "
        "The roofline is the best that memory and arithmetic as probed on this machine allow; the percentage "
        "is its error, roofline / measured − 1."
    )
    text += f" {report.disturbed}" if report.disturbed else ""
    return _section("Speed", text, f'{key}\n<div class="pair">\n{charts}\n</div>')


def _speed_chart(batch: Batch) -> str:
    rows = "\n".join(_figure_bar(figure) for figure in batch.figures)
    bound = f"Of the least time of decoding, bytes bound {batch.bandwidth_share:.0%}."
    title = f"<h3>{_requests(batch.batch).capitalize()}</h3>"
    return f'<figure class="bars">\n{title}\n{rows}\n<figcaption>{bound}</figcaption>\n</figure>'


def _figure_bar(figure: Figure) -> str:
    given = [value for value in (figure.measured, figure.predicted, figure.greatest) if value is not None]
    top = max(given) * 1.02
    predicted = "" if figure.predicted is None else units.quantity(figure.predicted, figure.unit)
    wrong = "" if figure.error is None else f", {units.percent(figure.error)}"
    small = f"<small>roofline {predicted}{wrong}</small>"
    main = predicted if figure.measured is None else units.quantity(figure.measured, figure.unit)
    spread = None
    if figure.least is not None and figure.greatest is not None:
        spread = (figure.least / top, figure.greatest / top)
    mark = None if figure.predicted is None else figure.predicted / top
    return bar(figure.name, f"{main} {small}", (figure.measured or 0.0) / top, mark, spread)


def _bytes(report: Report) -> Part:
    total = sum(op.bytes for op in report.op_bytes) or 1.0
    greatest = max((op.bytes for op in report.op_bytes), default=1.0) or 1.0
    rows = [
        bar(
            f"{op.op} × {op.count}",
            f"{units.scaled(op.bytes, 'B')} <small>{op.bytes / total:.1%}</small>",
            op.bytes / greatest,
        )
        for op in report.op_bytes
    ]
    text = (
        f"What one decoded token reads and writes with {report.op_context} tokens before it, counted from "
        f"the program's shapes: {units.scaled(total, 'B')} in all. Decoding is mostly a matter of bytes."
    )
    return _section("Bytes of a token", text, '<figure class="bars">\n' + "\n".join(rows) + "\n</figure>")


def _kernels(profile: Profile) -> Part:
    text = f"{kernel_table.NOTE} {kernel_table.roofs_stated(profile)}."
    return _section("Kernels", text, kernel_html.render(profile))


def _load(load: ServingBench, report: Report) -> Part:
    return _section("Under load", load_html.lead(load), load_html.render(load, report.price))


def _prediction(found: Prediction) -> Part:
    return _section("Predicted", prediction_html.lead(found), prediction_html.content(found))


def _emissions(found: Emissions) -> Part:
    return _plain(emissions.section(found))


def _plain(section: Section) -> Part:
    """Return a table as it is written for other forms."""
    heads = tuple(map(escape, section.columns))
    rows = (row(heads, map(escape, cells)) for cells in section.rows)
    return _section(section.title, section.note or "", table(heads, rows) if section.rows else "")


def _ledger(report: Report) -> Part:
    if not report.ledger:
        return _section("Passes", "This artifact has no ledger.", "")
    heads = ("pass", "nodes", "weights", "bytes a token", *quality.LEDGER_HEADS)
    rows = (_ledger_row(one, heads) for one in report.ledger)
    text = (
        "What each pass did to the program; an exact pass changes no more than the order of sums. "
        f"{quality.LEDGER_NOTE}"
    )
    waterfall = waterfall_html.render(report.ledger, report.host.read_bytes_per_s, report.price)
    return _section("Passes", text, f"{waterfall}\n{table(heads, rows)}")


def _ledger_row(one: LedgerRow, heads: Iterable[str]) -> str:
    kl, *answers = quality.ledger_cells(one)
    cells = [
        escape(one.pass_spec),
        str(one.nodes_after),
        _before_after(one.weight_bytes_before, one.weight_bytes_after),
        _before_after(one.bytes_before, one.bytes_after),
        f'<span class="exact">{kl}</span>' if one.exact and one.changed else kl,
        *answers,
    ]
    return row(heads, cells, idle=not one.changed)


def _quality(evaluation: Evaluation) -> Part:
    heads = ("", "figure", "95 % interval")
    rows = (row(heads, map(escape, cells)) for cells in quality.rows(evaluation))
    return _section("Quality", quality.method(evaluation), table(heads, rows))


def _before_after(before: float, after: float) -> str:
    moved = units.change(before, after)
    return units.scaled(after, "B") + ("" if moved == "–" else f" ({moved})")


def _method(report: Report) -> Part:
    identity, host = report.identity, report.host
    cache = f"{units.scaled(identity.kv_bytes_per_token, 'B')} a token in {identity.kv_dtype}"
    basis = "measured" if host.measured else "data sheet"
    size, weights = (units.scaled(size, "B") for size in (identity.artifact_bytes, identity.weight_bytes))
    facts = [
        ("Artifact", f"{escape(identity.name)}, manifest sha256 <code>{identity.manifest_sha256}</code>"),
        ("Built by", f"tokc {escape(identity.tokc_version)} for {escape(identity.target)}"),
        ("Pipeline", f"<code>{escape(identity.pipeline.replace(',', ', '))}</code>"),
        ("Size", f"{size}, weights {weights}"),
        ("Cache", f"{cache}, context of {identity.context} tokens"),
        ("Machine", f"{escape(host.cpu)}, {host.cores} cores, {escape(', '.join(host.instructions))}"),
        ("Memory reads", f"{units.scaled(host.read_bytes_per_s, 'B/s')}, {basis}"),
        ("Arithmetic", _arithmetic(host)),
        ("Method", escape(host.how)),
        ("Price", escape(report.price_stated)),
        *((f"Verified: {escape(one.part)}", escape(one.how)) for one in report.verification),
    ]
    if report.load_s is not None and report.peak_rss_bytes is not None:
        peak = units.scaled(report.peak_rss_bytes, "B")
        facts.insert(4, ("Loading", f"{units.seconds(report.load_s)}; at most {peak} of memory in use"))
    if identity.licence:
        facts.insert(2, ("Licence", escape(identity.licence)))
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts)
    return _section("What was measured, and how", "", f"<dl>{rows}</dl>")


def _arithmetic(host: Host) -> str:
    f32, int8 = (units.scaled(rate, "FLOP/s") for rate in (host.f32_flops_per_s, host.int8_flops_per_s))
    return f"{f32} in f32, measured; {int8} in int8, predicted" if host.measured else f"{f32}, data sheet"


def _section(title: str, text: str, content: str) -> Part:
    note = f'<p class="note">{escape(text)}</p>\n' if text else ""
    head = f'<section id="{_anchor(title)}">\n<h2>{escape(title)}</h2>'
    return Part(title, f"{head}\n{note}{content}\n</section>")
