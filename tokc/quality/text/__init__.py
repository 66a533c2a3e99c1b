"""The texts that come with tokc: one to calibrate on, and one, held out from it, to evaluate on.

Sources and licences are in the file LICENCE beside them.
"""

from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from tokc.errors import TokcError


def calibration_text() -> str:
    """Return English prose and the Python language reference, about 165,000 characters."""
    return _read("calibration.txt")


def evaluation_text() -> str:
    """Return text of the same kinds, about 110,000 characters, held out from the calibration text."""
    return _read("evaluation.txt")


def windows(token_ids: Sequence[int], *, count: int, length: int) -> npt.NDArray[np.int64]:
    """Cut `count` windows of `length` tokens, evenly spread over a text; [count, length].

    Fewer are returned where the text does not hold as many without overlap.

    Raises: TokcError if the text is shorter than one window.
    """
    held = len(token_ids) // length
    if held == 0:
        raise TokcError(
            f"the text has {len(token_ids)} tokens, fewer than one window of {length}",
            hint="give a longer text, or ask for shorter windows",
        )
    count = min(count, held)
    starts = [(len(token_ids) - length) * index // max(1, count - 1) for index in range(count)]
    return np.array([token_ids[start : start + length] for start in starts], dtype=np.int64)


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
