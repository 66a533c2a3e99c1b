"""Energy counters, as the kernel shows them."""

from pathlib import Path

from tokc.cost.energy import EnergyCounter


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
