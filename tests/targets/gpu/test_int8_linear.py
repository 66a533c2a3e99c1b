"""Products of int8 weights and activations: exact in integers, then scaled."""

from dataclasses import replace

import numpy as np
import pytest

from tests.targets.gpu.interpreted import DTYPES, info, interpret
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.int8_linear import Int8Linear
from tokc.targets.gpu.packing import pack_int8

UNTOUCHED = 7.0


def run(kernel: Int8Linear, arrays: dict[str, np.ndarray], rows: slice, count: int) -> np.ndarray:
    x, x_scale = arrays["x"][rows].copy(), arrays["x_scale"][rows].copy()
    y = np.full((len(x), kernel.n), UNTOUCHED, DTYPES[kernel.y_dtype])
    step = {"x": x, "x_scale": x_scale, "info": info(tokens=count), "y": y}
    interpret(kernel, {**arrays, **step}, {"tokens": len(x)})
    return y


def inputs(kernel: Int8Linear, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the arguments and the result in f64."""
    rng = np.random.default_rng(4)
    q = rng.integers(-128, 128, (kernel.n, kernel.k)).astype(np.int8)
    x = rng.integers(-128, 128, (rows, kernel.x_stride)).astype(np.int8)
    scale = rng.uniform(1e-4, 1e-3, kernel.n).astype(np.float32)
    x_scale = rng.uniform(1e-3, 1e-2, rows).astype(np.float32)
    bias = rng.normal(0, 1, kernel.n).astype(np.float32)
    wanted = (
        (x[:, : kernel.k].astype(np.float64) @ q.T.astype(np.float64))
        * scale
        * x_scale[:, None].astype(float)
    )
    arrays = {"weight": q, "scale": scale, "x": x, "x_scale": x_scale, "bias": bias}
    return arrays, wanted + (bias if kernel.bias else 0)


@pytest.mark.parametrize(("n", "k", "y_dtype", "bias"), [(96, 128, "f32", False), (80, 336, "f16", True)])
def test_it_computes_the_product_and_leaves_rows_past_the_count(
    n: int, k: int, y_dtype: str, bias: bool
) -> None:
    kernel = Int8Linear(n, k, bias, k + 16, y_dtype)
    arrays, wanted = inputs(kernel, 19)
    y = run(kernel, arrays, slice(None), 18)
    np.testing.assert_allclose(y[:18], wanted[:18], rtol=1e-6 if y_dtype == "f32" else 1e-3, atol=1e-6)
    assert (y[18:] == UNTOUCHED).all()


def test_a_row_has_the_same_bits_in_narrow_and_wide_steps() -> None:
    narrow = Int8Linear(80, 272, bias=False, x_stride=272, y_dtype="f32")
    wide = narrow.variant(wide=True, bias=False, x_stride=272, y_dtype="f32")
    assert narrow.order == wide.order
    arrays, _ = inputs(narrow, 40)
    whole = run(wide, arrays, slice(None), 40)
    assert (run(narrow, arrays, slice(None), 40) == whole).all()
    assert (run(narrow, arrays, slice(33, 36), 3) == whole[33:36]).all()


def test_packing_is_within_half_a_step_of_the_weight() -> None:
    kernel = Int8Linear(40, 64, bias=False, x_stride=64, y_dtype="f32")
    w = np.random.default_rng(1).normal(0, 1, (40, 64)) * np.arange(40)[:, None]
    codes, scale = pack_int8(w, kernel)
    assert (np.abs(codes * scale[:, None].astype(float) - w) <= 0.501 * scale[:, None]).all()
    assert (np.abs(codes[1:].astype(int)).max(axis=1) == 127).all()
    assert (codes[0] == 0).all()


def test_rows_that_are_not_aligned_are_refused() -> None:
    kernel = Int8Linear(32, 64, bias=False, x_stride=64, y_dtype="f32")
    with pytest.raises(TargetRefused, match=r"64 columns \(of 72\) are not a multiple of 16"):
        replace(kernel, x_stride=72)
