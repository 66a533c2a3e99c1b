"""Numbers as people read them."""

import math
from datetime import datetime

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
DIGITS = 3


def figures(value: float) -> str:
    """Return a number with three significant digits and no exponent."""
    if value == 0:
        return "0"
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def scaled(value: float, unit: str) -> str:
    """Return a number with a decimal prefix: 84.1 MB, 48.2 GB/s."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{figures(value / factor)} {prefix}{unit}"
    return f"{figures(value)} {unit}".rstrip()


def seconds(value: float) -> str:
    """Return a time in s, ms, µs or ns; a difference can be negative."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= factor:
            return f"{figures(value / factor)} {unit}"
    return f"{figures(value * 1e9)} ns"


def usd(value: float) -> str:
    """Return an amount in US dollars, cents where that is how it is read."""
    return f"${value:,.2f}" if value >= 1 else f"${figures(value)}"


def moment(iso: str) -> str:
    """Return a time stamp to the minute, as it is read; other text stays."""
    try:
        return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return iso


def quantity(value: float, unit: str) -> str:
    """Return a value in its unit; times get the prefix that fits."""
    return seconds(value) if unit == "s" else f"{figures(value)} {unit}"


def percent(value: float) -> str:
    """Return a share as a signed whole percentage."""
    return f"{value:+.0%}"


def change(before: float, after: float) -> str:
    """Return how a size changed, an en dash where it did by less than half a percent."""
    if before == 0 or abs(after / before - 1) < 0.005:
        return "–"
    return percent(after / before - 1)
