"""Service level objectives: limits on what a client waits for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokc.cost.quantities import parse_amount
from tokc.errors import UnknownOption

METRICS = {
    "ttft": "from when a request was due to its first token",
    "tpot": "mean time per token after the first",
    "itl": "between one piece of an answer and the next",
    "e2e": "from when a request was due to its last token",
}
PERCENTILES = (50, 90, 95, 99)
_SLO = re.compile(r"\s*([a-z0-9]+)_p(\d+)\s*(?:<=|=)\s*(.+)")


@dataclass(frozen=True)
class Slo:
    """A limit in seconds on a percentile of a metric."""

    metric: str
    percentile: int
    limit_s: float
    text: str


def parse_slo(text: str) -> Slo:
    """Return the objective of `ttft_p99=500ms`.

    Raises: UnknownOption listing the metrics, the percentiles or the units.
    """
    found = _SLO.fullmatch(text)
    if found is None:
        raise UnknownOption(f"'{text}' is no objective", hint="as in 'ttft_p99=500ms' or 'tpot_p95=40ms'")
    metric, percentile, amount = found[1], int(found[2]), found[3]
    if metric not in METRICS:
        raise UnknownOption(f"unknown metric '{metric}'; choose from {', '.join(METRICS)}", where=text)
    if percentile not in PERCENTILES:
        accepted = ", ".join(f"p{one}" for one in PERCENTILES)
        raise UnknownOption(f"unknown percentile 'p{percentile}'; choose from {accepted}", where=text)
    limit = parse_amount(amount, "seconds", where=f"objective '{text}'")
    return Slo(metric, percentile, limit, f"{metric}_p{percentile}={amount.strip()}")


def kept_by(waits: dict[str, float], slos: Sequence[Slo]) -> bool:
    """Return whether one request, given what it waited for in seconds, is within every limit."""
    return all(waits[slo.metric] <= slo.limit_s for slo in slos if slo.metric in waits)
