"""Scales of 8 bits: exact in fp16, near what they stand for, and read back as counts of a unit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tokc.passes.quantization.grid import Grid
from tokc.passes.quantization.narrow_scales import in_units, narrowed, with_narrow_scales
from tokc.passes.quantization.rtn import RoundToNearest

SCALES = arrays(np.float16, (3, 7), elements=st.floats(-65504, 65504, width=16, allow_nan=False))


@given(SCALES)
def test_narrowed_scales_are_counts_of_a_unit_and_stay_near(scale: np.ndarray) -> None:
    narrow = narrowed(scale)
    units, counts = in_units(narrow)
    np.testing.assert_array_equal(counts * units[:, None], narrow.astype(np.float32))
    largest = np.abs(scale.astype(np.float32)).max(axis=1, keepdims=True)
    allowed = np.where(largest > 65000, largest / 113, np.maximum(largest / 226, 2.0**-21))
    assert (np.abs(narrow.astype(np.float32) - scale) <= allowed).all()


@given(SCALES)
def test_narrowing_again_moves_them_no_further_than_once(scale: np.ndarray) -> None:
    narrow = narrowed(scale)
    again = narrowed(narrow)
    coarse = np.abs(again.astype(np.float32) - narrow.astype(np.float32))
    assert (coarse <= np.abs(narrow.astype(np.float32)).max(axis=1, keepdims=True) / 100).all()


def test_scales_of_16_bits_are_refused_as_counts() -> None:
    with pytest.raises(ValueError, match="multiple of its row's unit"):
        in_units(np.array([[1.0, 0.3337]], np.float16))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_weight_loses_little_more_than_with_wide_scales(bits: int) -> None:
    w = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    wide, narrow = Grid(bits), Grid(bits, scale_bits=8)
    method = RoundToNearest()
    before = wide.error(w, method.quantize(w, wide))
    after = narrow.error(w, with_narrow_scales(w, narrow, method.quantize(w, narrow)))
    assert after <= before * 1.06


def test_narrow_scales_need_a_symmetric_grid() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        Grid(4, symmetric=False, scale_bits=8)
