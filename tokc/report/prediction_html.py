"""Predictions in the HTML report: cost against context, what fits, and predicted against measured."""

from html import escape

from tokc.report import prediction_text, units
from tokc.report.html_parts import figure, row, table
from tokc.report.log_chart import Axis, Line, render
from tokc.report.prediction import Comparison, Decoding, Prediction
from tokc.report.sections import Section

KIBI = 1024
NAMED = "artifact"  # a column whose cells say what they are
GOAL = 0.2  # the band that is drawn around what was measured


def content(found: Prediction) -> str:
    """Return the charts and tables of the section on predictions."""
    charts = [_by_context(found.decoding)]
    if found.comparison is not None:
        charts.append(_compared(found.comparison))
    parts = [f'<div class="pair">\n{"".join(charts)}\n</div>']
    for section in prediction_text.sections(found):
        parts += [f"<h3>{escape(section.title)}</h3>", _table(section)]
        if section.note and section.title.startswith("What fits"):
            parts.append(f'<p class="note">{escape(section.note)}</p>')
    return "\n".join(parts)


def lead(found: Prediction) -> str:
    """Return what the predictions are of, and rest on."""
    return f"For {found.machine}, from the work that the plan states of each launch. {_sentence(found.basis)}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _by_context(decoding: tuple[Decoding, ...]) -> str:
    """Return the chart of cost against context, a line a batch; of tokens a second without a price."""
    priced = all(one.usd_per_mtok is not None for one in decoding)
    batches = dict.fromkeys(one.batch for one in decoding)
    lines = [
        Line(
            f"batch {batch}",
            tuple((one.context, _value(one, priced=priced)) for one in decoding if one.batch == batch),
        )
        for batch in batches
    ]
    contexts = tuple(dict.fromkeys(one.context for one in decoding))
    values = [value for line in lines for _, value in line.points]
    x = Axis.over("tokens of context", contexts, _tokens, contexts)
    unit, label = (
        ("USD for 1M output tokens, predicted", units.usd) if priced else ("tokens/s", units.figures)
    )
    title = "Cost against context" if priced else "Rate against context"
    return figure(title, render(x, Axis.over(unit, values, label), lines, title))


def _value(one: Decoding, *, priced: bool) -> float:
    return one.usd_per_mtok if priced and one.usd_per_mtok is not None else one.tokens_per_s


def _tokens(count: float) -> str:
    return f"{count / KIBI:g}k" if count >= KIBI else f"{count:g}"


def _compared(found: Comparison) -> str:
    lines = [
        Line(
            f"{_tokens(context)} tokens",
            tuple((one.measured_s, one.predicted_s) for one in found.cells if one.context == context),
            drawn=False,
        )
        for context in dict.fromkeys(one.context for one in found.cells)
    ]
    values = [value for line in lines for point in line.points for value in point]
    x, y = (Axis.over(f"{what} time of a token", values, units.seconds) for what in ("measured", "predicted"))
    title = "Predicted against measured"
    caption = f"{prediction_text.summary([found])} The band is {GOAL:.0%} to either side."
    return figure(title, render(x, y, lines, title, band=GOAL), caption)


def _table(section: Section) -> str:
    heads = tuple(map(escape, section.columns))
    first = section.columns[0]
    rows = ((f"{first} {cells[0]}" if first != NAMED else cells[0], *cells[1:]) for cells in section.rows)
    return table(heads, (row(heads, map(escape, cells)) for cells in rows))
