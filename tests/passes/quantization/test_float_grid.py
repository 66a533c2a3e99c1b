"""Rounding to float formats, held against ml_dtypes' casts and the formats' own bounds."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tokc.passes.quantization.float_grid import FloatCodes, FloatGrid, float_grid
from tokc.passes.quantization.grid import F32, NotFinite

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 70)),
    elements=st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1e-30, 2e-42, -3e38, 3e38])),
)
EIGHT = {  # type, largest, half a last place of normal numbers (relative) and of subnormal ones
    "e4m3": (ml_dtypes.float8_e4m3fn, 448.0, 2**-4, 2**-10),
    "e5m2": (ml_dtypes.float8_e5m2, 57344.0, 2**-3, 2**-17),
}


def normal(*shape: int) -> F32:
    values: F32 = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    return values


def decoded(found: FloatCodes, grid: FloatGrid) -> np.ndarray:
    """Return what the codes mean by ml_dtypes alone, in f64."""
    if grid.format in EIGHT:
        numbers, scale = found.codes.astype(np.float64), found.scale.astype(np.float64)
    else:
        numbers = found.codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
        kind = ml_dtypes.float8_e8m0fnu if grid.format == "mxfp4" else ml_dtypes.float8_e4m3fn
        scale = found.scale.view(kind).astype(np.float64)
    whole = 1.0 if found.tensor_scale is None else float(found.tensor_scale[0])
    rows, columns = np.indices(numbers.shape)
    return numbers * scale[rows // grid.block_rows, columns // grid.block_size] * whole


@pytest.mark.parametrize("scales", ["tensor", "channel", "block"])
@pytest.mark.parametrize("name", EIGHT)
@given(w=weights)
def test_8_bit_floats_err_by_half_a_last_place(name: str, scales: str, w: F32) -> None:
    grid = float_grid(name, scales, "rtn", w.shape)
    found = grid.quantize(w)
    kind, largest, relative, least = EIGHT[name]
    assert found.codes.dtype == kind
    assert np.abs(found.codes.astype(np.float64)).max() <= largest
    spread = found.scale.astype(np.float64)[
        np.indices(w.shape)[0] // grid.block_rows, np.indices(w.shape)[1] // grid.block_size
    ]
    bound = np.maximum(np.abs(w.astype(np.float64)) * relative, spread * least) * (1 + 1e-5) + 1e-44
    assert (np.abs(decoded(found, grid) - w) <= bound).all()


@given(w=weights)
def test_mxfp4_has_the_shared_exponent_of_the_specification(w: F32) -> None:
    grid = float_grid("mxfp4", "auto", "rtn", w.shape)
    found = grid.quantize(w)
    for row, start in np.ndindex(found.scale.shape):
        block = np.abs(w[row, start * 32 : start * 32 + 32].astype(np.float64))
        if block.max() > 2.0**-120:
            assert int(found.scale[row, start]) - 127 == np.floor(np.log2(block.max())) - 2
    exponent = np.repeat(found.scale.astype(np.int64) - 127, 32, axis=1)[:, : w.shape[1]]
    cast = np.clip(w / np.exp2(exponent), -6, 6).astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(found.codes & 7, cast.view(np.uint8) & 7)
    magnitude = np.abs(w.astype(np.float64))
    unit = np.exp2(exponent.astype(np.float64))
    bound = np.where(magnitude > 6 * unit, magnitude - 6 * unit, np.maximum(magnitude / 4, unit / 4))
    assert (np.abs(decoded(found, grid) - w) <= bound * (1 + 1e-6)).all()


@given(w=weights)
def test_nvfp4_errs_by_half_a_step_and_what_its_scale_was_rounded_by(w: F32) -> None:
    grid = float_grid("nvfp4", "auto", "rtn", w.shape)
    found = grid.quantize(w)
    assert found.tensor_scale is not None
    whole, largest = float(found.tensor_scale[0]), np.abs(w).max()
    assert whole == np.float32(largest / np.float32(2688)) or largest < 1e-40
    unit = np.repeat(found.scale.astype(np.float64) * whole, 16, axis=1)[:, : w.shape[1]]
    magnitude = np.abs(w.astype(np.float64))
    small = whole * 2**-9 * 6  # a block whose scale is the least of e4m3, or none
    bound = np.maximum(magnitude / 4, unit / 4) + magnitude * 2**-4 + small
    assert (np.abs(decoded(found, grid) - w) <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
@given(w=weights)
def test_searched_scales_are_never_worse_and_often_better(name: str, w: F32) -> None:
    plain, searched = (float_grid(name, "auto", method, w.shape) for method in ("rtn", "rtn-mse"))
    starts = np.arange(0, w.shape[1], plain.block_size)
    before, after = (
        np.add.reduceat((decoded(grid.quantize(w), grid) - w) ** 2, starts, axis=1)
        for grid in (plain, searched)
    )
    assert (after <= before * (1 + 1e-6)).all()


@pytest.mark.parametrize(("name", "gain"), [("mxfp4", 0.95), ("nvfp4", 0.9)])
def test_searched_scales_lose_less_of_normal_weights(name: str, gain: float) -> None:
    w = normal(64, 512)
    plain, searched = (
        float(np.mean((decoded(grid.quantize(w), grid) - w) ** 2))
        for grid in (float_grid(name, "auto", method, w.shape) for method in ("rtn", "rtn-mse"))
    )
    assert searched < plain * gain


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("method", ["rtn", "rtn-mse"])
def test_any_number_of_threads_gives_the_same_bits_and_what_they_stand_for(name: str, method: str) -> None:
    w = normal(300, 577)
    one = float_grid(name, "auto", method, w.shape)
    many = FloatGrid(name, one.block_rows, one.block_size, method, threads=3)
    found, again = one.quantize(w), many.quantize(w)
    assert found.codes.tobytes() == again.codes.tobytes()
    assert found.scale.tobytes() == again.scale.tobytes()
    assert found.scale.shape == one.scale_shape(*w.shape)
    np.testing.assert_allclose(one.dequantized(found), decoded(found, one), rtol=1e-6)


def test_blocks_of_128_by_128_have_a_scale_each_and_a_tensor_has_one() -> None:
    w = normal(200, 300)
    w[130:, 260:] *= 1000
    blocks = float_grid("e4m3", "block", "rtn", w.shape)
    found = blocks.quantize(w)
    assert found.scale.shape == (2, 3)
    np.testing.assert_allclose(found.scale[0, 1], np.abs(w[:128, 128:256]).max() / 448, rtol=1e-6)
    assert float_grid("e4m3", "tensor", "rtn", w.shape).quantize(w).scale.shape == (1, 1)


@pytest.mark.parametrize("name", ["e4m3", "mxfp4", "nvfp4"])
def test_zeros_stay_zero_and_what_is_not_finite_is_refused(name: str) -> None:
    w = np.zeros((3, 70), np.float32)
    grid = float_grid(name, "auto", "rtn-mse", w.shape)
    assert (grid.dequantized(grid.quantize(w)) == 0).all()
    w[1, 3] = np.nan
    with pytest.raises(NotFinite, match="not finite"):
        grid.quantize(w)
