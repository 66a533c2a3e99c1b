"""The passes as a waterfall: what a token moves, from the imported model to the artifact."""

from collections.abc import Iterator, Sequence
from html import escape

from tokc.cost.prices import Price, usd_per_token
from tokc.report import units
from tokc.report.html_parts import floating_bar
from tokc.report.model import LedgerRow

MTOK = 1e6


def render(ledger: Sequence[LedgerRow], read_bytes_per_s: float, price: Price) -> str:
    """Return the bars: bytes of a decoded token, and what they cost where nothing but memory bounds it."""
    changed = [row for row in ledger if row.changed and row.bytes_before != row.bytes_after]
    if not changed:
        return ""
    bars = "\n".join(_bars(changed, read_bytes_per_s, price))
    title = "<h3>Bytes of a decoded token, pass by pass</h3>"
    text = (
        "Predicted from shapes; the cost is of 1M output tokens, one request at a time, if nothing but "
        "reading those bytes took time."
    )
    caption = f"<figcaption>{escape(text)}</figcaption>"
    return f'<figure class="bars waterfall">\n{title}\n{bars}\n{caption}\n</figure>'


def _measured(row: LedgerRow, price: Price) -> str:
    if row.tokens_per_s is None:
        return ""
    usd = usd_per_token(price, row.tokens_per_s) * MTOK
    return f" <small>measured {units.figures(row.tokens_per_s)}/s, {units.usd(usd)}</small>"


def _bars(changed: Sequence[LedgerRow], read_bytes_per_s: float, price: Price) -> Iterator[str]:
    most = max(max(row.bytes_before, row.bytes_after) for row in changed)

    def said(moved: float, change: str = "") -> str:
        usd = usd_per_token(price, read_bytes_per_s / moved) * MTOK
        return f"{units.scaled(moved, 'B')} <small>{change}{units.usd(usd)}</small>"

    first, last = changed[0].bytes_before, changed[-1].bytes_after
    yield floating_bar("imported model", said(first), (0.0, first / most), "whole")
    for row in changed:
        low, high = sorted((row.bytes_before, row.bytes_after))
        kind = "less" if row.bytes_after < row.bytes_before else "more"
        moved = units.change(row.bytes_before, row.bytes_after)
        change = "" if moved == "–" else f"{moved}, "
        name = row.pass_spec.partition("{")[0]
        value = said(row.bytes_after, change) + _measured(row, price)
        yield floating_bar(name, value, (low / most, high / most), kind)
    yield floating_bar("artifact", said(last), (0.0, last / most), "whole")
