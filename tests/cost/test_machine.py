"""Machines to predict for: calibrated, published, or at their roofs, and they say which."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.sample import HOST
from tokc.cost import machine, records
from tokc.cost.calibration import Calibration, StepError, calibration_of, calibration_path
from tokc.cost.devices import cpu_name, usable_cores
from tokc.cost.efficiency import ANY, Amounts, Efficiencies, Efficiency
from tokc.cost.machine import machine_here, machine_of
from tokc.cost.sheet import device_sheet, named_device
from tokc.runtime.manifest import TargetInfo

TARGET = TargetInfo("cpu", "avx2", "x86_64", (), "step.so")
EFFICIENCIES = Efficiencies((Efficiency("QuantLinear", 1e-6, 0.8, 0.7, 1.0),), "fitted to steps of a.tokc")


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    host = replace(HOST, cpu=cpu_name(), cores=usable_cores())
    steps = (StepError("a.tokc", 1, 1, 32, 2e-3, 0.02), StepError("a.tokc", 4, 1, 32, 3e-3, -0.06))
    return Calibration("avx2", 2, host, ("a.tokc",), EFFICIENCIES, steps, "2026-11-25T12:00:00+00:00")


def test_a_calibration_of_this_cpu_is_found_and_states_its_error(calibration: Calibration) -> None:
    records.write(calibration_path("avx2"), calibration)
    assert calibration_of(TARGET) == calibration
    here = machine_here(TARGET)
    assert here.efficiencies == EFFICIENCIES
    assert "4.0% off on average, 6.0% at worst" in here.basis


def test_another_cpu_is_not_what_was_calibrated(calibration: Calibration) -> None:
    records.write(calibration_path("avx2"), replace(calibration, host=HOST))
    assert calibration_of(TARGET) is None
    assert machine_here(TARGET, HOST).basis == machine_here(TARGET, HOST).efficiencies.source
    assert machine.CALIBRATE in machine_here(TARGET, HOST).basis


def test_a_disturbed_calibration_says_so(calibration: Calibration) -> None:
    records.write(calibration_path("avx2"), replace(calibration, foreign_cpu=0.4))
    assert "others took 40%" in machine_here(TARGET).basis


@pytest.mark.parametrize("name", sorted(device_sheet()))
def test_every_device_of_the_sheet_can_be_predicted(name: str) -> None:
    found = machine_of(named_device(name))
    known = found.efficiencies.of(ANY)
    assert known.seconds(Amounts(1.0, 0.0, 0.0)) >= 1.0
    assert ("published" in found.basis) == any(
        one.memory != 1.0 or one.compute != 1.0 for one in found.efficiencies.kinds
    )
