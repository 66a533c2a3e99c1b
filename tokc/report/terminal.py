"""The report on a terminal."""

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokc.cost.evaluation import Evaluation
from tokc.cost.prices import usd_per_token
from tokc.report import drafts, emissions, load_text, prediction_text, quality, sections, units
from tokc.report.emissions import Emissions
from tokc.report.model import Batch, LedgerRow, Report

BAR_WIDTH = 24


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(render(report))


def render(report: Report) -> Group:
    """Return the report for a rich console."""
    parts: list[RenderableType] = [_title(report), _costs(report)]
    parts += [_speed(batch) for batch in report.batches]
    if report.drafted:
        parts += [sections.terminal("", drafts.sections(report.drafted, report.price))]
    parts += [] if report.prediction is None else [prediction_text.terminal(report.prediction)]
    parts += [_bytes(report), _ledger(report)]
    parts += [] if report.evaluation is None else [_quality(report.evaluation)]
    parts += [] if report.load is None else [load_text.terminal_of(report.load, report.price)]
    parts += [] if report.emissions is None else [_emissions(report.emissions)]
    parts += [_footer(report)]
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def _title(report: Report) -> Text:
    identity, host = report.identity, report.host
    when = "predicted only" if report.measured_at is None else f"measured {units.moment(report.measured_at)}"
    return Text.assemble(
        (identity.name, "bold"),
        f"  {identity.target}, weights {units.scaled(identity.weight_bytes, 'B')}, {when}\n",
        f"{host.cpu}, {host.cores} cores, {units.scaled(host.read_bytes_per_s, 'B/s')}",
        style="none",
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", header_style="dim")
    return table


def _costs(report: Report) -> Table:
    table = _table(
        "Cost of output tokens", "batch", "machine in use", "tokens/s", "per 1k", "per 1M", "rate is"
    )
    for cost in report.costs:
        table.add_row(
            str(cost.batch),
            f"{cost.utilization:.0%}",
            units.figures(cost.tokens_per_s * cost.utilization),
            units.usd(cost.usd_per_ktok),
            units.usd(cost.usd_per_mtok),
            cost.basis,
        )
    table.caption, table.caption_justify = report.price_stated, "left"
    return table


def _speed(batch: Batch) -> Table:
    title = f"Batch {batch.batch}: {batch.prompt_tokens} prompt and {batch.output_tokens} output tokens"
    table = _table(title, "", "measured", "least", "greatest", "roofline", "roofline error")
    for figure in batch.figures:
        spread = (figure.measured, figure.least, figure.greatest, figure.predicted)
        cells = ["–" if value is None else units.quantity(value, figure.unit) for value in spread]
        table.add_row(figure.name, *cells, "–" if figure.error is None else units.percent(figure.error))
    return table


def _bytes(report: Report) -> Table:
    title = f"Bytes of one decoded token at {report.op_context} tokens of context, predicted"
    table = _table(title, "op", "nodes", "bytes", "share", "")
    total = sum(op.bytes for op in report.op_bytes) or 1.0
    for op in report.op_bytes:
        share = op.bytes / total
        bar = Text("█" * round(share * BAR_WIDTH), style="blue")
        table.add_row(op.op, str(op.count), units.scaled(op.bytes, "B"), f"{share:.1%}", bar)
    table.columns[-1].justify = "left"
    return table


def _ledger(report: Report) -> Table:
    measured = any(row.tokens_per_s is not None for row in report.ledger)
    more = ("tokens/s", "per 1M") if measured else ()
    table = _table("Passes", "pass", "nodes", "weights", "bytes/token", *quality.LEDGER_HEADS, *more)
    for row in report.ledger:
        table.add_row(
            Text(row.pass_spec, style="none" if row.changed else "dim"),
            str(row.nodes_after),
            units.scaled(row.weight_bytes_after, "B"),
            units.change(row.bytes_before, row.bytes_after),
            *quality.ledger_cells(row),
            *(_rate(row, report) if measured else ()),
        )
    if any(row.kl_mean is not None for row in report.ledger):
        table.caption, table.caption_justify = quality.LEDGER_NOTE, "left"
    return table


def _rate(row: LedgerRow, report: Report) -> tuple[str, str]:
    if row.tokens_per_s is None:
        return "–", "–"
    usd = usd_per_token(report.price, row.tokens_per_s) * 1e6
    return units.figures(row.tokens_per_s), units.usd(usd)


def _quality(evaluation: Evaluation) -> Table:
    table = _table("Quality", "", "", "95 % interval")
    for row in quality.rows(evaluation):
        table.add_row(*row)
    table.caption, table.caption_justify = quality.method(evaluation), "left"
    return table


def _emissions(found: Emissions) -> Group:
    return sections.terminal("", [emissions.section(found)])


def _footer(report: Report) -> Text:
    lines = [f"artifact sha256 {report.identity.manifest_sha256[:16]}, tokc {report.identity.tokc_version}"]
    if report.load_s is not None and report.peak_rss_bytes is not None:
        peak = units.scaled(report.peak_rss_bytes, "B")
        lines.append(f"loaded in {units.seconds(report.load_s)}, at most {peak} of memory")
    lines.append(f"Roofline: {report.host.how}.")
    lines += [f"Verified: {one.part}: {one.how}." for one in report.verification]
    lines += [report.disturbed] if report.disturbed else []
    return Text("\n".join(lines), style="dim")
