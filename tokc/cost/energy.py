"""Energy that the machine's own counters measured: RAPL's packages, where the kernel lets them be read.

Source: docs.kernel.org/power/powercap/powercap.html.
"""

from dataclasses import dataclass
from pathlib import Path

from tokc.errors import UnknownOption

POWERCAP = Path("/sys/class/powercap")
MICRO = 1e-6
JOULES_PER_KWH = 3.6e6
MTOK = 1e6
DEFAULT_PUE = 1.0


@dataclass(frozen=True)
class Carbon:
    """What a joule emits where a machine stands: `g_per_kwh` of CO2e of the grid, times the building's `pue`.

    PUE, power usage effectiveness, is all energy of the building over that of its machines: ISO/IEC 30134-2.
    `watts` is what the machine draws at work where no counter tells, None for the data sheet's limit.
    """

    g_per_kwh: float
    pue: float = DEFAULT_PUE
    watts: float | None = None

    def g_per_mtok(self, joules_per_token: float) -> float:
        """Return grams of CO2e for a million tokens."""
        return joules_per_token * MTOK / JOULES_PER_KWH * self.pue * self.g_per_kwh


def parse_carbon(g_per_kwh: float | None, pue: float | None, watts: float | None) -> Carbon | None:
    """Return what the options state, None where they do not state the grid's intensity.

    Raises: UnknownOption if one is negative, a PUE below 1, or PUE or watts are given without the intensity.
    """
    if g_per_kwh is None:
        if pue is not None or watts is not None:
            raise UnknownOption("--pue and --watts are for emissions", hint="add --grid-intensity")
        return None
    if g_per_kwh < 0:
        raise UnknownOption(f"a grid intensity of {g_per_kwh:g} gCO2e/kWh is negative")
    if pue is not None and pue < 1:
        raise UnknownOption(f"a PUE of {pue:g} is below 1", hint="a building's energy over its machines'")
    if watts is not None and watts <= 0:
        raise UnknownOption(f"a power of {watts:g} W is not positive")
    return Carbon(g_per_kwh, DEFAULT_PUE if pue is None else pue, watts)


class EnergyCounter:
    """Counts joules from when it was made, where there is a counter and the right to read it."""

    def __init__(self, root: Path = POWERCAP) -> None:
        """Find the packages; cores and memory within one are counted by it already."""
        zones = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
        packages = [zone for zone in zones if zone.name.count(":") == 1]
        self._last = {zone: joules for zone in packages if (joules := _read(zone)) is not None}
        self._range = {zone: _range(zone) for zone in self._last}
        self._total = 0.0

    @property
    def available(self) -> bool:
        """Return whether anything is counted."""
        return bool(self._last)

    def joules(self) -> float | None:
        """Return what was used since the start, None without a counter.

        A counter that went round once between two calls is understood: packages of 200 W do so within minutes
        to an hour, so call it at least once a minute.
        """
        if not self._last:
            return None
        for zone, last in self._last.items():
            now = _read(zone)
            if now is None:
                return None
            self._total += now - last if now >= last else now + self._range[zone] - last
            self._last[zone] = now
        return self._total


def _read(zone: Path) -> float | None:
    try:
        return int((zone / "energy_uj").read_text()) * MICRO
    except (OSError, ValueError):
        return None


def _range(zone: Path) -> float:
    try:
        return int((zone / "max_energy_range_uj").read_text()) * MICRO
    except (OSError, ValueError):
        return 0.0
