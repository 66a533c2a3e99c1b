"""RMS normalization against its formula, in every form of its outputs."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.gpu.interpreted import info, interpret
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.rms_norm import RmsNorm

Rows = npt.NDArray[np.float32]


def expected(x: Rows, weight: Rows, epsilon: float) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon) * weight


def run(
    kernel: RmsNorm, x: Rows, residual: Rows, weight: Rows, rows: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Run over `rows` of the rows of x; outputs start as 7."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "x": x,
        "residual": residual,
        "total": np.full_like(x, 7),
        "weight": weight,
        "info": info(**{kernel.rows: rows}),
        "y_float": np.full((len(x), kernel.width), 7, np.float32),
        "y": np.full((len(x), kernel.width), 7, np.float16),
    }
    interpret(kernel, arrays, {kernel.rows: len(x)})
    return arrays


@pytest.mark.parametrize(("width", "stride"), [(64, 64), (576, 576), (90, 100)])
@pytest.mark.parametrize("add", [False, True])
def test_it_normalizes_the_sum_and_leaves_other_rows(width: int, stride: int, add: bool) -> None:
    random = np.random.default_rng(2)
    x, residual = (random.normal(0, 3, (4, stride)).astype(np.float32) for _ in range(2))
    weight = random.normal(1, 0.2, width).astype(np.float32)
    kernel = RmsNorm(width, stride, 1e-5, add, keep_float=True, rows="rows")
    found = run(kernel, x, residual, weight, rows=3)
    total = x + residual if add else x
    wanted = expected(total[:3, :width], weight, 1e-5)
    np.testing.assert_allclose(found["y_float"][:3], wanted, rtol=3e-6)
    np.testing.assert_allclose(found["y"][:3], wanted, rtol=1e-3, atol=1e-6)
    assert (found["y"][3] == 7).all()
    assert (found["y_float"][3] == 7).all()
    if add:
        np.testing.assert_array_equal(found["total"][:3, :width], total[:3, :width])
        assert (found["total"][3] == 7).all()


@pytest.mark.parametrize(("keep_float", "half"), [(True, False), (False, True)])
def test_it_writes_only_the_forms_that_are_asked_for(keep_float: bool, half: bool) -> None:
    x = np.random.default_rng(3).normal(0, 1, (2, 32)).astype(np.float32)
    kernel = RmsNorm(32, 32, 1e-6, add=False, keep_float=keep_float, half=half)
    found = run(kernel, x, x, np.ones(32, np.float32), rows=2)
    assert [(found[name] != 7).all() for name in ("y_float", "y")] == [keep_float, half]
    assert {name for name, _ in kernel.args} == {"x", "weight", "info", "y_float" if keep_float else "y"}


def test_the_epsilon_keeps_a_row_of_zeros_finite_and_f16_is_held_within_its_range() -> None:
    x = np.zeros((2, 32), np.float32)
    x[1, 0] = 1
    found = run(RmsNorm(32, 32, 1e-5, add=False), x, x, np.full(32, 1e6, np.float32), rows=2)
    assert (found["y"][0] == 0).all()
    assert found["y"][1, 0] == np.float16(65504)


def test_kernels_of_different_epsilon_or_form_have_different_names() -> None:
    kernels = [
        RmsNorm(64, 64, epsilon, add, keep, rows=rows)
        for epsilon in (1e-5, 1e-6, 1.0000001e-5)
        for add in (False, True)
        for keep in (False, True)
        for rows in ("tokens", "rows")
    ]
    assert len({kernel.symbol for kernel in kernels}) == len(kernels)
    assert all(kernel.symbol.isidentifier() for kernel in kernels)


def test_a_row_too_wide_for_one_program_is_refused() -> None:
    with pytest.raises(TargetRefused, match="40000 columns is wider than 32768"):
        RmsNorm(40000, 40000, 1e-5, add=False)
