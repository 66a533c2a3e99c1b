"""Amounts with units as a person writes them: 90MB, 40ms, 3%, 1.5 GiB."""

import re
from collections.abc import Mapping
from typing import Literal

from tokc.errors import UnknownOption

Kind = Literal["bytes", "seconds", "rate", "usd", "share", "number"]

_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_BYTES |= {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
UNITS: Mapping[Kind, Mapping[str, float]] = {
    "bytes": _BYTES,
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0},
    "rate": {"": 1.0, "/s": 1.0, "tokens/s": 1.0, "k/s": 1e3},
    "usd": {"": 1.0, "USD": 1.0, "$": 1.0},
    "share": {"": 1.0, "%": 1e-2},
    "number": {"": 1.0},
}
_AMOUNT = re.compile(r"\s*(\$?)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*")


def parse_amount(text: str, kind: Kind, *, where: str) -> float:
    """Return the amount in bytes, seconds, tokens a second, USD, or as a plain number.

    Raises: UnknownOption if it is no number, is negative, or its unit is missing or not one of the kind's.
    """
    found = _AMOUNT.fullmatch(text)
    units = UNITS[kind]
    accepted = ", ".join(unit or "no unit" for unit in units)
    if found is None:
        raise UnknownOption(f"'{text.strip()}' is no amount", where=where, hint=f"a number and {accepted}")
    dollar, number, unit = found.groups()
    unit = unit or dollar
    if unit not in units:
        problem = f"'{text.strip()}' has the unit '{unit}'" if unit else f"'{text.strip()}' has no unit"
        raise UnknownOption(f"{problem}; it takes {accepted}", where=where)
    if float(number) < 0:
        raise UnknownOption(f"'{text.strip()}' is negative", where=where, hint=f"a number and {accepted}")
    return float(number) * units[unit]
