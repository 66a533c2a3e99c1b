"""Energy and emissions of output tokens: from the machine's counter, else predicted from a stated power."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokc.cost.energy import Carbon
from tokc.cost.serving.record import ServingBench
from tokc.report import units
from tokc.report.sections import Section

COUNTER, POWER = "measured by the counter", "predicted from {watts:g} W"
NO_POWER = "No counter of energy was read and no power is known: --watts states what the machine draws."


@dataclass(frozen=True)
class Emission:
    """What an output token took at one load, prompts included; `basis` says from what it is known."""

    load: str
    joules_per_token: float
    g_per_mtok: float
    basis: str


@dataclass(frozen=True)
class Rate:
    """Output tokens a second at a load, measured or predicted."""

    load: str
    tokens_per_s: float


@dataclass(frozen=True)
class Emissions:
    """Emissions at every load whose energy is known, and what a joule emits."""

    carbon: Carbon
    rows: tuple[Emission, ...]


def emissions_of(
    carbon: Carbon, load: ServingBench | None, rates: Sequence[Rate], watts: float | None
) -> Emissions:
    """Return what is known: counted energy of a load test, else a power over the time of a token."""
    rows = tuple(_counted(carbon, load))
    power = carbon.watts or watts
    if not rows and power is not None:
        rows = tuple(_powered(carbon, (*_rates(load), *rates), power))
    return Emissions(carbon, rows)


def section(found: Emissions) -> Section:
    """Return the emissions as a table."""
    rows = tuple(
        (one.load, units.figures(one.joules_per_token), units.figures(one.g_per_mtok), one.basis)
        for one in found.rows
    )
    carbon = found.carbon
    note = f"As stated: {carbon.g_per_kwh:g} gCO2e/kWh of the grid, a PUE of {carbon.pue:g}. At full use."
    columns = ("load", "J/output token", "gCO2e for 1M output tokens", "energy is")
    return Section("Energy and emissions", columns, rows, note if rows else f"{note}\n{NO_POWER}", (0, 3))


def _counted(carbon: Carbon, load: ServingBench | None) -> Iterator[Emission]:
    for point in () if load is None else load.points:
        joules = point.joules_per_output_token
        if joules is not None:
            yield Emission(point.arrival, joules, carbon.g_per_mtok(joules), COUNTER)


def _rates(load: ServingBench | None) -> Iterator[Rate]:
    points = () if load is None else load.points
    return (Rate(point.arrival, point.output_tokens_per_s.median) for point in points)


def _powered(carbon: Carbon, rates: Iterable[Rate], watts: float) -> Iterator[Emission]:
    for one in rates:
        joules = watts / one.tokens_per_s
        yield Emission(one.load, joules, carbon.g_per_mtok(joules), POWER.format(watts=watts))
