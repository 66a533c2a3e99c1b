"""Properties of the quantizer's core."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tokc.passes.quantization.grid import F32, Grid, NotFinite
from tokc.passes.quantization.pack import grid_of, pack, unpack
from tokc.passes.quantization.rtn import RoundToNearest

GRIDS = [
    Grid(4, 32),
    Grid(4, 32, symmetric=False),
    Grid(8, 32),
    Grid(4, 128),
    Grid(4, 7, symmetric=False),
    Grid(8, 5),
    Grid(3, 32),
    Grid(3, 64, symmetric=False),
    Grid(2, 32),
    Grid(2, 9, symmetric=False),
]
grids = st.sampled_from(GRIDS)
weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 80)),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False),
)


def _span(grid: Grid, w: F32) -> F32:
    """Return how far each weight may move: half a step, and what fp16 does to the grid's ends."""
    scale, offset = grid.fit(w)
    step = np.abs(grid.per_column(scale, w.shape[1]))
    ends = 128 * np.maximum(step * 2.0**-11, 2.0**-24)
    if offset is not None:
        ends = ends + np.maximum(np.abs(grid.per_column(offset, w.shape[1])) * 2.0**-11, 2.0**-24)
    bound: F32 = step / 2 + ends + np.abs(w) * 2.0**-20
    return bound


@given(grids, weights)
def test_a_weight_inside_its_grid_moves_by_at_most_half_a_step(grid: Grid, w: F32) -> None:
    quantized = grid.quantize(w)
    decoded = grid.dequantize(quantized)
    scale, bound = np.abs(grid.per_column(quantized.scale, w.shape[1])), _span(grid, w)
    if grid.bits <= 4 and grid.symmetric:  # levels about zero are even in number: one side lacks the last
        bound = bound + scale / 2 * (quantized.codes == grid.code_range[1])
    assert (np.abs(decoded - w) <= bound).all()


@given(grids, weights)
def test_what_lies_on_the_grid_stays_where_it_is(grid: Grid, w: F32) -> None:
    quantized = grid.quantize(w)
    again = grid.encode(grid.dequantize(quantized), quantized.scale, quantized.offset)
    np.testing.assert_array_equal(
        grid.decode(again, quantized.scale, quantized.offset), grid.dequantize(quantized)
    )


@given(grids, weights)
def test_packing_and_unpacking_change_nothing(grid: Grid, w: F32) -> None:
    quantized = grid.quantize(w)
    packed = pack("w", quantized)
    again = unpack(packed)
    np.testing.assert_array_equal(again.codes, quantized.codes)
    np.testing.assert_array_equal(again.scale, quantized.scale)
    assert (again.offset is None) == (quantized.offset is None) == grid.symmetric
    assert grid_of(packed, zero_point=grid.zero_point, block_size=grid.group, bits=grid.bits % 8) == grid


@pytest.mark.parametrize("grid", GRIDS)
def test_zero_rows_stay_zero_and_constant_rows_stay_constant(grid: Grid) -> None:
    w = np.zeros((3, 70), np.float32)
    w[1], w[2] = 0.375, -2.5
    decoded = grid.dequantize(grid.quantize(w))
    assert (decoded[0] == 0).all()
    np.testing.assert_allclose(decoded[1:], w[1:], rtol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_is_refused(grid: Grid, value: float) -> None:
    w = np.ones((2, 64), np.float32)
    w[1, 40] = value
    with pytest.raises(NotFinite, match="not finite"):
        grid.quantize(w)


@pytest.mark.parametrize("grid", GRIDS)
def test_huge_values_saturate_and_stay_finite(grid: Grid) -> None:
    w = np.array([[3e38, -3e38] * 40], np.float32)
    assert np.isfinite(grid.dequantize(grid.quantize(w))).all()


def test_a_row_whose_last_group_is_short_has_a_scale_for_it() -> None:
    w = np.random.default_rng(0).standard_normal((4, 576)).astype(np.float32)
    w[:, 512:] *= 100
    quantized = Grid(4, 128).quantize(w)
    assert quantized.codes.shape == (4, 576)
    assert quantized.scale.shape == (4, 5)
    tail = Grid(4, 64).quantize(np.ascontiguousarray(w[:, 512:]))
    np.testing.assert_array_equal(quantized.codes[:, 512:], tail.codes)


def test_the_symmetric_grid_is_that_of_q4_0() -> None:
    gguf = pytest.importorskip("gguf")
    w = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    theirs = gguf.quants.dequantize(
        gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q4_0), gguf.GGMLQuantizationType.Q4_0
    )
    ours = Grid(4, 32).dequantize(Grid(4, 32).quantize(w))
    assert np.mean((ours - w) ** 2) <= np.mean((theirs - w) ** 2) * 1.001


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(5, 32, True), (8, 32, False), (4, 0, True)])
def test_a_grid_without_a_kernel_is_refused(bits: int, group: int, *, symmetric: bool) -> None:
    with pytest.raises(ValueError, match=r"grid|group"):
        Grid(bits, group, symmetric)


@pytest.mark.parametrize("grid", GRIDS)
def test_rounding_in_row_chunks_equals_rounding_at_once(grid: Grid) -> None:
    w = np.random.default_rng(2).standard_normal((2100, 2050)).astype(np.float32)
    at_once, chunked = grid.quantize(w), RoundToNearest().quantize(w, grid)
    np.testing.assert_array_equal(at_once.codes, chunked.codes)
    np.testing.assert_array_equal(at_once.scale, chunked.scale)
