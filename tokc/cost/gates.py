"""Gates: limits that an artifact must keep, and whether its figures keep them, do not, or do not tell."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokc.cost.intervals import Interval
from tokc.cost.quantities import Kind, parse_amount
from tokc.cost.serving.slo import METRICS as SLO_METRICS
from tokc.cost.serving.slo import PERCENTILES
from tokc.cost.toml_file import read_toml
from tokc.errors import UnknownOption

Source = Literal["artifact", "ledger", "bench", "load"]
Verdict = Literal["met", "not met", "inconclusive"]
Compare = Literal["<=", ">=", "<", ">"]

COMPARE: Mapping[Compare, Callable[[float, float], bool]] = {
    "<=": lambda value, limit: value <= limit,
    ">=": lambda value, limit: value >= limit,
    "<": lambda value, limit: value < limit,
    ">": lambda value, limit: value > limit,
}
_GATE = re.compile(r"\s*([A-Za-z0-9_]+)(?:@(\d+))?\s*(<=|>=|==|=|<|>)\s*(.+)")
_CHANGE = re.compile(r"([+-]\d+(?:\.\d+)?|0)\s*%")
# What `tokc diff` bounds the change of: counted, in the ledger, or measured in turns.
CHANGES = (
    "size", "weight_bytes", "kv_bytes_per_token", "kl_mean", "top1_agree", "ttft", "tpot", "tokens_per_s",
)  # fmt: skip
GATES_FILE_KEYS = ("gates", "price", "utilization", "inconclusive")


@dataclass(frozen=True)
class Metric:
    """A figure that a gate can bound: its kind of unit, and where it comes from."""

    name: str
    kind: Kind
    source: Source
    summary: str


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("size", "bytes", "artifact", "all files of the artifact"),
        Metric("weight_bytes", "bytes", "artifact", "the weights alone"),
        Metric("kv_bytes_per_token", "bytes", "artifact", "what a token takes in the cache of all layers"),
        Metric("ppl_ratio", "number", "ledger", "perplexity over that of the imported model"),
        Metric("kl_mean", "number", "ledger", "mean KL to the imported model, nats"),
        Metric("kl_p99", "number", "ledger", "99th percentile of the KL over positions, nats"),
        Metric("top1_agree", "share", "ledger", "positions where both find the same token likeliest"),
        Metric("ttft", "seconds", "bench", "time to first token, mean over the batch"),
        Metric("tpot", "seconds", "bench", "time per output token after the first"),
        Metric("tokens_per_s", "rate", "bench", "output tokens a second, prefill included"),
        Metric("prefill_tokens_per_s", "rate", "bench", "prompt tokens a second until all first tokens"),
        Metric("cost_per_mtok", "usd", "bench", "1M output tokens at the price and utilization given"),
        Metric("peak_rss", "bytes", "bench", "the most memory that the process held"),
        Metric("load_s", "seconds", "bench", "from start to ready"),
        Metric("goodput", "rate", "load", "requests a second that keep the load test's objectives"),
        *(
            Metric(f"{metric}_p{percentile}", "seconds", "load", f"{summary}, under load")
            for metric, summary in SLO_METRICS.items()
            for percentile in PERCENTILES
        ),
    )
}
# Figures of one batch size, or of one number of clients at once.
BATCHED = frozenset({"ttft", "tpot", "tokens_per_s", "prefill_tokens_per_s", "cost_per_mtok"}) | {
    name for name, metric in METRICS.items() if metric.source == "load"
}


@dataclass(frozen=True)
class Gate:
    """A bound on a metric, at one batch size or, if `batch` is None, at every one that was measured."""

    metric: str
    compare: Compare
    limit: float
    batch: int | None
    text: str

    @property
    def measured(self) -> bool:
        """Return whether it needs a measurement."""
        return METRICS[self.metric].source in {"bench", "load"}


@dataclass(frozen=True)
class Found:
    """A metric's figure; `interval` is None where it was counted, or measured once. `batch` 0 is for none."""

    figure: float
    interval: Interval | None = None
    batch: int = 0
    repetitions: int = 0


@dataclass(frozen=True)
class Judged:
    """A gate beside the figure that was found, and by which share of the limit it is beyond the limit.

    `excess` is None where the limit is 0, `low` and `high` where there is no interval or no such end.
    """

    gate: str
    metric: str
    kind: str
    limit: float
    figure: float
    verdict: str
    excess: float | None
    low: float | None = None
    high: float | None = None
    batch: int = 0
    repetitions: int = 0


@dataclass(frozen=True)
class GatesFile:
    """What `gates.toml` holds; what it does not state is None."""

    gates: tuple[Gate, ...]
    price: str | None = None
    utilization: float | None = None
    inconclusive: str | None = None


def parse_gate(text: str) -> Gate:
    """Return the gate of `NAME<=VALUE` or `NAME@BATCH<=VALUE`.

    Raises: UnknownOption listing the metrics, the comparisons or the units that are accepted.
    """
    name, batch, compare, amount = _split(text)
    limit = parse_amount(amount, METRICS[name].kind, where=f"gate '{text}'")
    return Gate(name, compare, limit, batch, text.strip())


def parse_change(text: str) -> Gate:
    """Return the gate of a change, `NAME<=+3%` or `NAME@BATCH>=-5%`; its limit is a ratio, 1.03 or 0.95.

    Raises: UnknownOption listing what is accepted.
    """
    name, batch, compare, amount = _split(text)
    if name not in CHANGES:
        raise UnknownOption(f"no change of '{name}' is known; choose from {', '.join(CHANGES)}", where=text)
    change = _CHANGE.fullmatch(amount)
    if change is None or float(change[1]) <= -100:
        raise UnknownOption(f"'{amount}' is no change; it is a signed percentage such as +3%", where=text)
    return Gate(name, compare, 1.0 + float(change[1]) / 100.0, batch, text.strip())


def _split(text: str) -> tuple[str, int | None, Compare, str]:
    """Return metric, batch, comparison and what it is compared with."""
    found = _GATE.fullmatch(text)
    if found is None:
        raise UnknownOption(
            f"'{text}' is no gate", hint="as in 'size<=90MB', 'tpot@8<=40ms' or 'top1_agree>=98%'"
        )
    name, batch, sign, amount = found.groups()
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1)
        raise UnknownOption(
            f"unknown metric '{name}'; choose from {', '.join(METRICS)}",
            where=f"gate '{text}'",
            hint=f"did you mean '{close[0]}'?" if close else None,
        )
    compare = next((known for known in COMPARE if known == sign), None)
    if compare is None:
        raise UnknownOption(f"'{sign}' is no comparison; choose from {', '.join(COMPARE)}", where=text)
    if batch is not None and (name not in BATCHED or int(batch) < 1):
        raise UnknownOption(
            f"'{name}' is not of batch {batch}",
            where=text,
            hint=f"of a batch are {', '.join(sorted(BATCHED))}",
        )
    return name, None if batch is None else int(batch), compare, amount.strip()


def read_gates(path: Path) -> GatesFile:
    """Read a TOML file with `gates = [...]` and, if wanted, `price`, `utilization` and `inconclusive`.

    Raises: TokcError if it cannot be read; UnknownOption naming the key or gate that is wrong.
    """
    value = read_toml(path)
    for key in value:
        if key not in GATES_FILE_KEYS:
            raise UnknownOption(
                f"unknown key '{key}'; choose from {', '.join(GATES_FILE_KEYS)}", where=str(path)
            )
    gates = value.get("gates", [])
    if not isinstance(gates, list) or not gates or not all(isinstance(gate, str) for gate in gates):
        raise UnknownOption(
            "'gates' is no list of gates", where=str(path), hint='as in gates = ["size<=90MB"]'
        )
    utilization = value.get("utilization")
    return GatesFile(
        gates=tuple(parse_gate(gate) for gate in gates),
        price=_text(value, "price", path),
        utilization=None if utilization is None else parse_utilization(str(utilization)),
        inconclusive=_text(value, "inconclusive", path),
    )


def parse_utilization(text: str) -> float:
    """Return the share of the paid time in which the machine serves: 0.3 or 30%.

    Raises: UnknownOption if it is not above 0 and at most 1.
    """
    share = parse_amount(text, "share", where="utilization")
    if not 0 < share <= 1:
        raise UnknownOption(f"utilization '{text}' is not above 0 and at most 100%")
    return share


def judge(gate: Gate, found: Found, kind: str | None = None) -> Judged:
    """Return whether a figure keeps the gate; inconclusive if its interval is on both sides of the limit."""
    keeps, interval = COMPARE[gate.compare], found.interval
    ends = (found.figure,) if interval is None else (interval.low, interval.high)
    kept = [keeps(end, gate.limit) for end in ends]
    verdict: Verdict = "met" if all(kept) else "inconclusive" if any(kept) else "not met"
    beyond = found.figure - gate.limit if gate.compare in {"<=", "<"} else gate.limit - found.figure
    return Judged(
        gate=gate.text,
        metric=gate.metric,
        kind=kind or METRICS[gate.metric].kind,
        limit=gate.limit,
        figure=found.figure,
        verdict=verdict,
        excess=beyond / gate.limit if gate.limit else None,
        low=None if interval is None else _finite(interval.low),
        high=None if interval is None else _finite(interval.high),
        batch=found.batch,
        repetitions=found.repetitions,
    )


def failed(judged: Sequence[Judged], *, inconclusive_fails: bool) -> tuple[Judged, ...]:
    """Return those that stop a pipeline."""
    stops = {"not met", "inconclusive"} if inconclusive_fails else {"not met"}
    return tuple(one for one in judged if one.verdict in stops)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(value: Mapping[str, object], key: str, path: Path) -> str | None:
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        raise UnknownOption(f"'{key}' is no text", where=str(path))
    return found
