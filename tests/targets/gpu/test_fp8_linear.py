"""Products of e4m3 weights and activations in either of the two forms of e4m3, against f64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.targets.gpu.interpreted import DTYPES, extent, info
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.fp8_linear import Fp8Linear
from tokc.targets.gpu.packing import e4m3, fnuz_of, pack_fp8

UNTOUCHED = 7.0
FORMS = {"fp8e4nv": torch.float8_e4m3fn, "fp8e4b8": torch.float8_e4m3fnuz}


def run(kernel: Fp8Linear, form: str, arrays: dict[str, np.ndarray], rows: slice, count: int) -> np.ndarray:
    """Launch over the given rows; codes are seen as numbers of the form, which numpy cannot hand to torch."""
    x, x_scale = arrays["x"][rows].copy(), arrays["x_scale"][rows].copy()
    y = np.full((len(x), kernel.n), UNTOUCHED, DTYPES[kernel.y_dtype])
    given = {**arrays, "x": x, "x_scale": x_scale, "info": info(tokens=count), "y": y}
    tensors = {name: torch.from_numpy(given[name].reshape(-1)) for name, _ in kernel.args}
    seen = {
        name: tensors[name].view(FORMS[form]) if dtype == "fp8" else tensors[name]
        for name, dtype in kernel.args
    }
    grid = tuple(extent(axis, {"tokens": len(x)}) for axis in kernel.grid)
    kernel.function()[grid](**seen, **kernel.constants)
    return y


def inputs(kernel: Fp8Linear, form: str, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the arguments and the result in f64 of what the codes stand for."""
    rng = np.random.default_rng(4)
    w = rng.normal(0, 1, (kernel.n, kernel.k))
    codes, scale = pack_fp8(w, kernel, form)
    x = rng.normal(0, 4, (rows, kernel.x_stride)).astype(e4m3(form))
    x_scale = rng.uniform(0.1, 1, (rows, kernel.x_scales)).astype(np.float32)
    bias = rng.normal(0, 1, kernel.n).astype(np.float32)
    x_real = x[:, : kernel.k].astype(np.float64) * spread(x_scale, 1, kernel.k)
    wanted = x_real @ weight_of(codes, scale, kernel, form).T
    arrays = {"weight": codes, "scale": scale, "x": x.view(np.uint8), "x_scale": x_scale, "bias": bias}
    return arrays, wanted + (bias if kernel.bias else 0)


def spread(scale: np.ndarray, row: int, k: int) -> np.ndarray:
    across = 128 if scale.shape[1] > 1 else k
    return np.repeat(np.repeat(scale.astype(np.float64), row, axis=0), across, axis=1)[:, :k]


def weight_of(codes: np.ndarray, scale: np.ndarray, kernel: Fp8Linear, form: str) -> np.ndarray:
    by = spread(scale, 128, kernel.k)[: kernel.n] if kernel.in_blocks else scale[:, None].astype(np.float64)
    return codes.view(e4m3(form)).astype(np.float64) * by


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize(("n", "k", "y_dtype", "bias"), [(96, 128, "f32", False), (144, 336, "f16", True)])
def test_it_computes_the_product_and_leaves_rows_past_the_count(
    form: str, in_blocks: bool, n: int, k: int, y_dtype: str, bias: bool
) -> None:
    kernel = Fp8Linear(n, k, bias, k + 16, y_dtype, in_blocks=in_blocks)
    arrays, wanted = inputs(kernel, form, 19)
    y = run(kernel, form, arrays, slice(None), 18)
    np.testing.assert_allclose(y[:18], wanted[:18], rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    assert (y[18:] == UNTOUCHED).all()


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_row_has_the_same_bits_in_narrow_and_wide_steps(in_blocks: bool) -> None:
    narrow = Fp8Linear(80, 272, bias=False, x_stride=272, y_dtype="f32", in_blocks=in_blocks)
    wide = narrow.variant(wide=True, bias=False, x_stride=272, y_dtype="f32")
    assert narrow.order == wide.order
    arrays, _ = inputs(narrow, "fp8e4nv", 40)
    # Integers, so that a tile's sum is exact in whatever order numpy takes it.
    arrays["x"] = (
        np.random.default_rng(1).integers(-8, 9, arrays["x"].shape).astype(e4m3("fp8e4nv")).view(np.uint8)
    )
    weight = np.random.default_rng(2).integers(-8, 9, arrays["weight"].shape)
    arrays["weight"] = weight.astype(e4m3("fp8e4nv")).view(np.uint8)
    whole = run(wide, "fp8e4nv", arrays, slice(None), 40)
    assert (run(narrow, "fp8e4nv", arrays, slice(None), 40) == whole).all()
    assert (run(narrow, "fp8e4nv", arrays, slice(33, 36), 3) == whole[33:36]).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("in_blocks", [False, True])
def test_packing_keeps_three_bits_of_the_mantissa_and_uses_the_whole_range(
    form: str, in_blocks: bool
) -> None:
    kernel = Fp8Linear(144, 208, bias=False, x_stride=208, y_dtype="f32", in_blocks=in_blocks)
    w = np.random.default_rng(1).normal(0, 1, (144, 208))
    codes, scale = pack_fp8(w, kernel, form)
    got = weight_of(codes, scale, kernel, form)
    smallest = np.abs(scale).max() * 2**-9  # the last places of subnormal numbers
    assert (np.abs(got - w) <= np.maximum(np.abs(w) * (2**-4 + 1e-6), smallest)).all()
    largest = np.abs(codes.view(e4m3(form)).astype(np.float64)).max()
    assert largest == (448 if form == "fp8e4nv" else 240)
    assert {name: shape for name, _, shape in kernel.parts} == {"weight": codes.shape, "scale": scale.shape}


def test_a_weight_of_one_form_is_exact_in_the_other() -> None:
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8).reshape(1, -1)
    there, scale = fnuz_of(codes, np.ones(1, np.float32))
    real = codes.view(e4m3("fp8e4nv")).astype(np.float64)
    assert (there.view(e4m3("fp8e4b8")).astype(np.float64) * scale == real).all()
    with pytest.raises(TargetRefused, match="holds NaN"):
        fnuz_of(np.array([0xFF], np.uint8), np.ones(1))


def test_what_no_kernel_computes_is_refused() -> None:
    kernel = Fp8Linear(32, 64, bias=False, x_stride=64, y_dtype="f32")
    with pytest.raises(TargetRefused, match="are not a multiple of 16"):
        replace(kernel, k=40)
    with pytest.raises(TargetRefused, match="no e4m3 form 'fp8e5'; choose from fp8e4nv, fp8e4b8"):
        e4m3("fp8e5")
