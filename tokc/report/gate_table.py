"""The verdicts of gates as a table: for a terminal, and as Markdown for a pull request."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tokc.cost.gates import Judged
from tokc.report import units

STYLES = {"met": "green", "not met": "bold red", "inconclusive": "yellow"}
MARKS = {"met": "✅ met", "not met": "❌ not met", "inconclusive": "❔ inconclusive"}
COLUMNS = ("gate", "batch", "found", "95 % interval", "limit", "beyond the limit by", "verdict")
MORE = (
    "Inconclusive: the interval of the repetitions is on both sides of the limit; "
    "more (`tokc bench --repetitions 10`, `tokc diff --rounds 20`, `tokc eval --tokens 20000`) narrow it."
)


def terminal(judged: Sequence[Judged]) -> Table:
    """Return the table for a rich console."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index in {0, len(COLUMNS) - 1} else "right")
    for one in judged:
        *cells, verdict = _cells(one)
        table.add_row(*cells, Text(verdict, style=STYLES[verdict]))
    return table


def markdown(judged: Sequence[Judged], title: str, note: str | None = None) -> str:
    """Return a section with the table, the verdict first; `note` stands below."""
    counts = {verdict: sum(one.verdict == verdict for one in judged) for verdict in STYLES}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines = [f"### Gates of `{title}`: {said or 'none'}", "", f"| {' | '.join(COLUMNS)} |"]
    lines.append("|:--|--:|--:|--:|--:|--:|:--|")
    for one in judged:
        gate, *cells, verdict = _cells(one)
        lines.append(f"| `{gate}` | {' | '.join(cells)} | {MARKS[verdict]} |")
    if counts["inconclusive"]:
        lines += ["", MORE]
    lines += ["", f"{note[0].upper()}{note[1:]}."] if note else []
    return "\n".join(lines) + "\n"


def amount(value: float, kind: str) -> str:
    """Return a figure in the unit of its kind."""
    shown = {
        "bytes": lambda: units.scaled(value, "B"),
        "seconds": lambda: units.seconds(value) if value else "0 s",
        "rate": lambda: f"{units.figures(value)}/s",
        "usd": lambda: units.usd(value),
        "share": lambda: f"{value:.2%}",
        "number": lambda: f"{value:.4g}",
        "change": lambda: f"{value - 1:+.1%}",
    }
    return shown[kind]()


def _cells(one: Judged) -> tuple[str, ...]:
    interval = "–"
    if one.low is not None:
        interval = f"{amount(one.low, one.kind)} to " + (
            "∞" if one.high is None else amount(one.high, one.kind)
        )
    elif one.repetitions == 1:
        interval = "measured once"
    beyond = "–"
    if one.verdict != "met" and one.excess is not None:
        beyond = f"{one.excess:+.1%}"
    batch = str(one.batch) if one.batch else "–"
    return (
        one.gate,
        batch,
        amount(one.figure, one.kind),
        interval,
        amount(one.limit, one.kind),
        beyond,
        one.verdict,
    )
