"""A search as a table: every trial, the best marked, and which no other beats in every figure."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from tokc.cost.gates import METRICS, Gate
from tokc.report import units
from tokc.tuning.search import Search, Tried

BEST, FRONT = "best", "front"


def table(search: Search) -> Table:
    """Return the trials for a terminal."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns(search):
        shown.add_column(column, justify="left" if column in {"", "what", "machine"} else "right")
    for first, *rest in rows(search):
        shown.add_row(Text(first, style="bold" if first == BEST else "none"), *rest)
    return shown


def columns(search: Search) -> tuple[str, ...]:
    """Return the heads of `rows`."""
    gates = (search.setting.objective, *search.setting.limits)
    chosen = ("bits", "method", "group", "head", "cache", "kept")
    return ("", "trial", *chosen, *map(name, gates), "what", *(["machine"] if _several(search) else []))


def rows(search: Search) -> Iterator[tuple[str, ...]]:
    """Yield every trial in order: mark, choices, objective, each limit's figure, what became of it."""
    best, front = search.best, {one.number for one in pareto(search)}
    gates = (search.setting.objective, *search.setting.limits)
    for one in search.tried:
        choice = one.candidate
        is_best = best is not None and one.number == best.number
        figures = (one.objective, *(one.figures.get(gate.text) for gate in search.setting.limits))
        why = one.why or ("" if one.feasible or one.state != "measured" else "a limit is not kept")
        yield (
            BEST if is_best else FRONT if one.number in front else "",
            str(one.number),
            *(str(choice.bits), choice.method, str(choice.group), str(choice.head_bits), choice.kv),
            "yes" if choice.keep else "no",
            *(
                "–" if value is None else shown(value, gate)
                for value, gate in zip(figures, gates, strict=True)
            ),
            f"{one.state}: {why}" if why else one.state,
            *([one.machine] if _several(search) else []),
        )


def name(gate: Gate) -> str:
    """Return the figure that a gate is about, as in `tpot@8`."""
    return gate.text.partition(">")[0].partition("<")[0]


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


def _several(search: Search) -> bool:
    return len({one.machine for one in search.tried if one.machine}) > 1


def shown(value: float, gate: Gate) -> str:
    """Return a figure in the unit of what the gate is about."""
    kind = METRICS[gate.metric].kind
    forms = {"bytes": lambda: units.scaled(value, "B"), "seconds": lambda: units.seconds(value)}
    forms |= {"usd": lambda: units.usd(value), "share": lambda: f"{value:.1%}"}
    return forms[kind]() if kind in forms else units.figures(value)
