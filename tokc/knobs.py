"""Every TOKC_* environment variable: name, accepted values, default and meaning."""

import os
from typing import NamedTuple

from tokc.errors import TokcError


class Knob(NamedTuple):
    """One environment variable."""

    name: str
    accepted: tuple[str, ...]
    default: str
    summary: str

    def read(self) -> str:
        """Return its value.

        Raises: TokcError naming the variable and what it accepts.
        """
        value = os.environ.get(self.name, self.default)
        if value not in self.accepted:
            raise TokcError(
                f"{self.name} is '{value}'; it takes {' or '.join(self.accepted)}",
                hint=f"unset it for the default, {self.default}",
            )
        return value


WEIGHTS = Knob(
    "TOKC_WEIGHTS",
    accepted=("huge-pages", "mmap"),
    default="huge-pages",
    summary="where the CPU runtime keeps weights: copied to huge pages, or mapped and shared",
)

BUILD_CACHE = Knob(
    "TOKC_BUILD_CACHE",
    accepted=("on", "off"),
    default="on",
    summary="whether `tokc build` keeps artifacts in the user's cache and finds them again",
)

KNOBS = (WEIGHTS, BUILD_CACHE)


def weights_residence() -> str:
    """Return `huge-pages` or `mmap`."""
    return WEIGHTS.read()


def build_cache_on() -> bool:
    """Return whether builds are kept and found again."""
    return BUILD_CACHE.read() == "on"
