"""A machine to predict for: its roofs, and how near to them kernels come there."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from tokc.cost.calibration import calibration_of
from tokc.cost.devices import Host, probe
from tokc.cost.efficiency import ANY, Efficiencies, Efficiency
from tokc.cost.profile import Roofs
from tokc.cost.sheet import Sheet
from tokc.cost.step_model import StepModel, StepWorks
from tokc.runtime.manifest import TargetInfo

HERE = "this machine"
DISTURBED = 0.05
CALIBRATE = "tokc doctor --calibrate ARTIFACT"


@dataclass(frozen=True)
class Machine:
    """A machine with its price's device name; `basis` says what its predictions rest on, for a reader."""

    name: str
    host: Host
    efficiencies: Efficiencies
    basis: str

    def model(self, works: StepWorks) -> StepModel:
        """Return what predicts steps of an artifact here."""
        return StepModel(works, Roofs.of(self.host), self.efficiencies)


def machine_here(target: TargetInfo, host: Host | None = None) -> Machine:
    """Return this machine as it was calibrated for the target's kernels; else at its roofs, `host` or probed.

    Raises: TokcError if the calibration's file is damaged.
    """
    found = calibration_of(target)
    if found is None:
        basis = f"every kernel at the roofs, which none reaches; calibrate this machine: {CALIBRATE}"
        return Machine(HERE, host or probe(uses=target.features), Efficiencies((), basis), basis)
    basis = (
        f"calibrated on {found.measured_at[:10]} with {found.threads} threads, {found.efficiencies.source}; "
        f"over {len(found.steps)} steps the fit is {found.mean_error:.1%} off on average, "
        f"{found.worst_error:.1%} at worst"
    )
    if found.foreign_cpu >= DISTURBED:
        basis += f"; others took {found.foreign_cpu:.0%} of the cores meanwhile: calibrate again when quiet"
    return Machine(HERE, found.host, found.efficiencies, basis)


def machine_of(sheet: Sheet) -> Machine:
    """Return a device of the sheet, with the efficiencies that were published for it if any were."""
    launch_s = sheet.launch_s or 0.0
    rows = [row for row in _published() if sheet.name in row["devices"]]
    kinds = [_efficiency(row, launch_s) for row in rows]
    if not any(one.kind == ANY for one in kinds):
        kinds.append(Efficiency(ANY, launch_s, 1.0, 1.0, 1.0))
    sources = tuple(dict.fromkeys(source for row in rows for source in row["sources"]))
    how = f"efficiencies as published: {'; '.join(sources)}" if sources else "every kernel at the roofs"
    return Machine(sheet.title, sheet.host(), Efficiencies(tuple(kinds), how), f"{sheet.host().how}; {how}")


def _efficiency(row: dict[str, Any], launch_s: float) -> Efficiency:
    memory = float(row["memory"])
    return Efficiency(str(row["kind"]), launch_s, memory, float(row["compute"]), memory)


@cache
def _published() -> Sequence[dict[str, Any]]:
    text = files("tokc.cost").joinpath("efficiencies.toml").read_text()
    return tuple(tomllib.loads(text)["efficiency"])
