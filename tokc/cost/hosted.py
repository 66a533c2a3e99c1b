"""What hosted APIs ask for tokens, and from which use on one's own machine is cheaper."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files

from tokc.cost.prices import STALE_DAYS
from tokc.errors import UnknownOption

HOSTED_SHEET = "hosted.toml"


@dataclass(frozen=True)
class Hosted:
    """An API's list price in USD for a million tokens; `published` (ISO) is when the source stated it."""

    name: str
    model: str
    usd_per_input_mtok: float
    usd_per_output_mtok: float
    published: str
    source: str

    def stale(self, today: date) -> bool:
        """Return whether the price is older than a year."""
        return (today - date.fromisoformat(self.published)).days > STALE_DAYS

    def per_output_mtok(self, prompt_tokens: int, output_tokens: int) -> float:
        """Return the price of a million output tokens and of the prompts that they answer."""
        return self.usd_per_output_mtok + self.usd_per_input_mtok * prompt_tokens / output_tokens


@cache
def hosted_sheet() -> Mapping[str, Hosted]:
    """Return the dated sheet that comes with tokc, by name."""
    rows = tomllib.loads(files("tokc.cost").joinpath(HOSTED_SHEET).read_text(encoding="utf-8"))["hosted"]
    return {row["name"]: Hosted(**{**row, "published": row["published"].isoformat()}) for row in rows}


def named_hosted(names: Sequence[str] | None) -> tuple[Hosted, ...]:
    """Return the named rows, all of them for None.

    Raises: UnknownOption listing the names.
    """
    sheet = hosted_sheet()
    for name in names or ():
        if name not in sheet:
            raise UnknownOption(f"unknown hosted API '{name}'; choose from {', '.join(sheet)}")
    return tuple(sheet[name] for name in (sheet if names is None else names))


def break_even(usd_per_mtok_at_full_load: float, hosted_usd_per_mtok: float) -> float:
    """Return which share of the time a machine must be in use to cost what an API asks; above 1, none."""
    return usd_per_mtok_at_full_load / hosted_usd_per_mtok
