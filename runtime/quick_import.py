"""Imports numpy without what makes that slow: a spinning thread, and collections of garbage that is none."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = "OPENBLAS_THREAD_TIMEOUT"
# Clock ticks, as a power of two: a third of a millisecond. OpenBLAS' own choice is 26: for 20 milliseconds or
# longer, its idle threads take the cores that could have read weights.
SPIN_TICKS = 20


@contextmanager
def quick_imports() -> Iterator[None]:
    """Let OpenBLAS threads sleep soon if numpy is imported here first, and leave collecting for later."""
    collects, sets = gc.isenabled(), "numpy" not in sys.modules and SPIN not in os.environ
    gc.disable()
    if sets:
        os.environ[SPIN] = str(SPIN_TICKS)
    try:
        yield
    finally:
        if sets:
            del os.environ[SPIN]
        if collects:
            gc.enable()
