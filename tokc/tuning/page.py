"""A search as one HTML file: what was measured against each limit, the Pareto front, and every trial."""

from functools import partial
from html import escape

from tokc.cost.gates import Gate
from tokc.report.html_parts import figure, page, row
from tokc.report.html_parts import table as html_table
from tokc.report.log_chart import Axis, Line
from tokc.report.log_chart import render as chart
from tokc.tuning.search import Search, Tried
from tokc.tuning.table import columns, name, pareto, rows, shown

FEW = 2  # points, below which a chart says nothing


def render(search: Search) -> str:
    """Return the page."""
    setting = search.setting
    title = f"{setting.model.name}: {'most' if setting.maximize else 'least'} {name(setting.objective)}"
    limits = ", ".join(gate.text for gate in setting.limits) or "no limits"
    measured = [one for one in search.tried if one.objective is not None]
    lead = f"{setting.target} on {search.host.cpu}, {limits}; {len(measured)} of {len(search.tried)} measured"
    charts = "\n".join(_front(search, gate, measured) for gate in setting.limits if len(measured) >= FEW)
    heads = tuple(map(escape, columns(search)))
    cells = html_table(heads[1:], (row(heads[1:], map(escape, _marked(one))) for one in rows(search)))
    body = (
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n<div class="pair">\n{charts}\n</div>'
    )
    return page(title, f"{body}\n<section>\n<h2>Trials</h2>\n{cells}\n</section>")


def _marked(cells: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row whose first cell names the trial and says whether it is the best or of the front."""
    mark, number, *rest = cells
    return (f"{number}, {mark}" if mark else number, *rest)


def _front(search: Search, limit: Gate, measured: list[Tried]) -> str:
    """Return the chart of the objective over a limit's figure; the front is a line."""
    objective, front = search.setting.objective, {one.number for one in pareto(search)}
    points = {one.number: (one.figures[limit.text], one.objective or 0.0) for one in measured}
    known = {number: point for number, point in points.items() if min(point) > 0}
    if len(known) < FEW:
        return ""
    lines = (
        Line("front", tuple(sorted(point for number, point in known.items() if number in front))),
        Line("others", tuple(point for number, point in known.items() if number not in front), drawn=False),
    )
    x = Axis.over(name(limit), [point[0] for point in known.values()], partial(_label, limit))
    y = Axis.over(name(objective), [point[1] for point in known.values()], partial(_label, objective))
    title = f"{name(objective)} against {name(limit)}"
    return figure(title, chart(x, y, lines, title), f"The limit is {limit.text}.")


def _label(gate: Gate, value: float) -> str:
    return shown(value, gate)
