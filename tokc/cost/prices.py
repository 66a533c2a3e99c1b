"""What a machine costs by the hour, and what a token costs on it."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.resources import files

from tokc.errors import TokcError

STALE_DAYS = 365
DEFAULT_PRICE = "aws:c7i.large"
HOUR_S = 3600.0


@dataclass(frozen=True)
class Price:
    """A machine's price; `published` (ISO) is when the source stated it, None for the user's own price."""

    name: str
    usd_per_hour: float
    source: str
    machine: str = ""
    region: str = ""
    currency: str = "USD"
    published: str | None = None

    def age_days(self, today: date) -> int | None:
        """Return how old the price is."""
        return None if self.published is None else (today - date.fromisoformat(self.published)).days

    def stale(self, today: date) -> bool:
        """Return whether the price is too old to be believed."""
        age = self.age_days(today)
        return age is not None and age > STALE_DAYS

    def stated(self, today: date) -> str:
        """Return the price with its origin, as a report prints it."""
        if self.published is None:
            return f"{self.usd_per_hour:g} USD an hour, {self.source}"
        place = f", {self.region}" if self.region else ""
        text = f"{self.usd_per_hour:g} USD an hour, {self.source} of {self.name}{place}"
        text = f"{text}, as published on {self.published}"
        return f"{text} (older than a year: check it)" if self.stale(today) else text


def today() -> date:
    """Return the day in UTC."""
    return datetime.now(UTC).date()


def price_sheet() -> Mapping[str, Price]:
    """Return the dated sheet that comes with tokc, by name."""
    rows = tomllib.loads(files("tokc.cost").joinpath("prices.toml").read_text())["price"]
    return {row["name"]: Price(**{**row, "published": row["published"].isoformat()}) for row in rows}


def parse_price(text: str) -> Price:
    """Return the price that `0.20/h` or a name of the sheet states.

    Raises: TokcError listing the names.
    """
    sheet = price_sheet()
    if text in sheet:
        return sheet[text]
    amount = text.removesuffix("/h")
    try:
        usd = float(amount)
    except ValueError:
        usd = -1.0
    if amount == text or not 0 < usd < float("inf"):
        raise TokcError(
            f"price '{text}' is neither an hourly price such as '0.20/h' (USD) nor one of the sheet",
            hint=f"the sheet has {', '.join(sheet)}",
        )
    return Price(name=text, usd_per_hour=usd, source="given on the command line")


def usd_per_token(price: Price, tokens_per_s: float, utilization: float = 1.0) -> float:
    """Return what a token costs if the machine makes `tokens_per_s` for `utilization` of the paid time."""
    return price.usd_per_hour / HOUR_S / tokens_per_s / utilization
