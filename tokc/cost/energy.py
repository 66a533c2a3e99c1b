"""Energy that the machine's own counters measured: RAPL's packages, where the kernel lets them be read.

Source: docs.kernel.org/power/powercap/powercap.html.
"""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
MICRO = 1e-6


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
