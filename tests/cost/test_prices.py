from datetime import date

import pytest

from tokc.cost.prices import DEFAULT_PRICE, Price, parse_price, price_sheet, usd_per_token
from tokc.errors import TokcError


def test_every_row_of_the_sheet_states_where_it_is_from() -> None:
    for name, row in price_sheet().items():
        assert row.name == name
        assert row.source
        assert row.region
        assert row.currency == "USD"
        assert date.fromisoformat(row.published or "")
        assert row.usd_per_hour > 0


def test_the_default_is_in_the_sheet() -> None:
    assert DEFAULT_PRICE in price_sheet()


def test_a_price_is_stale_after_a_year() -> None:
    price = Price("x", 1.0, "list price", published="2025-01-01")
    assert not price.stale(date(2026, 1, 1))
    assert price.stale(date(2026, 1, 2))
    assert "older than a year" in price.stated(date(2026, 1, 2))


def test_the_users_own_price() -> None:
    price = parse_price("0.20/h")
    assert price.usd_per_hour == 0.20
    assert price.stated(date(2026, 1, 1)) == "0.2 USD an hour, given on the command line"


@pytest.mark.parametrize("text", ["0.20", "free", "-1/h", "0/h", "inf/h", "nan/h", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(TokcError, match="neither an hourly price"):
        parse_price(text)


def test_a_token_costs_the_hour_over_the_tokens_of_an_hour() -> None:
    assert usd_per_token(parse_price("3.6/h"), tokens_per_s=100) == pytest.approx(1e-5)
