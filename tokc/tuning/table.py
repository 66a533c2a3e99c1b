"""A search as a table: every trial, the best marked, and which no other beats in every figure."""

from rich.table import Table
from rich.text import Text

from tokc.cost.gates import METRICS
from tokc.report import units
from tokc.tuning.search import Search, Tried


def table(search: Search) -> Table:
    """Return the trials, those of the Pareto front first among equals in the order of the search."""
    best, front = search.best, {one.number for one in pareto(search)}
    setting = search.setting
    shown = Table("", "trial", box=None, pad_edge=False, header_style="dim")
    for column in ("bits", "method", "group", "head", "cache", "kept"):
        shown.add_column(column, justify="right")
    for gate in (setting.objective, *setting.limits):
        shown.add_column(gate.text.partition(">")[0].partition("<")[0], justify="right")
    shown.add_column("")
    for one in search.tried:
        choice = one.candidate
        mark = (
            "best"
            if best is not None and one.number == best.number
            else "front"
            if one.number in front
            else ""
        )
        figures = [one.objective, *(one.figures.get(gate.text) for gate in setting.limits)]
        kinds = [METRICS[gate.metric].kind for gate in (setting.objective, *setting.limits)]
        cells = [
            "–" if value is None else _shown(value, kind) for value, kind in zip(figures, kinds, strict=True)
        ]
        why = one.why or ("" if one.feasible or one.state != "measured" else "a limit is not kept")
        shown.add_row(
            Text(mark, style="bold" if mark == "best" else "none"),
            str(one.number),
            *(str(choice.bits), choice.method, str(choice.group), str(choice.head_bits), choice.kv),
            "yes" if choice.keep else "no",
            *cells,
            Text(f"{one.state}: {why}" if why else one.state, style="dim"),
        )
    return shown


def pareto(search: Search) -> list[Tried]:
    """Return the measured trials that no other beats in the objective and in every limit's figure at once."""
    measured = [one for one in search.tried if one.objective is not None]
    return [one for one in measured if not any(_beats(search, other, one) for other in measured)]


def _beats(search: Search, other: Tried, one: Tried) -> bool:
    """Return whether `other` is as good in all figures and better in one."""
    ours, theirs = _costs(search, one), _costs(search, other)
    return all(b <= a for a, b in zip(ours, theirs, strict=True)) and theirs != ours


def _costs(search: Search, one: Tried) -> tuple[float, ...]:
    """Return a trial's figures, each so that less is better."""
    setting, objective = search.setting, one.objective or 0.0
    limits = [
        (1.0 if gate.compare in {"<", "<="} else -1.0) * one.figures.get(gate.text, float("inf"))
        for gate in setting.limits
    ]
    return (-objective if setting.maximize else objective, *limits)


def _shown(value: float, kind: str) -> str:
    forms = {"bytes": lambda: units.scaled(value, "B"), "seconds": lambda: units.seconds(value)}
    forms |= {"usd": lambda: units.usd(value), "share": lambda: f"{value:.1%}"}
    return forms[kind]() if kind in forms else units.figures(value)
