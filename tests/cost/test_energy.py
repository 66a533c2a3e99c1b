"""Energy counters, as the kernel shows them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokc.cost.energy import Carbon, EnergyCounter, parse_carbon
from tokc.errors import UnknownOption


def zone(root: Path, name: str, energy: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    return folder


def test_packages_are_added_and_what_is_within_them_is_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", 1_000_000)
    zone(tmp_path, "intel-rapl:1", 0)
    counter = EnergyCounter(tmp_path)
    zone(tmp_path, "intel-rapl:0", 7_000_000)
    zone(tmp_path, "intel-rapl:0:0", 9_000_000)
    zone(tmp_path, "intel-rapl:1", 500_000)
    assert counter.joules() == 2.5


def test_a_counter_that_went_round_is_understood(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 999_000_000)
    counter = EnergyCounter(tmp_path)
    zone(tmp_path, "intel-rapl:0", 1_000_000)
    assert counter.joules() == 2.0


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    assert EnergyCounter(tmp_path).joules() is None
    assert EnergyCounter(tmp_path / "nothing").joules() is None


def test_emissions_by_hand() -> None:
    carbon = Carbon(g_per_kwh=400.0, pue=1.5)
    assert carbon.g_per_mtok(0.036) == pytest.approx(0.036 * 1e6 / 3.6e6 * 1.5 * 400)


@given(st.floats(1, 2000), st.floats(1, 3), st.floats(1e-4, 1e3))
def test_half_the_intensity_emits_half(intensity: float, pue: float, joules: float) -> None:
    whole = Carbon(intensity, pue).g_per_mtok(joules)
    assert Carbon(intensity / 2, pue).g_per_mtok(joules) == pytest.approx(whole / 2)
    assert Carbon(intensity, 1.0).g_per_mtok(joules) <= whole


def test_without_an_intensity_nothing_is_stated() -> None:
    assert parse_carbon(None, None, None) is None
    assert parse_carbon(50.0, None, None) == Carbon(50.0, 1.0)


@pytest.mark.parametrize(
    ("intensity", "pue", "watts", "problem"),
    [
        (None, 1.2, None, "--pue and --watts are for emissions"),
        (-1.0, None, None, "a grid intensity of -1 gCO2e/kWh is negative"),
        (400.0, 0.9, None, "a PUE of 0.9 is below 1"),
        (400.0, None, 0.0, "a power of 0 W is not positive"),
    ],
)
def test_what_cannot_be_is_refused(
    intensity: float | None, pue: float | None, watts: float | None, problem: str
) -> None:
    with pytest.raises(UnknownOption, match=problem):
        parse_carbon(intensity, pue, watts)
