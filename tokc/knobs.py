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

KNOBS = (WEIGHTS,)


def weights_residence() -> str:
    """Return `huge-pages` or `mmap`."""
    return WEIGHTS.read()
