"""Half-quadratic quantization."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.passes.quantization.test_rtn_mse import GRIDS, normal
from tokc.passes.quantization.grid import F32, Grid, NotFinite, Quantized
from tokc.passes.quantization.hqq import HalfQuadratic

METHOD = HalfQuadratic()
BOTH = [Grid(4, 32), Grid(4, 64, symmetric=False)]
weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 70)),
    elements=st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, -3e38, 3e38])),
)


def sizes(w: F32, decoded: np.ndarray, group: int) -> np.ndarray:
    """Return the lp size, p = 0.7, of every group's error."""
    size = np.abs(decoded.astype(np.float64) - w) ** 0.7
    return np.add.reduceat(size, np.arange(0, w.shape[1], group), axis=1)


def published(w: F32, group: int) -> np.ndarray:
    """Return the weights as Badri & Shaji's solver leaves them, 4 bits, in f64 and with f64 zeros."""
    x = w.astype(np.float64).reshape(-1, group)
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    scale, beta, least = 15 / (high - low), 10.0, np.inf
    zero = -low * scale
    for _ in range(20):
        q = np.clip(np.round(x * scale + zero), 0, 15)
        decoded = (q - zero) / scale
        error = np.abs(x - decoded)
        if error.mean() >= least:
            break
        least, best = error.mean(), decoded
        slack = np.sign(x - decoded) * np.maximum(error - np.maximum(error, 1e-99) ** -0.3 / beta, 0)
        zero = (q - (x - slack) * scale).mean(axis=1, keepdims=True)
        beta *= 1.01
    return best.reshape(w.shape)


@given(st.sampled_from(GRIDS), weights)
def test_no_group_is_worse_by_the_norm_than_when_rounded_to_nearest(grid: Grid, w: F32) -> None:
    found, nearest = METHOD.quantize(w, grid), grid.quantize(w)
    after, before = (sizes(w, grid.dequantize(one), grid.group) for one in (found, nearest))
    assert (after <= before).all()
    assert np.isfinite(after).all()
    assert found.codes.dtype == nearest.codes.dtype


@pytest.mark.parametrize("freedom", [3, 30])
def test_it_is_no_worse_than_the_published_solver(freedom: int) -> None:
    w = (np.random.default_rng(freedom).standard_t(freedom, (256, 128)) * 0.05).astype(np.float32)
    grid = Grid(4, 64, symmetric=False)
    ours, theirs = grid.dequantize(METHOD.quantize(w, grid)), published(w, 64)
    assert sizes(w, ours, 64).sum() < sizes(w, theirs, 64).sum()
    assert np.abs(ours - w).mean() < np.abs(theirs - w).mean()


@pytest.mark.parametrize("grid", BOTH)
def test_heavy_tails_lose_less_by_the_norm(grid: Grid) -> None:
    w = np.random.default_rng(0).standard_t(3, (64, 256)).astype(np.float32)
    after, before = (
        sizes(w, grid.dequantize(one), grid.group).sum()
        for one in (METHOD.quantize(w, grid), grid.quantize(w))
    )
    assert after < before * 0.985


@pytest.mark.parametrize("grid", BOTH)
def test_the_unit_of_the_weights_does_not_matter(grid: Grid) -> None:
    w = normal(16, 128)
    one, other = METHOD.quantize(w, grid), METHOD.quantize(w * 32, grid)
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.scale.astype(np.float32) * 32, other.scale.astype(np.float32))


def test_an_asymmetric_grid_keeps_its_scales_and_a_symmetric_one_moves_them() -> None:
    w = normal(16, 128)
    for grid, same in ((Grid(4, 32, symmetric=False), True), (Grid(4, 32), False)):
        found, nearest = METHOD.quantize(w, grid), grid.quantize(w)
        assert np.array_equal(found.scale, nearest.scale) == same


@pytest.mark.parametrize("grid", GRIDS)
def test_any_number_of_threads_and_any_chunk_give_the_same_bits(grid: Grid) -> None:
    w = normal(300, 600)
    one, three = (HalfQuadratic(threads=threads).quantize(w, grid) for threads in (1, 3))
    part = METHOD.quantize(w[7:9], grid)
    for left, right, some in zip(*(_parts(each) for each in (one, three, part)), strict=True):
        np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(left[7:9], some)


def _parts(found: Quantized) -> list[np.ndarray]:
    return [part for part in (found.codes, found.scale, found.offset) if part is not None]


def test_a_value_that_is_not_finite_is_refused() -> None:
    w = normal(3, 70)
    w[2, 69] = np.inf
    with pytest.raises(NotFinite, match="not finite"):
        METHOD.quantize(w, Grid(4, 32))
