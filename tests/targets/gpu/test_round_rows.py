"""Rows rounded to either form of e4m3, against ml_dtypes."""

import numpy as np
import pytest

from tests.targets.gpu.interpreted import info, interpret
from tests.targets.gpu.test_fp8_linear import FORMS
from tokc.targets.gpu.kernels.round_rows import RoundRows
from tokc.targets.gpu.packing import e4m3

UNTOUCHED = 0x11


def run(kernel: RoundRows, x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.full((len(x), kernel.width), UNTOUCHED, np.uint8)
    scale = np.full(len(x), 7.0, np.float32)
    interpret(kernel, {"x": x, "info": info(tokens=count), "y": y, "y_scale": scale}, {"tokens": len(x)})
    return y, scale


@pytest.mark.parametrize("form", FORMS)
def test_codes_are_the_nearest_and_rows_past_the_count_are_left(form: str) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((7, 112)) * np.geomspace(1e-3, 1e3, 7)[:, None]).astype(np.float16)
    x[2] = 0
    x[3, 5:40] *= 1e-4  # subnormal codes, and some that round to zero
    y, scale = run(RoundRows(100, 112, fnuz=form == "fp8e4b8"), x, 6)
    assert (y[6:] == UNTOUCHED).all()
    assert (scale[6:] == 7).all()
    wide = x[:6, :100].astype(np.float32)
    step = np.abs(wide).max(axis=1) / np.float32(448)
    step[2] = 1
    expected = np.clip(wide / step[:, None], -448, 448).astype(e4m3("fp8e4nv")).astype(np.float64)
    real = y[:6].view(e4m3(form)).astype(np.float64) * scale[:6, None]
    np.testing.assert_allclose(real, expected * step[:, None], rtol=1e-6)
    assert np.count_nonzero(expected[3, 5:40]) < 35


def test_every_code_rounds_to_itself_and_halfway_goes_to_even() -> None:
    real = np.arange(127, dtype=np.uint8).view(e4m3("fp8e4nv")).astype(np.float32)
    middle = (real[1:] + real[:-1]) / 2
    for row in (real, np.append(middle, np.float32(448))):
        x = np.stack([row, -row]).astype(np.float16)
        y, scale = run(RoundRows(127, 127), x, 2)
        assert (scale == 1).all()
        expected = row.astype(e4m3("fp8e4nv")).view(np.uint8)
        np.testing.assert_array_equal(y[0], expected)
        np.testing.assert_array_equal(y[1] & 0x7F, expected)
        assert (y[1][expected > 0] >= 0x80).all()
