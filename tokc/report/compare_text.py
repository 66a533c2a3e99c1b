"""A comparison of costs as tables and bars: for a terminal, and as Markdown."""

from collections.abc import Iterator

from rich.console import Group

from tokc.report import sections as as_tables
from tokc.report import units
from tokc.report.compare import UTILIZATIONS, Comparison, Option, cheapest
from tokc.report.prediction import Capacity
from tokc.report.sections import Section

HEADLINE = "Cost of a million output tokens"
BAR_WIDTH, BAR_AT = 24, 0.3
FOREIGN = "predicted*"
FOREIGN_NOTE = "* the work of an artifact for another target: build it for this one to be sure"


def terminal(found: Comparison) -> Group:
    """Return the comparison for a rich console."""
    return as_tables.terminal(HEADLINE, sections(found))


def markdown(found: Comparison) -> str:
    """Return the comparison as Markdown."""
    return as_tables.markdown(HEADLINE, sections(found))


def sections(found: Comparison) -> Iterator[Section]:
    """Return the tables: every option, the cheapest of each as a bar, quality, APIs and break-even."""
    yield _options(found)
    yield _bars(found)
    yield _rooms(found)
    yield _quality(found)
    yield _hosted(found)
    yield _break_even(found)
    yield Section("Notes", (), (), "\n".join(found.notes) or None)


def _options(found: Comparison) -> Section:
    shares = tuple(f"{share:.0%} in use" for share in UTILIZATIONS)
    columns = ("artifact", "device", "rate is", "batch", "tokens/s", *shares, "price")
    rows = tuple(
        (
            option.artifact,
            option.device,
            FOREIGN if option.foreign else option.basis,
            str(option.batch),
            _rate(option),
            *(_usd(option.at(share)) for share in UTILIZATIONS),
            option.price or "–",
        )
        for option in found.options
    )
    foreign = any(option.foreign for option in found.options)
    return Section("Artifacts and devices, USD", columns, rows, FOREIGN_NOTE if foreign else None, (0, 1, 2))


def _bars(found: Comparison) -> Section:
    best = [(option, option.at(BAR_AT)) for option in cheapest(found.options)]
    priced = [(f"{option.artifact} on {option.device}", usd) for option, usd in best if usd is not None]
    lengths = next(((one.prompt_tokens, one.output_tokens) for one in found.options), None)
    if lengths is not None:
        priced += [(one.name, one.per_output_mtok(*lengths)) for one in found.hosted]
    most = max((usd for _, usd in priced), default=1.0)
    ordered = sorted(priced, key=lambda row: row[1])
    rows = tuple((name, units.usd(usd), _bar(usd / most)) for name, usd in ordered)
    title = f"Best batch of each at {BAR_AT:.0%} in use, and the APIs, prompts included; USD"
    return Section(title, ("", "per 1M", ""), rows, left=(0, 2))


def _rooms(found: Comparison) -> Section:
    """Return the largest batch that fits at each context, and what a token costs at it."""
    contexts = tuple(dict.fromkeys(one.context for room in found.rooms for one in room.contexts))
    rows = []
    for room in found.rooms:
        by_context = {one.context: _fits(one) for one in room.contexts}
        device = f"{room.device}*" if room.foreign else room.device
        cells = (by_context.get(context, "–") for context in contexts)
        rows.append((room.artifact, device, f"{room.kv_tokens:,}", *cells))
    columns = ("artifact", "device", "tokens of cache", *(f"{context} tokens" for context in contexts))
    note = "Predicted. A step takes no more sequences than the artifact was built for; USD at full use."
    title = "Largest batch that fits by context, and USD for 1M output tokens (or tokens/s) at it"
    return Section(title, columns, tuple(rows), note if rows else None, (0, 1))


def _fits(one: Capacity) -> str:
    if one.tokens_per_s is None:
        return "none fits"
    cost = f"{units.figures(one.tokens_per_s)}/s" if one.usd_per_mtok is None else units.usd(one.usd_per_mtok)
    return f"{one.batch}: {cost}"


def _quality(found: Comparison) -> Section:
    rows = tuple(
        (
            one.artifact,
            one.basis,
            _or_dash(one.perplexity, "{:.3f}"),
            _or_dash(one.ppl_ratio, "{:.4f}"),
            _or_dash(one.kl_mean, "{:.5f}"),
            _or_dash(one.top1_agree, "{:.2%}"),
        )
        for one in found.quality
    )
    columns = ("artifact", "compared by", "perplexity", "ratio", "mean KL, nats", "same top-1")
    return Section("Quality", columns, rows, None, (0, 1))


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _hosted(found: Comparison) -> Section:
    rows = tuple(
        (
            one.name,
            one.model,
            units.usd(one.usd_per_input_mtok),
            units.usd(one.usd_per_output_mtok),
            one.published,
        )
        for one in found.hosted
    )
    sources = "\n".join(dict.fromkeys(one.source for one in found.hosted)) or None
    columns = ("", "model", "1M input", "1M output", "stated")
    return Section("Hosted APIs, list prices in USD", columns, rows, sources, (0, 1))


def _break_even(found: Comparison) -> Section:
    rows = tuple(
        (
            f"{one.artifact} on {one.device}",
            str(one.batch),
            one.hosted,
            units.usd(one.hosted_usd_per_mtok),
            _from(one.utilization),
        )
        for one in found.break_evens
    )
    columns = ("own machine", "batch", "API", "API per 1M output, with prompts", "own is cheaper")
    note = "Other models: the price is compared, not the answers." if rows else None
    return Section("Break-even", columns, rows, note, (0, 2))


def _rate(option: Option) -> str:
    rate = units.figures(option.tokens_per_s)
    if option.low is None or option.high is None:
        return rate
    return f"{rate} ({units.figures(max(option.low, 0.0))} to {units.figures(option.high)})"


def _from(utilization: float) -> str:
    if utilization > 1:
        return "never"
    return f"from {utilization:.0%} in use" if utilization >= 0.01 else "from less than 1% in use"


def _usd(value: float | None) -> str:
    return "–" if value is None else units.usd(value)


def _bar(share: float) -> str:
    return ("█" * max(1, round(share * BAR_WIDTH))).ljust(BAR_WIDTH)
