"""What drafts did: rates, cost and acceptance at each batch size."""

from collections.abc import Sequence

from tokc.cost.drafted import Drafted
from tokc.cost.prices import Price, usd_per_token
from tokc.report import units
from tokc.report.sections import Section

BAR_WIDTH = 24
NOTE = (
    "Measured in turns with and without drafts on passages of text; the tokens are the same. Accepted: "
    "drafted tokens that held. Acceptance length: tokens a step makes of a sequence that drafts."
)
COLUMNS = (
    "batch",
    "tokens/s",
    "without drafts",
    "ratio",
    "least to greatest",
    "accepted",
    "acceptance length",
)


def sections(drafted: Sequence[Drafted], price: Price | None) -> list[Section]:
    """Return what drafts did at each batch size, and how often they held by place; with a price, the cost."""
    costs = () if price is None else ("per 1M", "without drafts, per 1M")
    rows = tuple((*_cells(one), *_costs(one, price)) for one in drafted)
    held = tuple(cells for one in drafted for cells in _places(one))
    return [
        Section("Speculation", (*COLUMNS, *costs), rows, NOTE),
        Section("Drafted tokens by place", ("batch", "place", "verified", "held", ""), held, None, (0, 4)),
    ]


def _cells(one: Drafted) -> list[str]:
    ratio = one.speedup
    return [
        str(one.batch),
        units.figures(one.tokens_per_s.median),
        units.figures(one.plain_tokens_per_s.median),
        f"{ratio.median:.2f}",
        f"{ratio.least:.2f} to {ratio.greatest:.2f}",
        f"{one.acceptance_rate:.0%}" if one.drafts else "no drafts",
        f"{one.mean_acceptance_length:.2f}",
    ]


def _costs(one: Drafted, price: Price | None) -> list[str]:
    if price is None:
        return []
    rates = one.tokens_per_s.median, one.plain_tokens_per_s.median
    return [units.usd(usd_per_token(price, rate) * 1e6) for rate in rates]


def _places(one: Drafted) -> list[tuple[str, ...]]:
    """Return how many tokens were verified at each place of a draft, and the share that held."""
    found: list[tuple[str, ...]] = []
    for place, (verified, held) in enumerate(zip(one.verified_at, one.accepted_at, strict=True), 1):
        share = held / verified if verified else 0.0
        cells = str(one.batch), str(place), str(verified), f"{share:.0%}", "█" * round(share * BAR_WIDTH)
        found.append(cells)
    return found
