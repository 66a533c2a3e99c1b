"""A calibration on a terminal: what kernels of each kind reach, and how far the fit is off."""

from rich.console import Group

from tokc.cost.calibration import Calibration
from tokc.report import sections, units
from tokc.report.model import DISTURBED_SHARE
from tokc.report.sections import Section


def terminal(found: Calibration) -> Group:
    """Return the tables for a rich console."""
    return sections.terminal(
        f"{found.host.cpu}, {found.threads} threads, kernels for {found.device}",
        (_kinds(found), _steps(found)),
    )


def _kinds(found: Calibration) -> Section:
    rows = tuple(
        (one.kind, _share(one.memory), _share(one.compute), _share(one.caches), units.seconds(one.launch_s))
        for one in found.efficiencies.kinds
    )
    of = found.efficiencies
    int8, f32 = (
        units.scaled(one, "FLOP/s") for one in (found.roofs.int8_flops_per_s, found.roofs.f32_flops_per_s)
    )
    roofs = f"{units.scaled(found.roofs.read_bytes_per_s, 'B/s')}, {int8} in int8, {f32} in f32"
    note = (
        f"Shares of {roofs}. A step takes {units.seconds(of.step_s)} beside its launches; the engine adds "
        f"{units.seconds(of.engine_s)} and {units.seconds(of.sequence_s)} a sequence."
    )
    columns = ("kernels", "of memory", "of arithmetic", "own bytes, of memory", "a launch")
    return Section("Fitted", columns, rows, note)


def _steps(found: Calibration) -> Section:
    rows = tuple(
        (
            one.artifact,
            str(one.sequences),
            str(one.tokens),
            str(one.context),
            units.seconds(one.measured_s),
            units.percent(one.error),
        )
        for one in found.steps
    )
    note = f"The fit is {found.mean_error:.1%} off on average, {found.worst_error:.1%} at worst."
    if found.foreign_cpu >= DISTURBED_SHARE:
        note += f" Others took {found.foreign_cpu:.0%} of the cores meanwhile: do it again when quiet."
    columns = ("artifact", "sequences", "tokens each", "context", "launches, least", "fit")
    return Section("Steps that were timed", columns, rows, note)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
