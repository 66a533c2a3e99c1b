"""Scales searched for the least squared error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tokc.passes.quantization.grid import F32, Grid, NotFinite, Quantized
from tokc.passes.quantization.rtn_mse import RoundToNearestMse

GRIDS = [
    Grid(4, 32),
    Grid(4, 32, symmetric=False),
    Grid(8, 32),
    Grid(4, 128),
    Grid(4, 7, symmetric=False),
    Grid(8, 5),
    Grid(3, 32),
    Grid(2, 16, symmetric=False),
]
METHOD = RoundToNearestMse()
weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 80)),
    elements=st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, -3e38, 3e38])),
)


def errors(w: F32, found: Quantized, grid: Grid) -> list[float]:
    """Return the squared error of every group in f64, one group after another."""
    decoded = grid.dequantize(found).astype(np.float64)
    return [
        float(((decoded[row, start : start + grid.group] - w[row, start : start + grid.group]) ** 2).sum())
        for row in range(w.shape[0])
        for start in range(0, w.shape[1], grid.group)
    ]


def normal(*shape: int) -> F32:
    values: F32 = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    return values


@given(st.sampled_from(GRIDS), weights)
def test_no_group_is_worse_than_when_rounded_to_nearest(grid: Grid, w: F32) -> None:
    found, nearest = METHOD.quantize(w, grid), grid.quantize(w)
    assert all(
        ours <= theirs for ours, theirs in zip(errors(w, found, grid), errors(w, nearest, grid), strict=True)
    )
    assert np.isfinite(grid.dequantize(found)).all()
    assert found.codes.dtype == nearest.codes.dtype
    assert found.codes.shape == nearest.codes.shape
    assert found.scale.shape == nearest.scale.shape


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 16), Grid(3, 32), Grid(2, 64)])
def test_the_scale_is_within_two_hundredths_of_the_best_of_all(grid: Grid) -> None:
    w = normal(16, grid.group) * 0.8
    scales = np.linspace(-1.2, 1.2, 4001, dtype=np.float32).astype(np.float16)
    tried = [errors(w, Quantized(grid.encode(w, s), s), grid) for s in (np.full((16, 1), x) for x in scales)]
    least = np.min(tried, axis=0)
    found = np.array(errors(w, METHOD.quantize(w, grid), grid))
    assert (found <= least * 1.1).all()
    assert found.sum() <= least.sum() * 1.02


@pytest.mark.parametrize(
    ("grid", "gain"), [(Grid(4, 32), 0.9), (Grid(4, 32, symmetric=False), 0.82), (Grid(8, 32), 0.95)]
)
def test_normal_weights_lose_less_than_when_rounded_to_nearest(grid: Grid, gain: float) -> None:
    w = normal(64, 512)
    assert grid.error(w, METHOD.quantize(w, grid)) < gain * grid.error(w, grid.quantize(w))


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, symmetric=False)])
def test_a_weight_that_lies_on_a_grid_is_found_on_it(grid: Grid) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(1, 16, (40, 32)).astype(np.uint8)  # without the code that rtn gives the extreme
    codes[:, :2] = 1, 15
    scale = rng.uniform(0.5, 2, (40, 1)).astype(np.float16)
    offset = None if grid.symmetric else rng.uniform(-9, -7, (40, 1)).astype(np.float16)
    w = grid.decode(codes, scale, offset)
    assert grid.error(w, METHOD.quantize(w, grid)) < 1e-6
    if grid.symmetric:
        assert grid.error(w, grid.quantize(w)) > 1e-3


def test_a_short_last_group_is_searched_as_one_of_its_own_width() -> None:
    w = normal(4, 576)
    whole = METHOD.quantize(w, Grid(4, 128))
    tail = METHOD.quantize(np.ascontiguousarray(w[:, 512:]), Grid(4, 64))
    np.testing.assert_array_equal(whole.codes[:, 512:], tail.codes)
    np.testing.assert_array_equal(whole.scale[:, 4:], tail.scale)


@pytest.mark.parametrize("grid", GRIDS)
def test_any_number_of_threads_and_any_chunk_give_the_same_bits(grid: Grid) -> None:
    w = normal(300, 600)
    one, three = (RoundToNearestMse(threads=threads).quantize(w, grid) for threads in (1, 3))
    part = METHOD.quantize(w[7:9], grid)
    for left, right, some in zip(*(_parts(each) for each in (one, three, part)), strict=True):
        np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(left[7:9], some)


def _parts(found: Quantized) -> list[np.ndarray]:
    return [part for part in (found.codes, found.scale, found.offset) if part is not None]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_value_that_is_not_finite_is_refused(grid: Grid) -> None:
    w = normal(3, 70)
    w[2, 69] = np.nan
    with pytest.raises(NotFinite, match="not finite"):
        METHOD.quantize(w, grid)
