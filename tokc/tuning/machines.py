"""Where trials run: a machine takes one at a time, since two would disturb each other's measurements."""

import platform
from pathlib import Path
from typing import Protocol

from tokc.cost.devices import Host
from tokc.tuning.trial import Finished, Setting, attempt, clear


class Machines(Protocol):
    """What runs trials: begin no more than `count` at once, then take what is finished."""

    @property
    def count(self) -> int:
        """Return how many trials may run at once now."""
        ...

    def begin(self, number: int, pipeline: str) -> None:
        """Begin a trial of what `pipeline` builds."""
        ...

    def finished(self) -> Finished:
        """Return a trial that ended, when one has."""
        ...


class ThisMachine:
    """Runs trials here, their builds in `folder`, which stay there when they end."""

    count = 1

    def __init__(self, setting: Setting, folder: Path, host: Host) -> None:
        """Take what all trials share, and this machine."""
        self.host = host
        self._setting, self._folder = setting, folder
        self._begun: list[tuple[int, str]] = []

    def begin(self, number: int, pipeline: str) -> None:
        """Keep the trial for `finished`, which has the caller's time to run it."""
        self._begun.append((number, pipeline))

    def finished(self) -> Finished:
        """Run the trial and return it; an interrupt removes its build."""
        number, pipeline = self._begun.pop(0)
        artifact = self._folder / f"trial{number}.tokc"
        try:
            return attempt(self._setting, number, pipeline, artifact, machine=platform.node())
        except BaseException:
            clear(artifact)
            raise
