"""The emulator's own promises: a stray write and a crash fail the test that made them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.targets.cpu.emulated.emulator import EmulatedKernels
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.elementwise import Scale

WIDTH = 32


@pytest.fixture
def scale(isa: Isa, load_kernels: Any, align: Callable[..., Any]) -> Callable[[int], Any]:
    """Return what doubles some rows into an array of two."""
    kernel = Scale(isa, WIDTH, WIDTH, 2.0)

    def run(rows: int) -> Any:
        x, out = align(np.ones((2, WIDTH), np.float32)), align(np.zeros((2, WIDTH), np.float32))
        load_kernels([kernel], isa).run(kernel, x, out, rows=rows, threads=2)
        return out

    return run


def test_a_write_beside_an_array_is_told(scale: Callable[[int], Any]) -> None:
    assert (scale(2) == 2).all()
    with pytest.raises(AssertionError, match="wrote outside"):
        scale(3)


def test_a_crash_is_told(isa: Isa, tmp_path: Path, align: Callable[..., Any]) -> None:
    kernel = Scale(isa, WIDTH, WIDTH, 2.0)
    x, out = align(np.ones((2, WIDTH), np.float32)), align(np.zeros((2, WIDTH), np.float32))
    kernels = EmulatedKernels([kernel], isa, tmp_path)
    with pytest.raises(AssertionError, match="the emulated program ended with"):
        kernels.run(kernel, x, out, rows=1 << 24)
    kernels.close()
