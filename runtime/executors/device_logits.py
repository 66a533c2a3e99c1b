"""The logits of a step, left on the device until a row of them is asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tokc.runtime.executors.base import Float32s

Fetch = Callable[[int, int], None]


class DeviceLogits:
    """Reads like f32[rows, vocab]; a row crosses to the host once, when it is first looked at.

    A step whose sequences all take the likeliest token, which the device finds, moves none.
    """

    def __init__(self, rows: Float32s, fetch: Fetch) -> None:
        """Take where rows will lie on the host, and what brings `count` of them there from `first` on."""
        self._rows, self._fetch = rows, fetch
        self._here = np.zeros(len(rows), np.bool_)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, vocab)."""
        return self._rows.shape

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, row: int) -> Float32s:
        """Return one row, f32[vocab]."""
        if not self._here[row]:
            self._fetch(row, 1)
            self._here[row] = True
        found: Float32s = self._rows[row]
        return found

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> Any:
        """Return all rows, as numpy asks for them."""
        if not self._here.all():
            self._fetch(0, len(self))
            self._here[:] = True
        return np.array(self._rows, dtype, copy=copy)

    def copy(self) -> Float32s:
        """Return all rows, in memory of their own."""
        found: Float32s = np.array(self)
        return found
